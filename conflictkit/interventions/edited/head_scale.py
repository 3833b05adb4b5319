"""Head scaling (Yu, Merullo and Pavlick 2023, arXiv 2310.15910): turn one head up or down.

Head attribution finds the head whose output at the last position speaks most for one of the two
answers, A(l, h) = (U_m - U_c) . o_{l,h} (positive: memory head, negative: context head). Its value
vectors are multiplied by alpha at every position, which multiplies what it puts out:

    o_{l,h} <- alpha * o_{l,h}

alpha is tuned on held-in questions, negative values included. `source` says which kind of head is
taken, `k` how many of them (the paper: one). Turning the context head up or the memory head down
favours the context. One forward per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.activations import Edit
from conflictkit.interventions.contrast import param
from conflictkit.interventions.edited._base import (
    SOURCES,
    EditRule,
    Prompts,
    heads_of,
    heads_param,
)
from conflictkit.interventions.heads import Head, HeadScale
from conflictkit.interventions.ranking import HeadRanking


@dataclass(frozen=True)
class HeadScaling(EditRule):
    """Multiply what the head that speaks most for one source puts out."""

    name: ClassVar[str] = "head-scale"
    ranked_by: ClassVar[str] = "attribution"

    alpha: float = param(4.0, low=-100, high=100, doc="factor; 1 changes nothing, 0 prunes")
    source: str = param("context", choices=SOURCES, doc="which heads to take from a ranking")
    k: int = param(1, low=1, high=1000, doc="how many of them, if none are named")
    heads: str = heads_param("heads to scale")

    def choose(self, ranking: HeadRanking) -> Mapping[str, Sequence[Head]]:
        """The `k` heads that speak most for `source`."""
        return {"heads": ranking.top(self.source, self.k)}

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """Scales by 1 + strength (alpha - 1) in the edited stream."""
        factor = 1 + strength * (self.alpha - 1)
        return {"edited": [HeadScale(dict.fromkeys(heads_of(self.name, self.heads), factor))]}
