"""CAA (Rimsky et al. 2024, ACL, arXiv 2312.06681): add the mean difference of two kinds of runs.

    v_l = mean(h_l | the answer follows the context) - mean(h_l | it follows memory)
    h_l <- h_l + alpha v_l

h_l is the stream behind layer l at the prompt's last position, over conflicts that the model
answers by itself (`conflictkit.mechanics.steering`). The paper's pairs are two answers to one
question; a conflict has one answer, so the groups are the conflicts that went either way. One
forward per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.edited._steered import DirectionRule


@dataclass(frozen=True)
class CAA(DirectionRule):
    """Steer by the mean difference."""

    name: ClassVar[str] = "caa"
