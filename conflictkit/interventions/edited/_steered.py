"""What methods share that are fitted to representations: their data and their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from conflictkit.errors import InvalidParameterError
from conflictkit.interventions.activations import Edit
from conflictkit.interventions.contrast import param
from conflictkit.interventions.directions import DirectionAdd, Directions
from conflictkit.interventions.edited._base import SOURCES, EditRule, Prompts
from conflictkit.interventions.places import Positions
from conflictkit.interventions.ranking import HeadRanking

PLACES: Mapping[str, Positions] = {"last_prompt": "last", "all": None, "generated": "decoding"}
"""What `positions` may say: the prompt's last position; everywhere; where the answer is predicted,
which are the last position and all behind it."""


@dataclass(frozen=True)
class SteeredRule(EditRule):
    """A rule whose data (`lists`) come from a fit; a policy file holds them."""

    by_name: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super(EditRule, self).__post_init__()

    @classmethod
    def fits(cls, ranking: HeadRanking) -> bool:
        """No ranking of heads does."""
        return False

    def taking(self, fitted: EditRule) -> Self:
        """The same with the data of a fitted rule of this method."""
        return replace(self, **{name: getattr(fitted, name) for name in self.lists})

    def checked(self) -> Self:
        """Itself, if it was fitted.

        Raises:
            InvalidParameterError: it was not; the message says how to fit it.
        """
        if self.is_settled:
            return self
        raise InvalidParameterError(
            f"{self.name} was not fitted to this model. Fit it (conflictkit fit-steering --model "
            f"MODEL --cases FILE --method {self.name} --out {self.name}.json) and pass the file "
            f"(--policy {self.name}.json)"
        )


class AlongDirections(SteeredRule):
    """A rule that adds fitted directions; subclasses have parameters `positions`, `directions`."""

    lists: ClassVar[tuple[str, ...]] = ("directions",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._known

    @property
    def _known(self) -> Directions | None:
        told = getattr(self, "directions")  # noqa: B009  # a field of the subclass
        return Directions.read(told) if told else None

    def _added(self, amount: float) -> Mapping[str, Sequence[Edit]]:
        """The directions times `amount`, in the edited stream."""
        known: Any = self._known
        where = PLACES[getattr(self, "positions")]  # noqa: B009
        return {"edited": [DirectionAdd(known, amount, positions=where)]}


@dataclass(frozen=True)
class DirectionRule(AlongDirections):
    """Add a direction that points from memory to the context, or take it away.

    Directions are fitted so long that alpha = 1 changes the next token's distribution by the same
    KL divergence for every such method (`conflictkit.mechanics.steering`).
    """

    prefer: str = param("context", choices=SOURCES, doc="source to favour")
    alpha: float = param(1.0, low=-1000, high=1000, doc="what the directions are multiplied by")
    positions: str = param("generated", choices=tuple(PLACES), doc="where they are added")
    directions: str = param("", doc="layer:float32s in base64; empty: from a fit")

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """`h_l + s alpha v_l` in the edited stream; minus where memory is preferred."""
        sign = 1.0 if self.prefer == "context" else -1.0
        return self._added(sign * self.alpha * strength)
