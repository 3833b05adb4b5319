"""Sparse autoencoders of the residual stream, as SAELens saves them.

    code(h)   = act((n(h) - b_dec) W_enc + b_enc)          n: the normalisation it was trained with
    decode(z) = n^-1(z W_dec + b_dec)

Known: standard (ReLU), TopK, BatchTopK, JumpReLU and gated ones. `code` is what each feature says
by itself, before TopK picks the largest: it needs a feature's own rows alone, so that `select`
leaves `2 k d` numbers of `2 n d`. `encode` applies TopK too, and needs them all.

>>> import conflictkit as ck
>>> from conflictkit.interventions.sae import SAE
>>> sae = SAE.load(ck.atlas.saes()[0])
>>> sae.kind, sae.model, sae.width
('jumprelu', 'atlas', 192)
>>> few = sae.select([3, 1])
>>> few.features, few.bytes == sae.bytes * 2 // sae.features
(2, True)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from conflictkit.errors import SAEError, UnsupportedError
from conflictkit.files import short
from conflictkit.interventions import _saefile as saefile

KINDS = ("standard", "topk", "batchtopk", "jumprelu", "gated")
NORMS = ("none", "constant_norm_rescale", "layer_norm")
SHIPPED = Path(__file__).resolve().parents[1] / "atlas" / "saes"
"""Those of the model in the package."""
_TENSORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "batchtopk": ("b_enc", "topk_threshold"),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
_EPSILON = 1e-5  # SAELens's, under a layer norm


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder of what one layer leaves in the residual stream.

    Attributes:
        source: where it came from.
        kind: one of `KINDS`; a BatchTopK one with its threshold is a JumpReLU one.
        layer: behind which it reads, from 0.
        hook: the place as its file names it.
        model: the model as its file names it; "": it does not say.
        fingerprint: of that model's weights; "": unknown.
        encoder: `[width, features]`.
        decoder: `[features, width]`.
        bias: `[features]`, of the encoder (of the magnitudes, where gated).
        decoder_bias: `[width]`.
        threshold: `[features]`, below which a feature is off; None: 0.
        gate: `[features]` biases of the gates and logarithms of the scales; None: not gated.
        k: how many features TopK leaves; None: no TopK.
        norm: one of `NORMS`.
        centred: whether the decoder's bias is taken from the input.
        whole: whether these are all its features.
    """

    source: str
    kind: str
    layer: int
    hook: str
    model: str
    fingerprint: str
    encoder: Tensor
    decoder: Tensor
    bias: Tensor
    decoder_bias: Tensor
    threshold: Tensor | None = None
    gate: tuple[Tensor, Tensor] | None = None
    k: int | None = None
    norm: str = "none"
    centred: bool = True
    whole: bool = True

    @property
    def width(self) -> int:
        """Of the stream that it reads."""
        return self.decoder.shape[1]

    @property
    def features(self) -> int:
        """How many it has here."""
        return self.decoder.shape[0]

    @property
    def bytes(self) -> int:
        """Of encoder and decoder."""
        return sum(one.numel() * one.element_size() for one in (self.encoder, self.decoder))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what it computes with: every number as float32, and how they are used."""
        used = (self.kind, self.k, self.norm, self.centred)
        made = hashlib.sha256(repr(used).encode())
        optional = (self.threshold, *(self.gate or ()))
        for one in (self.encoder, self.decoder, self.bias, self.decoder_bias, *optional):
            if one is not None:
                made.update(one.detach().float().cpu().contiguous().numpy().tobytes())
        return made.hexdigest()

    def code(self, values: Tensor) -> Tensor:
        """What every feature says of `[..., width]` by itself: `[..., features]`, at least 0."""
        inside, _, _ = self._inside(values)
        raw = inside @ self.encoder
        if self.gate is not None:
            bias, scale = self.gate
            return (raw * scale.exp() + self.bias).relu() * (raw + bias > 0)
        raw = raw + self.bias
        if self.threshold is None:
            return raw.relu()
        return raw.relu() * (raw > self.threshold)

    def encode(self, values: Tensor) -> Tensor:
        """The sparse code of `[..., width]`: `[..., features]`.

        Raises:
            UnsupportedError: TopK needs all features, and these are a selection.
        """
        codes = self.code(values)
        if self.k is None:
            return codes
        if not self.whole:
            raise UnsupportedError(f"{self.source}: TopK needs all features, not a selection")
        best = codes.topk(min(self.k, codes.shape[-1]), dim=-1)
        return torch.zeros_like(codes).scatter(-1, best.indices, best.values)

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """The stream that a code stands for: `[..., width]`.

        Args:
            codes: `[..., features]`.
            like: the stream that was encoded; needed where it is normalised.
        """
        out = codes @ self.decoder + self.decoder_bias
        if self.norm == "none":
            return out
        if like is None:
            raise UnsupportedError(f"{self.source} normalises ({self.norm}): pass like=")
        _, scale, centre = self._inside(like)
        return out * scale + centre

    def change(self, codes: Tensor, like: Tensor) -> Tensor:
        """What adding `codes` changes in the stream `like`: no bias, the normalisation undone."""
        _, scale, _ = self._inside(like)
        return (codes @ self.decoder) * scale

    def _inside(self, values: Tensor) -> tuple[Tensor, Any, Any]:
        """The normalised input less the bias, and what was divided by and taken away."""
        values = values.to(self.encoder.dtype)
        scale: Any = 1.0
        centre: Any = 0.0
        if self.norm == "constant_norm_rescale":
            scale = values.norm(dim=-1, keepdim=True) / self.width**0.5
            values = values / scale
        elif self.norm == "layer_norm":
            centre = values.mean(-1, keepdim=True)
            values = values - centre
            scale = values.std(-1, keepdim=True)
            values = values / (scale + _EPSILON)
        return (values - self.decoder_bias if self.centred else values), scale, centre

    def select(self, ids: Sequence[int]) -> Self:
        """These features alone, in this order.

        Raises:
            SAEError: a feature that it does not have.
        """
        for one in ids:
            if type(one) is not int or not 0 <= one < self.features:
                raise SAEError(f"{self.source} has no feature {short(one)}: it has {self.features}")
        rows = torch.tensor(list(ids), dtype=torch.int64, device=self.decoder.device)
        return replace(
            self,
            encoder=self.encoder[:, rows].contiguous(),
            decoder=self.decoder[rows].contiguous(),
            bias=self.bias[rows],
            threshold=None if self.threshold is None else self.threshold[rows],
            gate=None if self.gate is None else (self.gate[0][rows], self.gate[1][rows]),
            whole=False,
        )

    def to(self, device: Any, dtype: torch.dtype | None = None) -> Self:
        """The same on another device, or in another type."""

        def moved(one: Any) -> Any:
            return None if one is None else one.to(device=device, dtype=dtype or one.dtype)

        return replace(
            self,
            **{name: moved(getattr(self, name)) for name in
               ("encoder", "decoder", "bias", "decoder_bias", "threshold")},
            gate=None if self.gate is None else (moved(self.gate[0]), moved(self.gate[1])),
        )  # fmt: skip

    def check(self, name: str, fingerprint: str, width: int, layers: int) -> None:
        """Refuse a model that it does not belong to.

        Args:
            name: what the model was loaded by.
            fingerprint: `conflictkit.models.fingerprint` of its weights.
            width: of its residual stream.
            layers: how many it has.

        Raises:
            SAEError: another model, width, or a layer that it does not have.
        """
        mine = f"the SAE {self.source} belongs to '{self.model or 'a model it does not name'}'"
        if self.width != width:
            raise SAEError(f"{mine}, of width {self.width}; '{name}' has width {width}")
        if self.layer >= layers:
            raise SAEError(f"{mine}, at {self.hook}; '{name}' has {layers} layers")
        if self.fingerprint:
            if self.fingerprint != fingerprint:
                raise SAEError(
                    f"{mine} ({self.fingerprint[:12]}); '{name}' has other weights "
                    f"({fingerprint[:12]})"
                )
        elif self.model and _bare(self.model) != _bare(name):
            raise SAEError(
                f"{mine}, not to '{name}': if they are the same, load it with "
                f"SAE.load(..., model={name!r})"
            )

    @classmethod
    def load(cls, source: str | os.PathLike[str], *, model: str | None = None) -> Self:
        """Read one from a folder (`cfg.json`, `sae_weights.safetensors`) or, online, by name.

        Args:
            source: a folder, or `release:id` of SAELens's directory (needs `conflictkit[sae]`).
            model: the model that it belongs to, where its file names it otherwise.

        Raises:
            SAEError: not an SAE of the residual stream, or of a kind that is not known.
            HubError, UnsupportedError: it cannot be fetched; sae-lens is missing.
        """
        path = Path(source)
        if (path / saefile.CONFIG).is_file():
            told, tensors = saefile.from_disk(path)
        elif not path.exists() and ":" in os.fspath(source):
            told, tensors = saefile.from_hub(os.fspath(source))
        else:
            raise SAEError(f"there is no {saefile.CONFIG} in {os.fspath(source)!r}")
        made = cls._of(os.fspath(source), told, tensors)
        return made if model is None else replace(made, model=model, fingerprint="")

    @classmethod
    def _of(cls, source: str, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        about = saefile.about(told)
        kind = str(told.get("architecture") or "standard")
        k = told.get("k")
        if kind == "standard" and told.get("activation_fn_str") == "topk":
            kind, k = "topk", (told.get("activation_fn_kwargs") or {}).get("k")
        layer, hook = saefile.place(source, about)
        norm = str(told.get("normalize_activations") or "none")
        if kind not in KINDS or norm not in NORMS or told.get("reshape_activations") == "hook_z":
            raise SAEError(
                f"{source}: an SAE of kind '{kind}' with activations normalised by '{norm}' is "
                f"not known (kinds: {', '.join(KINDS)}; normalised by: {', '.join(NORMS)})"
            )
        wanted = {"W_enc", "W_dec", "b_dec", *_TENSORS[kind]}
        if set(tensors) != wanted:
            raise SAEError(
                f"{source}: a {kind} SAE holds {', '.join(sorted(wanted))}, this file "
                f"{', '.join(sorted(tensors))}"
            )
        held = {name: one.float() for name, one in tensors.items()}
        count, width = (*held["W_dec"].shape, 0, 0)[:2]
        shapes: dict[str, tuple[int, ...]] = {"W_dec": (count, width), "W_enc": (width, count)}
        shapes |= {"b_dec": (width,), "topk_threshold": ()}
        for name, one in held.items():
            if tuple(one.shape) != shapes.get(name, (count,)):
                raise SAEError(f"{source}: {name} has the shape {list(one.shape)}")
            if not bool(one.isfinite().all()):
                raise SAEError(f"{source}: {name} is not finite")
        if kind in ("topk", "batchtopk") and told.get("rescale_acts_by_decoder_norm"):
            norms = held["W_dec"].norm(dim=-1)
            held["W_enc"], held["b_enc"] = held["W_enc"] * norms, held["b_enc"] * norms
            held["W_dec"] = held["W_dec"] / norms[:, None]
        threshold = held.get("threshold")
        if kind == "batchtopk":
            kind, threshold = "jumprelu", held["topk_threshold"].expand(count).clone()
        if kind == "topk" and (type(k) is not int or k < 1):
            raise SAEError(f"{source}: k must be a whole number from 1, not {short(k)}")
        return cls(
            source=source, kind=kind, layer=layer, hook=hook,
            model=str(about.get("model_name") or ""),
            fingerprint=str(about.get("conflictkit_fingerprint") or ""),
            encoder=held["W_enc"], decoder=held["W_dec"], decoder_bias=held["b_dec"],
            bias=held["b_mag"] if kind == "gated" else held["b_enc"],
            threshold=threshold,
            gate=(held["b_gate"], held["r_mag"]) if kind == "gated" else None,
            k=k if kind == "topk" else None,
            norm=norm, centred=bool(told.get("apply_b_dec_to_input", True)),
        )  # fmt: skip


def by_layer(sources: Sequence[str]) -> dict[int, str]:
    """Layer -> where its autoencoder is.

    Args:
        sources: folders of one or of several, `release:id`, or `atlas` for those in the package.

    Raises:
        SAEError: a folder without any, or two of one layer.
    """
    found: dict[int, str] = {}
    for source in sources:
        path = SHIPPED if source == "atlas" else Path(source)
        inside = [path] if (path / saefile.CONFIG).is_file() else [
            one.parent for one in sorted(path.glob(f"*/{saefile.CONFIG}"))
        ]  # fmt: skip
        if inside:
            places = [
                (saefile.place(str(one), saefile.about(saefile.config(one)))[0], str(one))
                for one in inside
            ]
        else:
            places = [(SAE.load(source).layer, source)]  # by name, or an error that says why not
        for layer, place in places:
            if layer in found:
                raise SAEError(f"two SAEs of layer {layer}: {found[layer]} and {place}")
            found[layer] = place
    return found


def _bare(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
