"""COIECD, contextual information-entropy constraint decoding (Yuan et al. 2024, arXiv 2402.11893).

    dominant(x) = p_c(x) > max p_c / ratio
    flagged(x)  = dominant(x), if the row has at least two dominant tokens
    score(x)    = (1 + beta) * l_c - beta * l_m      if flagged(x)
                  beta * l_c + (1 - beta) * l_m      otherwise

Weights are per token, `[batch, vocab]`. Defaults beta 1 (unflagged tokens keep l_c), ratio 4. A
row without a flagged token is, at beta 1, plain decoding bit for bit.

The memory entropy of the paper's constraint is a constant of the row and cancels in the softmax
that follows it, so it has no influence on any mask; the constraint is the line above.

Where released code differs (Stacy027/COIECD): it also flags the tail, p_c(x) < ratio * min p_c,
which lets the least likely tokens win against a confident memory; with a -inf in the context
stream it silently turns into CAD(beta); it counts dominant tokens over the whole batch.
`variant="released"` reproduces the first two; the count stays per row, so it equals the released
program at batch size 1 only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from conflictkit.interventions.contrast._base import MAX_WEIGHT, Rule, param
from conflictkit.interventions.contrast._released import VARIANTS
from conflictkit.types import GATE_TOLERANCE, Mix, State, Step


@dataclass(frozen=True)
class COIECD(Rule):
    """Contrast only among the tokens that the context stream finds plausible."""

    name: ClassVar[str] = "coiecd"

    beta: float = param(1.0, low=0, high=MAX_WEIGHT, doc="strength of the contrast")
    ratio: float = param(
        4.0, low=1, high=MAX_WEIGHT, doc="how far below the top a dominant token may lie"
    )
    variant: str = param("mended", choices=VARIANTS, doc="released: also flag the tail")

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights per token, `[batch, vocab]`; scores `dominant`, `flagged` (token counts)."""
        released = self.variant == "released"
        tolerance = 0.0 if released else GATE_TOLERANCE
        logprobs, reach = step.context, math.log(self.ratio)
        dominant = logprobs > logprobs.amax(-1, keepdim=True) - reach + tolerance
        count = dominant.sum(-1, keepdim=True)
        flagged = dominant & (count > 1)
        if released:
            least = logprobs.masked_fill(~step.allowed, torch.inf).amin(-1, keepdim=True)
            flagged = flagged | (logprobs < least + reach)
            flagged = flagged | ~step.allowed.all(-1, keepdim=True)
        flagged = flagged & step.allowed
        mark = flagged.float()
        return Mix(
            self.beta + mark,
            (1.0 - self.beta) - mark,
            scores={"dominant": count.squeeze(-1).float(), "flagged": mark.sum(-1)},
        )
