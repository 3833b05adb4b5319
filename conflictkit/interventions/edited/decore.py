"""DeCoRe (Gema et al. 2024, arXiv 2410.18860): contrast with retrieval heads masked.

The reference stream reads the same prompt, but from its last token on the top `k` retrieval heads
are masked: their queries are zeroed, so they attend evenly to everything before them. What they
retrieve is amplified by as much as the context stream is unsure:

    alpha = H(p_c)                    in nats; at most `cap`, if that is above 0
    score = (1 + alpha) l_c - alpha l_masked

Retrieval heads are those with the largest share of attention on the context (ranking by
attention-mass). The reference takes over the context stream's cache of the prompt instead of
copying it; two forwards per token. Where released code differs: it runs in bfloat16; here scores
are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from conflictkit.detectors.confidence import entropy
from conflictkit.interventions.activations import Edit
from conflictkit.interventions.attention import MaskedHeads
from conflictkit.interventions.contrast import MAX_WEIGHT, param
from conflictkit.interventions.edited._base import EditRule, Prompts, heads_of, heads_param
from conflictkit.interventions.heads import Head
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.types import Mix, State, Step


@dataclass(frozen=True)
class DeCoRe(EditRule):
    """Amplify what retrieval heads bring, by the context stream's entropy."""

    name: ClassVar[str] = "decore"
    needs: ClassVar[tuple[str, ...]] = ("context", "masked")
    ranked_by: ClassVar[str] = "attention-mass"

    k: int = param(5, low=1, high=1000, doc="how many retrieval heads to mask, if none are named")
    cap: float = param(0.0, low=0, high=MAX_WEIGHT, doc="largest alpha; 0: no bound")
    heads: str = heads_param("heads to mask")

    def choose(self, ranking: HeadRanking) -> Mapping[str, Sequence[Head]]:
        """The `k` heads that look most at the context."""
        return {"heads": ranking.top("context", self.k)}

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """Masks heads in the stream `masked`; the strength is the contrast's."""
        heads = heads_of(self.name, self.heads)
        return {"masked": [MaskedHeads(heads, positions="decoding")]}

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (1 + alpha, -alpha), `[batch, 1]` each; scores `alpha`."""
        alpha = entropy(step.context)
        if self.cap > 0:
            alpha = torch.clamp(alpha, max=self.cap)
        weight = alpha.unsqueeze(-1)
        reference = step.logprobs["masked"]
        return Mix(1 + weight, -weight, reference=reference, scores={"alpha": alpha})
