"""Focus directions (Zhu et al. 2025, arXiv 2503.23306): heads are turned towards the context.

For each head a direction is trained that raises its attention on the context when it is added to
its queries (`conflictkit.mechanics.focus`). The `k` heads that look most at the context while an
answer is written get theirs, everywhere and at every step:

    q_h <- q_h + alpha * d_h

The paper takes 20 heads and alpha = 0.2 or 0.3. Released code turns keys as well, which does
nothing: see `conflictkit.interventions.FocusDirections`. One forward per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from conflictkit.detectors.probe import coded, decoded
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions.activations import Edit
from conflictkit.interventions.attention import FocusDirections
from conflictkit.interventions.contrast import param
from conflictkit.interventions.edited._base import (
    EditRule,
    Prompts,
    heads_of,
    heads_param,
    text_of,
)
from conflictkit.interventions.heads import Head
from conflictkit.interventions.ranking import HeadRanking


@dataclass(frozen=True)
class Focus(EditRule):
    """Turn heads towards the context by directions trained for it."""

    name: ClassVar[str] = "focus"
    ranked_by: ClassVar[str] = "focus"
    lists: ClassVar[tuple[str, ...]] = ("directions",)
    by_name: ClassVar[bool] = False

    alpha: float = param(0.2, low=-100, high=100, doc="what directions are multiplied by")
    k: int = param(20, low=1, high=1000, doc="how many heads to turn, if none are named")
    heads: str = heads_param("heads to turn")
    directions: str = param("", doc="layer.head:float32s in base64; empty: from a ranking")

    def __post_init__(self) -> None:
        super(EditRule, self).__post_init__()
        told = tuple(self._vectors())
        named = heads_of(self.name, self.heads)
        if told and named and set(told) != set(named):
            raise InvalidParameterError(f"{self.name}: heads and directions name different heads")
        object.__setattr__(self, "heads", text_of(told or named))

    def choose(self, ranking: HeadRanking) -> Mapping[str, Sequence[Head]]:
        """The `k` heads that look most at the context, unless some are named."""
        named = heads_of(self.name, self.heads)
        for layer, head in named:
            if layer >= ranking.layers or head >= ranking.heads:
                raise InvalidParameterError(f"{self.name}: the ranking has no head {layer}.{head}")
        return {"directions": named or ranking.top("context", self.k)}

    def told_by(self, ranking: HeadRanking) -> Mapping[str, str]:
        """The directions of those heads."""
        found = []
        for head in self.choose(ranking)["directions"]:
            found.append(f"{text_of([head])}:{coded(ranking.direction(head))}")
        return {"directions": "+".join(found)}

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """Directions in the edited stream, times alpha and strength."""
        return {"edited": [FocusDirections(self._vectors(), self.alpha * strength)]}

    def _vectors(self) -> dict[Head, Tensor]:
        """Head -> `[head_dim]`."""
        found: dict[Head, Tensor] = {}
        for part in self.directions.split("+") if self.directions else ():
            name, _, data = part.partition(":")
            vector, heads = decoded(data), heads_of(self.name, name)
            if vector is None or len(heads) != 1 or heads[0] in found:
                raise InvalidParameterError(
                    f"{self.name}: cannot read the direction {part[:40]!r}: they come from a "
                    "ranking by focus"
                )
            found[heads[0]] = vector
        return found
