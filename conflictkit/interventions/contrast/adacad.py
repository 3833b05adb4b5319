"""AdaCAD, adaptive context-aware decoding (Wang et al. 2024, arXiv 2409.07394).

    alpha_t = max(JSD(p_c, p_m), threshold)
    score   = (1 + alpha_t) * l_c - alpha_t * l_m

JSD in nats, so alpha_t lies in [0, ln 2] unless `threshold` lifts it. Weights
(1 + alpha_t, -alpha_t) per row and step, `[batch, 1]` each. Default threshold 0 (question
answering); the paper's summarisation runs use 0.3. It is a floor at every step, not a gate.

Where released code differs (HanNight/AdaCAD): the float32 filter of CAD (see `cad`); the JSD of a
batch is averaged into one alpha for all rows; probabilities are clamped to 1e-9 without
renormalising as soon as one of them is 0, which can inflate the JSD. Here the JSD is per row,
float32 and unclamped, and equal rows are exactly 0. `variant="released"` reproduces the filter
and the clamps, row by row (the released program refuses batches anyway).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from conflictkit.detectors.divergence import jsd
from conflictkit.interventions.contrast._base import MAX_WEIGHT, Rule, param
from conflictkit.interventions.contrast._released import VARIANTS, filtered, raw_logits
from conflictkit.types import Mix, State, Step


@dataclass(frozen=True)
class AdaCAD(Rule):
    """Amplify what the context adds to memory by as much as the streams diverge."""

    name: ClassVar[str] = "adacad"

    threshold: float = param(0.0, low=0, high=MAX_WEIGHT, doc="least alpha at every step")
    variant: str = param(
        "mended", choices=VARIANTS, doc="released: keep the float32 filter bug and the clamps"
    )

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (1 + alpha_t, -alpha_t), `[batch, 1]` each; scores `jsd`, `alpha`."""
        released = self.variant == "released"
        divergence = _released_jsd(step) if released else jsd(step.context, step.memory)
        alpha = divergence.clamp(min=self.threshold)
        context_weight, memory_weight = (1.0 + alpha).unsqueeze(-1), -alpha.unsqueeze(-1)
        bias = None
        if released:
            context_weight, memory_weight, bias = filtered(step, context_weight, memory_weight)
        scores = {"jsd": divergence, "alpha": alpha}
        return Mix(context_weight, memory_weight, bias=bias, scores=scores)


def _released_jsd(step: Step) -> Tensor:
    """JSD as the released code clamps it, `[batch]`."""
    p_c = raw_logits(step, "context").softmax(-1)
    p_m = raw_logits(step, "memory").softmax(-1)
    middle = _clamp_rows_with_zero(0.5 * (p_c + p_m)).log()
    p_c, p_m = _clamp_rows_with_zero(p_c), _clamp_rows_with_zero(p_m)
    terms = p_c * (p_c.log() - middle) + p_m * (p_m.log() - middle)
    return 0.5 * terms.sum(-1)


def _clamp_rows_with_zero(values: Tensor) -> Tensor:
    has_zero = (values == 0).any(-1, keepdim=True)
    return values.clamp(min=1e-9).where(has_zero, values)
