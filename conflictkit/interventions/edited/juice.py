"""JuICE (Li, Chen and Tong 2025, ICML): heads are enlarged and suppressed by their clean output.

A head may carry both sources at once, so the heads taken are those whose effect has the same sign
in clean, substituted and coherent prompts (`conflictkit.mechanics.juice`), and what is added is
what they put out in an unedited run of the same tokens:

    run 1: o_{l,h}(clean), nothing changed
    run 2: attention output + a * o_{l,h}(clean),  a = +enlarge or -suppress
    next token from run 2                                                (`juice`)

`juice-single` adds a * o_{l,h} of the same run, so it scales by 1 + a; the paper's JRO.

The paper runs both from scratch at every token. Here each keeps its own cache and adds at the new
position, which is the same: two forwards per token. Where released code differs: a head in both
lists is suppressed twice there (here a = enlarge - suppress), and its single run swaps the signs
of heads that share a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.activations import Edit
from conflictkit.interventions.contrast import param
from conflictkit.interventions.edited._base import EditRule, Prompts, heads_of, heads_param
from conflictkit.interventions.heads import Head, HeadAdd, HeadScale, HeadTap
from conflictkit.interventions.ranking import HeadRanking


@dataclass(frozen=True)
class JuiceSingle(EditRule):
    """Scale the heads that help memory up and those that harm it down, in one run."""

    name: ClassVar[str] = "juice-single"
    ranked_by: ClassVar[str] = "juice"
    also_by: ClassVar[tuple[str, ...]] = ("juice-gentle",)
    lists: ClassVar[tuple[str, ...]] = ("enlarge_heads", "suppress_heads")

    enlarge: float = param(2.0, low=0, high=100, doc="added share of the heads to enlarge")
    suppress: float = param(1.0, low=0, high=100, doc="share taken from the heads to suppress")
    k: int = param(5, low=1, high=1000, doc="how many heads of each list, if none are named")
    enlarge_heads: str = heads_param("heads to enlarge")
    suppress_heads: str = heads_param("heads to suppress")

    def choose(self, ranking: HeadRanking) -> Mapping[str, Sequence[Head]]:
        """The first `k` heads of both lists."""
        return {
            "enlarge_heads": (ranking.enlarge or ())[: self.k],
            "suppress_heads": (ranking.suppress or ())[: self.k],
        }

    def amounts(self, strength: float) -> dict[Head, float]:
        """Head -> a."""
        found: dict[Head, float] = {}
        for text, amount in (
            (self.enlarge_heads, self.enlarge),
            (self.suppress_heads, -self.suppress),
        ):
            for head in heads_of(self.name, text):
                found[head] = found.get(head, 0.0) + strength * amount
        return found

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """Scales by 1 + a in the edited stream."""
        scales = {head: 1 + amount for head, amount in self.amounts(strength).items()}
        return {"edited": [HeadScale(scales)]}


@dataclass(frozen=True)
class Juice(JuiceSingle):
    """Add to heads a share of what they put out in an unedited run of the same tokens."""

    name: ClassVar[str] = "juice"
    needs: ClassVar[tuple[str, ...]] = ("context", "edited")

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """Records in the context stream, adds a of it in the edited stream."""
        amounts = self.amounts(strength)
        tap = HeadTap(tuple(amounts))
        return {"context": [tap], "edited": [HeadAdd(amounts, tap)]}
