"""Closed-book decoding: the memory stream as it is (what the model would say by itself).

    score = l_m

Weights (0, 1) at every step. Where memory is the only stream its logits leave bit for bit; beside
a context stream, tokens that are -inf there stay -inf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.contrast._base import Rule, weights
from conflictkit.types import Mix, State, Step


@dataclass(frozen=True)
class Memory(Rule):
    """Answer from the memory stream: `[batch, vocab]`."""

    name: ClassVar[str] = "memory"
    needs: ClassVar[tuple[str, ...]] = ("memory",)

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (0, 1), `[batch, 1]` each."""
        return Mix(*weights(step, 0.0, 1.0))
