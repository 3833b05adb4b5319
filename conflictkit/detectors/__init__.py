"""Conflict scores of one decoding step, by name.

>>> import torch
>>> from conflictkit import detectors
>>> from conflictkit.types import Step
>>> step = Step.from_logits({"context": torch.tensor([[4.0, 0.0]]),
...                          "memory": torch.tensor([[0.0, 4.0]])})
>>> detectors.get("top-disagreement")(step)
tensor([1.])

A detector takes a `Step` and returns `[batch]` float32; nothing in it waits for the device.
Rows that the step marks as invalid have no meaningful score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from conflictkit.detectors import confidence, divergence
from conflictkit.errors import unknown_name
from conflictkit.types import Step

__all__ = ["Detector", "get", "names"]

_BOTH = ("context", "memory")


@dataclass(frozen=True)
class Detector:
    """A named conflict score.

    Attributes:
        name: what the registry knows it by.
        needs: names of the streams a step must hold.
        function: `Step` -> `[batch]` float32.
        summary: one line: what it measures, its range, and what a high value means.
        source: where it was published, or "" if nowhere in particular.
        sign: the side on which conflict lies, `>` (high) or `<` (low).
    """

    name: str
    needs: tuple[str, ...]
    function: Callable[[Step], Tensor]
    summary: str
    source: str = ""
    sign: str = ">"

    def __call__(self, step: Step) -> Tensor:
        """Score every row of `step`: `[batch]` float32."""
        return self.function(step)


def _table(*detectors: Detector) -> dict[str, Detector]:
    table = {detector.name: detector for detector in detectors}
    if len(table) < len(detectors):
        raise ValueError("two detectors share a name")
    return table


_DETECTORS = _table(
    Detector(
        "jsd",
        _BOTH,
        lambda step: divergence.jsd(step.context, step.memory),
        "Jensen-Shannon divergence of the two streams, 0 to ln 2; high: they disagree",
        "AdaCAD, arXiv 2409.07394",
    ),
    Detector(
        "kl-context-memory",
        _BOTH,
        lambda step: divergence.kl(step.context, step.memory),
        "KL(context || memory) in nats, at least 0; high: the context says what memory excludes",
    ),
    Detector(
        "kl-memory-context",
        _BOTH,
        lambda step: divergence.kl(step.memory, step.context),
        "KL(memory || context) in nats, at least 0; high: memory says what the context excludes",
    ),
    Detector(
        "total-variation",
        _BOTH,
        lambda step: divergence.total_variation(step.context, step.memory),
        "total variation distance of the two streams, 0 to 1; high: they disagree",
    ),
    Detector(
        "context-entropy",
        ("context",),
        lambda step: confidence.entropy(step.context),
        "entropy of the context stream in nats; high: unsure although it read the context",
    ),
    Detector(
        "memory-entropy",
        ("memory",),
        lambda step: confidence.entropy(step.memory),
        "entropy of the memory stream in nats; high: the model does not know",
    ),
    Detector(
        "confidence-gain",
        _BOTH,
        lambda step: confidence.confidence_gain(step.context, step.memory),
        "H_m - H_c in nats; NEGATIVE: the context made the model less sure, a sign of conflict",
        "CK-PLUG, arXiv 2503.15888",
        "<",
    ),
    Detector(
        "confidence-gain-kept",
        _BOTH,
        lambda step: confidence.kept_confidence_gain(step.context, step.memory),
        "confidence gain over the tokens CK-PLUG keeps; NEGATIVE: a sign of conflict",
        "CK-PLUG, arXiv 2503.15888",
        "<",
    ),
    Detector(
        "context-entropy-kept",
        _BOTH,
        lambda step: confidence.kept_entropies(step.context, step.memory)[0],
        "entropy of the context stream over the tokens CK-PLUG keeps, in nats",
        "CK-PLUG, arXiv 2503.15888",
    ),
    Detector(
        "memory-entropy-kept",
        _BOTH,
        lambda step: confidence.kept_entropies(step.context, step.memory)[1],
        "entropy of the memory stream over the tokens CK-PLUG keeps, in nats",
        "CK-PLUG, arXiv 2503.15888",
    ),
    Detector(
        "context-confidence",
        ("context",),
        lambda step: confidence.confidence(step.context),
        "probability of the context stream's top token, 0 to 1",
        sign="<",
    ),
    Detector(
        "memory-confidence",
        ("memory",),
        lambda step: confidence.confidence(step.memory),
        "probability of the memory stream's top token, 0 to 1; high: the model is sure by itself",
    ),
    Detector(
        "top-disagreement",
        _BOTH,
        lambda step: confidence.top_disagreement(step.context, step.memory),
        "1 where the streams' top tokens differ, else 0",
    ),
)


def get(name: str) -> Detector:
    """The detector called `name`.

    Raises:
        UnknownNameError: no such detector; the message names the nearest one.
    """
    if name not in _DETECTORS:
        raise unknown_name("detector", name, _DETECTORS)
    return _DETECTORS[name]


def names() -> tuple[str, ...]:
    """All names that `get` knows, in the order of the table."""
    return tuple(_DETECTORS)
