"""Rankings of heads as data: how much each carries context and memory, in a file that runs no code.

>>> import tempfile
>>> from conflictkit.interventions.ranking import HeadRanking
>>> ranking = HeadRanking(
...     by="path-patching", model="atlas", fingerprint="0" * 64, cases=2, cases_hash="0" * 64,
...     scores={"context": [[0.3, -0.1]], "memory": [[0.2, 0.4]]},
... )
>>> ranking.top("context", 5), ranking.top("memory", 1)
(((0, 0),), ((0, 1),))
>>> path = tempfile.mkdtemp() + "/heads.json"
>>> ranking.write(path)
>>> HeadRanking.read(path) == ranking
True

The file is made by `conflictkit rank-heads` or `conflictkit.mechanics.ranking.rank`, for methods
that edit heads. It belongs to the weights that it was made from, and `check` refuses others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from conflictkit import __version__
from conflictkit.errors import InvalidParameterError, RankingError
from conflictkit.files import is_digest, short, write_whole
from conflictkit.interventions import _headfile as strict
from conflictkit.interventions._headfile import KINDS, Directions, Table
from conflictkit.interventions.heads import Head

__all__ = ["FORMAT", "KINDS", "LISTS", "VERSION", "HeadRanking", "Table"]

FORMAT, VERSION = "conflictkit-heads", 1
LISTS = ("enlarge", "suppress")


@dataclass(frozen=True)
class HeadRanking:
    """How much each head of one model carries context and memory.

    Attributes:
        by: the analysis that made it: `attribution`, `path-patching`, ...
        model: what the model was loaded by.
        fingerprint: `conflictkit.models.fingerprint` of its weights.
        cases: number of cases that the scores are means over.
        cases_hash: SHA-256 of the cases that were given, as runs of `evaluate` name them.
        scores: `context` and `memory` -> `[layers, heads]`, larger = carries more of it. An
            analysis that tells only one of them has only that one.
        errors: the same shapes: standard errors of the means over cases; empty: unknown.
        enlarge, suppress: JuICE's lists, best first; None: another analysis.
        directions: `[layers, heads, head_dim]` focus directions; None: another analysis.
        dropped: why cases were left out -> how many.
        seed: of whatever was drawn.
        version: of the conflictkit that made it.

    Raises:
        RankingError: a value of the wrong kind, shape or size.
    """

    by: str
    model: str
    fingerprint: str
    cases: int
    cases_hash: str
    scores: Mapping[str, Table | Sequence[Sequence[float]]]
    errors: Mapping[str, Table | Sequence[Sequence[float]]] = field(default_factory=dict)
    enlarge: tuple[Head, ...] | None = None
    suppress: tuple[Head, ...] | None = None
    directions: Directions | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    version: str = __version__

    FIELDS: ClassVar[tuple[str, ...]] = (
        "format", "version", "conflictkit", "by", "model", "layers", "heads", "cases", "seed",
        "scores", "errors", "enlarge", "suppress", "directions",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("by", "model", "version"):
            if not strict.is_text(getattr(self, name)):
                raise RankingError(f"{name} must be text")
        for name in ("fingerprint", "cases_hash"):
            if not is_digest(getattr(self, name)):
                raise RankingError(f"{name} must be 64 hexadecimal digits")
        strict.whole("cases", self.cases, least=1)
        strict.whole("seed", self.seed)
        strict.FILE.fields("dropped", self.dropped)
        for reason, count in self.dropped.items():
            if not strict.is_text(reason):
                raise RankingError("a reason in dropped must be text")
            strict.whole(f"dropped: {reason[:40]}", count, least=1)
        object.__setattr__(self, "dropped", dict(self.dropped))
        self._set_tables()
        for name in LISTS:
            listed = getattr(self, name)
            if listed is not None:
                object.__setattr__(self, name, strict.heads(name, listed, self.layers, self.heads))

        if self.directions is not None:
            checked = strict.directions(self.directions, self.layers, self.heads)
            object.__setattr__(self, "directions", checked)

    def _set_tables(self) -> None:
        strict.FILE.fields("scores", self.scores)
        strict.FILE.fields("errors", self.errors)
        tables = {name: strict.tables(name, getattr(self, name)) for name in ("scores", "errors")}
        if not tables["scores"]:
            raise RankingError(f"scores must hold {' or '.join(KINDS)}")
        if not tables["errors"].keys() <= tables["scores"].keys():
            raise RankingError("errors hold a table that scores lack")
        shapes = {
            (len(table), len(table[0])) for both in tables.values() for table in both.values()
        }
        if len(shapes) > 1:
            raise RankingError(f"tables of different shapes: {sorted(shapes)}")
        if any(one < 0 for table in tables["errors"].values() for row in table for one in row):
            raise RankingError("a standard error is negative")
        for name, value in tables.items():
            object.__setattr__(self, name, value)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(next(iter(self.scores.values())))

    @property
    def heads(self) -> int:
        """Number of heads in a layer."""
        return len(next(iter(self.scores.values()))[0])

    def table(self, kind: str) -> Tensor:
        """`[layers, heads]` float64 scores of `context` or `memory`.

        Raises:
            RankingError: this analysis does not tell them.
        """
        return torch.tensor(self._kind(kind), dtype=torch.float64)

    def top(self, kind: str, k: int, *, positive: bool = True) -> tuple[Head, ...]:
        """The best heads, best first; of equal ones the first by layer and head.

        Args:
            kind: `context` or `memory`; `enlarge` or `suppress` for the start of JuICE's lists.
            k: how many; fewer come back where there are no more.
            positive: only heads with a score above 0.

        Raises:
            InvalidParameterError: k is no whole number from 0.
            RankingError: this ranking has no such scores or list.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise InvalidParameterError(f"k must be a whole number from 0, not {k!r}")
        if kind in LISTS:
            listed = getattr(self, kind)
            if listed is None:
                raise RankingError(
                    f"this ranking, by {self.by}, has no list to {kind}: make one with --by juice"
                )
            return listed[:k]
        found = [
            (score, (layer, head))
            for layer, row in enumerate(self._kind(kind))
            for head, score in enumerate(row)
            if score > 0 or not positive
        ]
        return tuple(head for _, head in sorted(found, key=lambda one: (-one[0], one[1]))[:k])

    def direction(self, head: Head) -> tuple[float, ...]:
        """`[head_dim]` focus direction of a head that the ranking has.

        Raises:
            RankingError: this ranking has no directions.
        """
        if self.directions is None:
            raise RankingError(
                f"this ranking, by {self.by}, has no directions: make one with --by focus"
            )
        return self.directions[head[0]][head[1]]

    def _kind(self, kind: str) -> Any:
        if kind not in self.scores:
            there = ", ".join([*self.scores, *(one for one in LISTS if getattr(self, one))])
            raise RankingError(
                f"this ranking, by {self.by}, has no scores of {kind!r}: it has {there}"
            )
        return self.scores[kind]

    def check(self, name: str, fingerprint: str) -> None:
        """Refuse a model that the ranking was not made from.

        Args:
            name: what the model was loaded by.
            fingerprint: `conflictkit.models.fingerprint` of its weights.

        Raises:
            RankingError: other weights.
        """
        if self.fingerprint != fingerprint:
            raise RankingError(
                f"these heads were ranked in other weights (model '{self.model}', "
                f"{self.fingerprint[:12]}) than those of '{name}' ({fingerprint[:12]}): rank them "
                f"again with conflictkit rank-heads --model {name}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The ranking as JSON can hold it, exactly."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "conflictkit": self.version,
            "by": self.by,
            "model": {"name": self.model, "fingerprint": self.fingerprint},
            "layers": self.layers,
            "heads": self.heads,
            "cases": {"count": self.cases, "hash": self.cases_hash, "dropped": dict(self.dropped)},
            "seed": self.seed,
            "scores": {kind: [list(row) for row in rows] for kind, rows in self.scores.items()},
            "errors": {kind: [list(row) for row in rows] for kind, rows in self.errors.items()},
            "enlarge": None if self.enlarge is None else [list(head) for head in self.enlarge],
            "suppress": None if self.suppress is None else [list(head) for head in self.suppress],
            "directions": None
            if self.directions is None
            else [[list(one) for one in row] for row in self.directions],
        }

    @classmethod
    def from_dict(cls, data: Any) -> HeadRanking:
        """A ranking from what `to_dict` returned; every field is checked, none is ignored.

        Raises:
            RankingError: no ranking, another version, an unknown or missing field or a bad value;
                the message names it.
        """
        # What it is comes first: nothing else about a foreign file is worth saying.
        strict.FILE.fields("a ranking of heads", data)
        if data.get("format") != FORMAT:
            raise RankingError(f"format must be '{FORMAT}'")
        if data.get("version") != VERSION or isinstance(data["version"], bool):
            known = f"this release knows {VERSION}"
            raise RankingError(f"version {short(data.get('version'))} cannot be read: {known}")
        strict.FILE.fields("the file", data, cls.FIELDS)
        tie = strict.FILE.fields("model", data["model"], ("name", "fingerprint"))
        cases = strict.FILE.fields("cases", data["cases"], ("count", "hash", "dropped"))
        for name in LISTS:
            if data[name] is not None and not isinstance(data[name], list):
                raise RankingError(f"{name} must be a list or null")
        made = cls(
            by=data["by"],
            model=tie["name"],
            fingerprint=tie["fingerprint"],
            cases=cases["count"],
            cases_hash=cases["hash"],
            scores=data["scores"],
            errors=data["errors"],
            enlarge=data["enlarge"],
            suppress=data["suppress"],
            directions=data["directions"],
            dropped=cases["dropped"],
            seed=data["seed"],
            version=data["conflictkit"],
        )
        for name in ("layers", "heads"):
            if type(data[name]) is not int or data[name] != getattr(made, name):
                raise RankingError(
                    f"{name} is {short(data[name])}, the tables have {getattr(made, name)}"
                )
        return made

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the ranking as JSON; an old file is replaced in one move, or left as it was.

        Raises:
            RankingError: the file cannot be written.
        """
        text = strict.text(self.to_dict())
        strict.FILE.check(text)
        try:
            write_whole(Path(path), text)
        except (OSError, ValueError) as error:
            raise RankingError(f"cannot write the ranking {os.fspath(path)!r}: {error}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> HeadRanking:
        """Read a ranking; nothing in the file is ever executed.

        Raises:
            RankingError: no regular file, too large, not UTF-8 JSON, or no ranking; the message
                names the file and what is wrong.
        """
        try:
            return cls.from_dict(strict.FILE.parse(strict.FILE.contents(path)))
        except RankingError as error:
            raise RankingError(f"ranking {os.fspath(path)!r}: {error}") from error
