"""PH3 (Jin et al. 2024, Findings of ACL, arXiv 2402.18154): prune the heads of the other source.

Path patching to the logits finds which heads raise the memory answer and which the context answer
(`conflictkit.mechanics.patching`). To favour one source the top `k` heads of the other are pruned,
at every position and step, in one ordinary pass:

    o_{l,h} <- 0

The paper picks k on validation questions from {1, 3, 5, 7, 9, 15}; its scores' exact corruption is
not published, ours is documented where they are made. One forward per token.
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
class PH3(EditRule):
    """Prune the heads that carry the source that is not preferred."""

    name: ClassVar[str] = "ph3"
    ranked_by: ClassVar[str] = "path-patching"
    also_by: ClassVar[tuple[str, ...]] = ("path-patching-exact",)

    prefer: str = param("context", choices=SOURCES, doc="source to favour")
    k: int = param(3, low=1, high=1000, doc="how many heads of the other source, if none are named")
    heads: str = heads_param("heads to prune")

    def choose(self, ranking: HeadRanking) -> Mapping[str, Sequence[Head]]:
        """The `k` heads that carry most of the other source."""
        other = "memory" if self.prefer == "context" else "context"
        return {"heads": ranking.top(other, self.k)}

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """Scales by 1 - strength in the edited stream."""
        scales = dict.fromkeys(heads_of(self.name, self.heads), 1 - strength)
        return {"edited": [HeadScale(scales)]}
