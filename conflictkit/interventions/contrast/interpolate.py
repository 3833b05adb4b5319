"""Interpolation: a fixed blend of the two streams.

    score = w * l_c + (1 - w) * l_m

Not a paper: the simplest dial between the two sources, and the reference point for the rules that
extrapolate (CAD is the same line continued beyond w = 1). `weight` 1 is plain decoding bit for
bit, 0 is memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.contrast._base import Rule, param, weights
from conflictkit.types import Mix, State, Step


@dataclass(frozen=True)
class Interpolate(Rule):
    """Blend log-probabilities `[batch, vocab]` with fixed weights (w, 1 - w)."""

    name: ClassVar[str] = "interpolate"

    weight: float = param(0.75, low=0, high=1, doc="share of the context stream; 1: plain")

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (w, 1 - w), `[batch, 1]` each."""
        return Mix(*weights(step, self.weight, 1.0 - self.weight))
