"""Attention steering (PASTA, Zhang et al. 2024, 2311.02262; Wang et al. 2024, 2411.02688).

Heads are made to look at the context: the attention logits of the prompt's tokens outside it lose
log(1 / alpha), before the softmax:

    logit[q, k] += log(alpha)        for prompt tokens k outside the context's span

PASTA steers selected heads with alpha = 0.01; Wang et al. steer every head with 0.9 or 0.95. Which
heads: those that look at the context most (ranking by attention-mass), the top `k` of them, or with
`k=0` every head. alpha above 1 turns the context down. Tokens of the answer are never touched.
Where released code differs, see `conflictkit.interventions.AttentionBias`. One forward per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from conflictkit.errors import InvalidParameterError
from conflictkit.interventions.activations import Edit
from conflictkit.interventions.attention import VARIANTS, AttentionBias
from conflictkit.interventions.contrast import param
from conflictkit.interventions.edited._base import EditRule, Prompts, heads_of, heads_param
from conflictkit.interventions.heads import Head
from conflictkit.interventions.ranking import HeadRanking


@dataclass(frozen=True)
class AttentionSteering(EditRule):
    """Make heads look at the context."""

    name: ClassVar[str] = "attention-steering"
    ranked_by: ClassVar[str] = "attention-mass"

    alpha: float = param(0.01, low=1e-6, high=1e6, doc="weight left to tokens outside the context")
    k: int = param(5, low=0, high=1000, doc="how many heads to steer, if none are named; 0: all")
    heads: str = heads_param("heads to steer")
    variant: str = param("mended", choices=VARIANTS, doc="released: layers compound, if k is 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "released" and self.k != 0:
            raise InvalidParameterError(
                f"{self.name}: the released variant differs only where all heads are steered: k=0"
            )

    @property
    def is_settled(self) -> bool:
        """Whether it knows its heads, or needs none."""
        return self.k == 0 or super().is_settled

    def choose(self, ranking: HeadRanking) -> Mapping[str, Sequence[Head]]:
        """The `k` heads that look most at the context."""
        return {"heads": ranking.top("context", self.k)}

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """Biases in the edited stream, alpha ** strength.

        Raises:
            InvalidParameterError: nobody said where the context stands.
        """
        if prompts.spans is None or prompts.lengths is None:
            raise InvalidParameterError(
                f"{self.name} has to know where each prompt's context stands, and its length: pass "
                "spans= and prompt_lengths="
            )
        heads = heads_of(self.name, self.heads) or None
        # Without a context nothing stands outside it.
        both = zip(prompts.spans, prompts.lengths, strict=True)
        spans = [[span if span[1] > span[0] else (0, length)] for span, length in both]
        alpha = self.alpha**strength
        return {"edited": [AttentionBias(spans, alpha, heads, variant=self.variant)]}
