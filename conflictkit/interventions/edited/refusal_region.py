"""Refusal-region editing (Liu et al. 2024, arXiv 2409.16913, RoleRef): move a prompt to where the
model declines.

    d_i = h_l(answerable_i) - h_l(refused_i)                       pairs of prompts
    v_l = mean of d in the f * width dimensions of least variance, 0 elsewhere
    h_l <- h_l - alpha v_l                                         every layer, position and token

Paper: 50 pairs, f = 0.5, alpha = 0.1. Released code reads the stream before block l and adds it
behind block l; the fit's `variant="released"` does the same, by default a layer's own output is
read (`conflictkit.mechanics.steering`). With a gate (`when="jsd > 0.3"`) the model declines where
its sources conflict. One forward per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.activations import Edit
from conflictkit.interventions.contrast import param
from conflictkit.interventions.edited._base import Prompts
from conflictkit.interventions.edited._steered import PLACES, AlongDirections


@dataclass(frozen=True)
class RefusalRegion(AlongDirections):
    """Decline: move the stream away from answerable prompts."""

    name: ClassVar[str] = "refusal-region"

    alpha: float = param(0.1, low=-1000, high=1000, doc="how far, in mean differences")
    positions: str = param("all", choices=tuple(PLACES), doc="where")
    directions: str = param("", doc="layer:float32s in base64; empty: from a fit")

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """`h_l - s alpha v_l` in the edited stream."""
        return self._added(-self.alpha * strength)
