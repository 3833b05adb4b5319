"""ITI-like steering (Li et al. 2023, NeurIPS, arXiv 2306.03341): add the weights of a probe.

    v_l = sigma_l w_l / |w_l|        w_l: a probe that tells who wins; sigma_l: spread along it
    h_l <- h_l + alpha v_l

The paper moves the heads that probe best; here, as in SpARE's comparison, the stream behind layers
is moved, where CAA and RepE move it. One forward per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.edited._steered import DirectionRule


@dataclass(frozen=True)
class ITI(DirectionRule):
    """Steer along a probe's weights."""

    name: ClassVar[str] = "iti"
