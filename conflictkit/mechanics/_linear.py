"""A layer's additions to the residual stream, and the way to the logits, with norms held fixed.

With the scale of every norm held at what it was, the logits are a sum: of what the embedding, each
head, each MLP and the biases write. Nothing here goes by names: what a norm does is measured on
the norm, what a head writes is what the output projection makes of it alone, and each sum is held
against what the model computed. What does not add up is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit.anatomy import Anatomy
from conflictkit.errors import UnsupportedError
from conflictkit.mechanics._runs import Snapshot, close

_CELLS = 1 << 24  # of the largest table of logits that is made at once: 64 MB


@dataclass(frozen=True)
class FrozenNorm:
    """A norm whose scale is held: `gain * (change - mean)`, the mean only if it centres.

    Attributes:
        gain: `[rows, width]`, the norm's weight times the scale of each row.
        offset: `[width]`, its bias.
        centred: whether it takes off the mean (LayerNorm).
    """

    gain: Tensor
    offset: Tensor
    centred: bool

    def change(self, values: Tensor) -> Tensor:
        """What `[rows, ..., width]` in front of the norm becomes behind it, the bias left out."""
        if self.centred:
            values = values - values.mean(-1, keepdim=True)
        return values * _between(self.gain, values)

    def back(self, direction: Tensor) -> Tensor:
        """`[rows, width]` behind the norm -> the direction in front of it that it reads."""
        pulled = direction * self.gain
        return pulled - pulled.mean(-1, keepdim=True) if self.centred else pulled


def _between(rows: Tensor, values: Tensor) -> Tensor:
    """`[rows, width]` shaped so that it broadcasts over the middle of `[rows, ..., width]`."""
    return rows.reshape(len(rows), *[1] * (values.dim() - 2), rows.shape[-1])


def freeze(norm: Module | None, before: Tensor) -> FrozenNorm:
    """The norm with its scale held at what it is for each row of `before` `[rows, width]`.

    Weight, bias and centring are found by running the norm on three vectors, so RMSNorm with
    `weight` or `1 + weight`, LayerNorm with or without them, and their like need no table.

    Raises:
        UnsupportedError: it is none of those.
    """
    width = before.shape[-1]
    if norm is None:
        one = torch.ones(len(before), width, device=before.device)
        return FrozenNorm(one, torch.zeros(width, device=before.device), False)
    run: Callable[[Tensor], Tensor] = lambda values: norm.forward(values).float()  # noqa: E731
    signs = torch.ones(1, width, dtype=before.dtype, device=before.device) * 64
    signs[:, 1::2] = -64
    offset = run(torch.zeros_like(signs))
    flat, mixed = run(signs.abs()) - offset, run(signs) - offset
    centred = bool(flat.abs().amax() < 1e-3 * mixed.abs().amax())
    probe, inside = signs.float(), before.float()
    if centred:
        probe = probe - probe.mean()
        inside = inside - inside.mean(-1, keepdim=True)
    weight = mixed / probe * probe.square().mean().sqrt()
    plain, behind = weight * inside, run(before)
    scale = ((behind - offset) * plain).sum(-1, True) / plain.square().sum(-1, True)
    if not close((scale * plain + offset).to(before.dtype), behind.to(before.dtype)):
        raise UnsupportedError(f"{type(norm).__name__} is neither an RMSNorm nor a LayerNorm")
    return FrozenNorm(scale * weight, offset[0], centred)


def writes(body: Anatomy, layer: int, heads: Tensor) -> Tensor:
    """What the output projection makes of each head alone, its bias left out, in float32.

    Args:
        heads: `[rows, heads * head_dim]`.

    Returns:
        `[rows, heads, width]`.
    """
    output = body.outputs[layer]
    assert output is not None
    apart = heads.unflatten(-1, (1, body.heads, body.head_dim))
    alone = apart * torch.eye(body.heads, dtype=heads.dtype, device=heads.device)[..., None]
    # `forward` itself: an edit that stands in front of the projection has acted already.
    nothing = output.forward(torch.zeros_like(heads[:1]))
    return (output.forward(alone.flatten(-2)) - nothing).float()


def added(body: Anatomy, seen: Snapshot, layer: int, heads: Tensor) -> Tensor:
    """What each head adds to the residual stream, norms held as they were in `seen`.

    Args:
        heads: `[rows, heads * head_dim]` of that layer.

    Returns:
        `[rows, heads, width]` float32.
    """
    norm = freeze(body.attention_norms[layer], seen.projected[layer])
    return body.residual_scale * norm.change(writes(body, layer, heads))


def check_sum(hf: Any, body: Anatomy, seen: Snapshot) -> None:
    """Refuse a model whose residual stream is not the sum of what its layers add to it.

    Raises:
        UnsupportedError: in some layer, or between the layers, it is not.
    """
    name = type(hf).__name__
    for layer, (entering, leaving) in enumerate(zip(seen.entering, seen.leaving, strict=True)):
        total = entering.float()
        if seen.projected[layer] is not None:
            total = total + body.residual_scale * _attention(body, seen, layer)
        total = total + body.residual_scale * _mlp(body, seen, layer)
        if not close(total.to(leaving.dtype), leaving):
            raise UnsupportedError(
                f"{name}: layer {layer} does not add its attention and its MLP to the stream (it "
                "normalises or scales between them), so a head's direct effect is not defined; "
                "activation_patching works"
            )
        follows = [*seen.entering[1:], seen.final][layer]
        if not close(leaving, follows):
            raise UnsupportedError(f"{name}: the stream is changed behind layer {layer}")


def _attention(body: Anatomy, seen: Snapshot, layer: int) -> Tensor:
    norm, out = body.attention_norms[layer], seen.projected[layer]
    return (out if norm is None else norm.forward(out)).float()


def _mlp(body: Anatomy, seen: Snapshot, layer: int) -> Tensor:
    names = ("post_feedforward_layernorm", "post_mlp_layernorm")  # Gemma 2, 3 and OLMo 2; GLM-4
    own = (getattr(body.layers[layer], name, None) for name in names)
    norm = next((one for one in own if one is not None), None)
    out = seen.mlps[layer]
    return (out if norm is None else norm.forward(out)).float()


@dataclass(frozen=True)
class Unembedding:
    """From behind the final norm to the logits.

    Attributes:
        body: the model's parts.
        factor: what the unembedding's output is multiplied by (Granite, Cohere).
        cap: bound that a tanh keeps the logits in (Gemma 2); None: none.
    """

    body: Anatomy
    factor: float
    cap: float | None

    @classmethod
    def of(cls, hf: Any, body: Anatomy, seen: Snapshot) -> Unembedding:
        """Of a model, held against what it computed.

        Raises:
            UnsupportedError: the logits are made in another way.
        """
        config = hf.config.get_text_config()
        factor = getattr(config, "logit_scale", None)
        scaling = getattr(config, "logits_scaling", None)
        made = cls(
            body,
            factor if isinstance(factor, float) else 1.0 / scaling if scaling else 1.0,
            getattr(config, "final_logit_softcapping", None),
        )
        normed = seen.final if body.norm is None else body.norm.forward(seen.final)
        logits = made.logits(normed).to(normed.dtype)
        if not close(normed, seen.normed) or not close(logits, seen.logits.to(normed.dtype)):
            raise UnsupportedError(
                f"{type(hf).__name__}: its logits are not the unembedding of its final norm"
            )
        return made

    def logits(self, normed: Tensor) -> Tensor:
        """`[..., width]` behind the final norm -> `[..., vocab]` float32."""
        raw = self.body.unembed.forward(normed).float() * self.factor
        return raw if self.cap is None else (raw / self.cap).tanh() * self.cap

    def direction(self, up: Tensor, down: Tensor) -> Tensor:
        """`[rows, width]`: the unembedding of `up` minus that of `down` `[rows]`, float32.

        Raises:
            UnsupportedError: the unembedding's weights cannot be read (quantised).
        """
        weight = getattr(self.body.unembed, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 2:
            raise UnsupportedError("the unembedding's weights cannot be read row by row")
        return self.factor * (weight[up].float() - weight[down].float())

    def of_tokens(self, normed: Tensor, tokens: Tensor, *, logprobs: bool) -> Tensor:
        """Logits or log-probabilities of some tokens, a few rows of the vocabulary at a time.

        Args:
            normed: `[rows, several, width]` behind the final norm.
            tokens: `[rows, wanted]` ids.

        Returns:
            `[rows, several, wanted]` float32.
        """
        rows, several, width = normed.shape
        wanted = tokens[:, None].expand(rows, several, -1).reshape(rows * several, -1)
        made = []
        step = max(1, _CELLS // self.body.unembed.weight.shape[0])  # type: ignore[union-attr]
        flat = normed.reshape(-1, width)
        for some, ids in zip(flat.split(step), wanted.split(step), strict=True):
            logits = self.logits(some)
            if logprobs:
                logits = logits - logits.logsumexp(-1, keepdim=True)
            made.append(logits.gather(-1, ids.to(logits.device)))
        return torch.cat(made).reshape(rows, several, -1)
