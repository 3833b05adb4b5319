"""Linear probes of activations (Zhao et al. 2024, arXiv 2410.16090): sigmoid(w . x + b).

x is what one layer writes at the prompt's last position. A probe says, before a word is written,
whether context and memory disagree (`conflict`), or that the answer will follow the context
(`source`). It reads one vector and costs one dot product; a probe of `heads`, the last kind below,
does not.

>>> import torch
>>> from conflictkit.detectors.probe import LayerProbe
>>> probe = LayerProbe("conflict", "residual", 3, torch.tensor([1.0, -1.0]), 0.5, "any", "0" * 64)
>>> probe(torch.tensor([[0.0, 0.5], [2.0, 0.0]]))
tensor([0.5000, 0.9241])

How it is fitted: `fit`. By default L2-penalised logistic regression on standardised activations
(scikit-learn); `optimiser="paper"` is the paper's: binary cross-entropy plus an L1 penalty on all
parameters, the bias included, by Adam.

A probe of `heads` reads what some heads write, unembeds it and compares it with memory's next
token: see `conflictkit.detectors.reading`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from conflictkit.detectors.reading import surprise
from conflictkit.errors import InvalidParameterError, ProbeError, UnsupportedError, unknown_name
from conflictkit.files import JsonFile, is_digest, write_whole
from conflictkit.types import Step

__all__ = ["HEADS", "KINDS", "OPTIMISERS", "PENALTIES", "TARGETS", "LayerProbe", "fit"]

FORMAT, VERSION = "conflictkit-probe", 1
TARGETS = ("conflict", "source")
KINDS = ("residual", "attention", "mlp")
HEADS = "heads"
"""A kind of its own: heads of several layers, weighed, against memory's next token."""
OPTIMISERS, PENALTIES = ("scikit-learn", "paper"), ("l2", "l1")
_WIDEST = 2**28
_FIELDS = ("format", "version", "target", "kind", "layer", "bias", "model", "fingerprint", "about")
_HEADER = JsonFile("probe", ProbeError, largest=2**20, most_parts=10_000)
# The paper's: lambda, learning rate, its decay by epoch, epochs, rows of a batch.
_LAMBDA, _RATE, _DECAY, _EPOCHS, _BATCH = 6e-4, 2e-3, 0.95, 20, 64


@dataclass(frozen=True, eq=False)
class LayerProbe:
    """A fitted probe.

    Attributes:
        target: `conflict` or `source`.
        kind: `residual` (the stream behind the layer), `attention` or `mlp` (what they put out), or
            `heads` (what the heads of this layer and all behind it write, weighed).
        layer: from 0.
        weights: `[width]` float32; of `heads`: see `interventions.taps.Reader`.
        bias: added to the product; of `heads`: to the surprise, in nats. There the probability is
            that of the largest along an answer, so a gate that is asked but once, at the prompt,
            wants a lower threshold.
        model: what the model was loaded by.
        fingerprint: `conflictkit.models.fingerprint` of its weights.
        about: how it was fitted and how well it does; JSON data.

    Raises:
        ProbeError: a value of the wrong kind.
    """

    target: str
    kind: str
    layer: int
    weights: Tensor
    bias: float
    model: str
    fingerprint: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ProbeError(f"target must be one of {', '.join(TARGETS)}")
        if self.kind not in (*KINDS, HEADS):
            raise ProbeError(f"kind must be one of {', '.join((*KINDS, HEADS))}")
        if self.kind == HEADS and self.target != TARGETS[0]:
            raise ProbeError(f"a probe of {HEADS} tells of a conflict, not of the {self.target}")
        if type(self.layer) is not int or not 0 <= self.layer < 10_000:
            raise ProbeError("layer must be a whole number from 0")
        weights = torch.as_tensor(self.weights).detach().float().cpu().clone()
        if weights.dim() != 1 or not weights.isfinite().all():
            raise ProbeError("weights must be a vector of finite numbers")
        if not 0 < len(weights) <= _WIDEST:
            raise ProbeError(f"weights must be 1 to {_WIDEST:,} numbers, not {len(weights):,}")
        bias = self.bias
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not abs(bias) < 1e9:
            raise ProbeError("bias must be a finite number")
        if not isinstance(self.model, str) or not isinstance(self.about, Mapping):
            raise ProbeError("model must be text, and about an object")
        if not is_digest(self.fingerprint):
            raise ProbeError("fingerprint must be 64 hexadecimal digits")
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "bias", float(bias))
        object.__setattr__(self, "about", dict(self.about))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerProbe) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.target, self.place, self.digest))

    @property
    def width(self) -> int:
        """Of the activations that it reads."""
        return len(self.weights)

    @property
    def place(self) -> str:
        """What it reads, as `Step.activations` names it."""
        place = f"{self.kind}.{self.layer}"
        return f"{place}:{self.digest[:12]}" if self.kind == HEADS else place

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights and bias."""
        return hashlib.sha256(
            f"{self.bias!r}".encode() + self.weights.numpy().tobytes()
        ).hexdigest()

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the streams that it reads."""
        return ("context", "memory") if self.kind == HEADS else ("context",)

    def at(self, step: Step) -> Tensor:
        """The probability at a step that holds what it reads: `[batch]` float32."""
        values = step.activations[self.place]
        if self.kind == HEADS:
            return (surprise(values, step.memory.argmax(-1)) + self.bias).sigmoid()
        return self(values)

    def logit(self, values: Tensor) -> Tensor:
        """`w . x + b` of `[..., width]` activations: `[...]` float32.

        Raises:
            InvalidParameterError: activations of another width, or a probe of `heads`.
        """
        if self.kind == HEADS:
            raise InvalidParameterError(
                "a probe of heads compares two streams: `at(step)`, or a gate, reads it"
            )
        if values.shape[-1:] != self.weights.shape:
            raise InvalidParameterError(
                f"the probe reads activations of width {self.width}, not {list(values.shape)}"
            )
        return values.float() @ self.weights.to(values.device) + self.bias

    def __call__(self, values: Tensor) -> Tensor:
        """Probability of a conflict, or of the context's answer: `[...]` float32, 0 to 1."""
        return self.logit(values).sigmoid()

    def check(self, name: str, fingerprint: str) -> None:
        """Refuse a model that the probe was not fitted on.

        Raises:
            ProbeError: other weights.
        """
        if self.fingerprint != fingerprint:
            raise ProbeError(
                f"this probe was fitted on the model '{self.model}', not on '{name}': fit one with "
                f"conflictkit fit-probe --model {name}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The probe as JSON can hold it, exactly; weights are float32s in base64."""
        told = {name: getattr(self, name) for name in _FIELDS[2:]}
        return {**told, "about": dict(self.about), "weights": coded(self.weights)}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """A probe from what `to_dict` returned.

        Raises:
            ProbeError: an unknown or missing field, or a bad value.
        """
        _HEADER.fields("probe", data, (*_FIELDS[2:], "weights"))
        weights = decoded(data["weights"]) if isinstance(data["weights"], str) else None
        if weights is None:
            raise ProbeError("weights must be finite float32s in base64")
        return cls(weights=weights, **{name: data[name] for name in _FIELDS[2:]})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, in one move; what is no tensor is JSON in its header.

        Raises:
            ProbeError: the file cannot be written.
        """
        from safetensors.torch import save

        told = {name: getattr(self, name) for name in _FIELDS[2:]}
        text = json.dumps({"format": FORMAT, "version": VERSION, **told}, allow_nan=False)
        try:
            data = save({"weights": self.weights}, metadata={"conflictkit": text})
            write_whole(Path(path), data)
        except (OSError, ValueError) as error:
            raise ProbeError(f"cannot write the probe {os.fspath(path)!r}: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a probe; nothing in the file is ever executed.

        Raises:
            ProbeError: no regular file, no safetensors file, or no probe; the message says why.
        """
        from safetensors import SafetensorError, safe_open

        try:
            if not Path(path).is_file():
                raise ProbeError("there is no such file")
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("conflictkit")
                if text is None or list(file.keys()) != ["weights"]:
                    raise ProbeError("it holds something else")
                if file.get_slice("weights").get_dtype() != "F32":
                    raise ProbeError("its weights are not float32")
                weights = file.get_tensor("weights")
            return cls._of(_HEADER.parse(text.encode()), weights)
        except ProbeError as error:
            raise ProbeError(f"probe {os.fspath(path)!r}: {error}") from error
        except (OSError, ValueError, SafetensorError) as error:
            raise ProbeError(f"probe {os.fspath(path)!r} cannot be read: {error}") from error

    @classmethod
    def _of(cls, told: Any, weights: Tensor) -> Self:
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise ProbeError(f"format must be '{FORMAT}'")
        if told.get("version") != VERSION or isinstance(told["version"], bool):
            raise ProbeError(
                f"version {told.get('version')!r} cannot be read: this release knows 1"
            )
        _HEADER.fields("it", told, _FIELDS)
        return cls(weights=weights, **{name: told[name] for name in _FIELDS[2:]})


def coded(vector: Any) -> str:
    """`[n]` float32s as text: base64, without padding."""
    data = np.asarray(vector, dtype="<f4").tobytes()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decoded(text: str) -> Tensor | None:
    """`[n]` float32s from text; None: those are none, or not finite."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        found = np.frombuffer(data, dtype="<f4")
    except (binascii.Error, ValueError):
        return None
    if not found.size or not np.isfinite(found).all():
        return None
    return torch.from_numpy(found.astype(np.float32))


def fit(
    values: Tensor,
    labels: Tensor,
    *,
    penalty: str = "l2",
    strength: float = 1.0,
    optimiser: str = "scikit-learn",
    seed: int = 0,
) -> tuple[Tensor, float]:
    """Weights and bias of a probe.

    Args:
        values: `[rows, width]` activations.
        labels: `[rows]` bool, at least one of each.
        penalty: `l2` or `l1`; the paper's is always `l1`.
        strength: of the penalty: scikit-learn's `1 / C` on standardised activations, or what the
            paper's lambda (6e-4) is multiplied by.
        optimiser: `scikit-learn`, or `paper` (20 epochs of Adam on the activations as they are).
        seed: of the paper's first weights and batches.

    Returns:
        `[width]` float32 and the bias, for activations as they are.

    Raises:
        InvalidParameterError: a value that does not do, or labels of one kind.
        UnsupportedError: scikit-learn is missing.
    """
    for name, value, known in (
        ("penalty", penalty, PENALTIES),
        ("optimiser", optimiser, OPTIMISERS),
    ):
        if value not in known:
            raise unknown_name(f"{name} of a probe", str(value), known)
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not strength > 0:
        raise InvalidParameterError(f"strength must be a number above 0, not {strength!r}")
    values, labels = values.float().cpu(), labels.bool().cpu()
    if values.dim() != 2 or labels.shape != values.shape[:1]:
        raise InvalidParameterError("values are [rows, width], labels [rows]")
    if not values.isfinite().all():
        raise InvalidParameterError("an activation is not finite")
    if bool(labels.all()) or not bool(labels.any()):
        raise InvalidParameterError("a probe needs rows of both kinds")
    if optimiser == "paper":
        return _adam(values, labels, _LAMBDA * strength, seed)
    return _regression(values, labels, penalty, strength)


def _regression(
    values: Tensor, labels: Tensor, penalty: str, strength: float
) -> tuple[Tensor, float]:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UnsupportedError(
            'fitting a probe needs scikit-learn: pip install "conflictkit[probes]"'
        ) from error
    centre, spread = values.double().mean(0), values.double().std(0, correction=0)
    spread = torch.where(spread < 1e-9, 1.0, spread)
    scaled = ((values.double() - centre) / spread).numpy()
    solver = {"l2": "lbfgs", "l1": "saga"}[penalty]
    model = LogisticRegression(
        C=1 / strength,
        l1_ratio=float(penalty == "l1"),
        solver=solver,
        max_iter=5000,
        random_state=0,
    ).fit(scaled, labels.numpy())
    weights = torch.from_numpy(model.coef_[0]) / spread
    return weights.float(), float(model.intercept_[0] - weights @ centre)


def _adam(values: Tensor, labels: Tensor, penalty: float, seed: int) -> tuple[Tensor, float]:
    generator = torch.Generator().manual_seed(seed)
    bound = values.shape[1] ** -0.5  # as torch.nn.Linear begins
    start = torch.empty(values.shape[1] + 1).uniform_(-bound, bound, generator=generator)
    both = start.requires_grad_()
    wanted = labels.float()
    way = torch.optim.Adam([both], lr=_RATE)
    slower = torch.optim.lr_scheduler.ExponentialLR(way, _DECAY)
    with torch.enable_grad():
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(values), generator=generator).split(_BATCH):
                said = values[rows] @ both[:-1] + both[-1]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(said, wanted[rows])
                way.zero_grad()
                (loss + penalty * both.abs().sum()).backward()
                way.step()
            slower.step()
    found = both.detach()
    return found[:-1].clone(), float(found[-1])
