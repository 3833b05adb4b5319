"""Plain decoding: the context stream as it is (the baseline of every comparison).

    score = l_c

Weights (1, 0) at every step, so the logits leave bit for bit as they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.contrast._base import Rule, weights
from conflictkit.types import Mix, State, Step


@dataclass(frozen=True)
class Plain(Rule):
    """Answer from the context stream: `[batch, vocab]` in, the same bits out."""

    name: ClassVar[str] = "plain"
    needs: ClassVar[tuple[str, ...]] = ("context",)

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (1, 0), `[batch, 1]` each."""
        return Mix(*weights(step, 1.0, 0.0))
