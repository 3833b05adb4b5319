"""ARR, adaptive regime routing (Jiang et al. 2026, arXiv 2606.10298).

    tau   = 1 + JSD(p_c, p_m) / ln 2      if max p_c > max p_m
            1 - JSD(p_c, p_m) / ln 2      otherwise
    score = tau * l_c + (1 - tau) * l_m

Extrapolates beyond the context where the context stream is the surer one, interpolates towards
memory where it is not. tau lies in [0, 2]; weights `[batch, 1]` each. No parameters. Equal streams
have JSD exactly 0 and are left alone bit for bit.

Where released code differs (keith-Jiang/conflict-aware-decoding): here confidences within 1e-5
of each other count as equal, so that rounding cannot choose the branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from conflictkit.detectors.confidence import confidence
from conflictkit.detectors.divergence import LN2, jsd
from conflictkit.interventions.contrast._base import Rule
from conflictkit.types import GATE_TOLERANCE, Mix, State, Step


@dataclass(frozen=True)
class ARR(Rule):
    """Trust the surer stream, by as much as the streams diverge."""

    name: ClassVar[str] = "arr"

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (tau, 1 - tau), `[batch, 1]` each; scores `jsd`, `tau`."""
        divergence = jsd(step.context, step.memory)
        share = divergence / LN2
        surer = confidence(step.context) > confidence(step.memory) + GATE_TOLERANCE
        tau = torch.where(surer, 1.0 + share, 1.0 - share)
        scores = {"jsd": divergence, "tau": tau}
        return Mix(tau.unsqueeze(-1), (1.0 - tau).unsqueeze(-1), scores=scores)
