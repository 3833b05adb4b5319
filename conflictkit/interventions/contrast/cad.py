"""CAD, context-aware decoding (Shi et al. 2023, arXiv 2305.14739).

    score = (1 + alpha) * l_c - alpha * l_m

Weights (1 + alpha, -alpha) at every step, `[batch, 1]` each. Default alpha 1, the paper's value
for knowledge conflicts (NQ-Swap); its value for summarisation is 0.5. alpha 0 is plain decoding
bit for bit. Classifier-free guidance with scale g is CAD with alpha = g - 1.

Where released code differs (xhan77/context-aware-decoding): each stream first passes a top-p
filter with p = 1 that is meant to be off. Its float32 sum reaches 1 early, so the tail of the
context stream is overwritten with -1000 and the tail of the memory stream with +1000: a confident
memory vetoes every other token and the method emits the memory answer whatever the context says.
`variant="released"` reproduces that; the default leaves the filter out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.contrast._base import MAX_WEIGHT, Rule, param, weights
from conflictkit.interventions.contrast._released import VARIANTS, filtered
from conflictkit.types import Mix, State, Step


@dataclass(frozen=True)
class CAD(Rule):
    """Amplify what the context adds to memory by a fixed amount."""

    name: ClassVar[str] = "cad"

    alpha: float = param(1.0, low=0, high=MAX_WEIGHT, doc="strength of the contrast; 0: plain")
    variant: str = param("mended", choices=VARIANTS, doc="released: keep the float32 filter bug")

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (1 + alpha, -alpha), `[batch, 1]` each; released: per token, plus a bias.

        Score: `alpha`.
        """
        context_weight, memory_weight = weights(step, 1.0 + self.alpha, -self.alpha)
        scores = {"alpha": -memory_weight.squeeze(-1)}
        bias = None
        if self.variant == "released":
            context_weight, memory_weight, bias = filtered(step, context_weight, memory_weight)
        return Mix(context_weight, memory_weight, bias=bias, scores=scores)
