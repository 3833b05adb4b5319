"""One row of the table: the cells of one method, from sums over subjects.

`minimum` and `harmonic` are computed from the same resampled sums as what they are made of, so
that their intervals know how those move together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from conflictkit.evaluation.metrics import intervals
from conflictkit.evaluation.metrics.catalogue import METRICS
from conflictkit.evaluation.metrics.intervals import Array
from conflictkit.evaluation.metrics.rates import HARMONIC, MINIMUM

FEW = 30
"""Below so many cases or subjects a cell says so."""
_UNSURE = 0.95
"""Share of resamples that must define a metric, else its cell says so."""

Column = Mapping[str, tuple[float, float]]
"""Case id -> numerator and denominator."""


@dataclass(frozen=True)
class Cell:
    """One metric of one method.

    Attributes:
        value: the metric; a share from 0 to 1 where its unit is `%`.
        low, high: 95 % interval; None where there is none, and the note says why.
        n: cases it rests on.
        difference: value minus the baseline's, over the cases that both answered; None for the
            baseline and without one.
        difference_low, difference_high: 95 % interval of the difference.
        p: two-sided, of the paired permutation test that the methods do not differ.
        note: what to know before reading it, "" if nothing.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    note: str = ""


@dataclass(frozen=True)
class _Sums:
    """Numerators and denominators of some metrics, summed over the cases of each subject.

    Attributes:
        names: the metrics that are quotients; `made_of` those that are made of them.
        made_of: metric -> what it is made of.
        sums: `[subjects, 2 * names]`, all numerators before all denominators.
    """

    names: tuple[str, ...]
    made_of: Mapping[str, tuple[str, ...]]
    sums: Array

    @classmethod
    def over(cls, columns: Mapping[str, Column], subjects: Mapping[str, int], count: int) -> _Sums:
        names = tuple(columns)
        sums = np.zeros((count, 2 * len(names)))
        for place, name in enumerate(names):
            where = [subjects[id] for id in columns[name]]
            pairs = np.array(list(columns[name].values())).reshape(-1, 2)
            np.add.at(sums[:, place], where, pairs[:, 0])
            np.add.at(sums[:, len(names) + place], where, pairs[:, 1])
        made_of = {
            "minimum": MINIMUM if set(MINIMUM) <= set(names) else (),
            "harmonic": tuple(name for name in HARMONIC if name in names),
        }
        return cls(names, {name: of for name, of in made_of.items() if len(of) > 1}, sums)

    @property
    def all_names(self) -> tuple[str, ...]:
        return (*self.names, *self.made_of)

    @property
    def subjects(self) -> Array:
        """`[all_names]` number of subjects that each metric rests on."""
        there = np.count_nonzero(self.sums[:, len(self.names) :], axis=0)
        by_name = dict(zip(self.names, there.tolist(), strict=True))
        made = [min(by_name[part] for part in of) for of in self.made_of.values()]
        return np.array([*there, *made], dtype=np.float64)

    def values(self, totals: Array) -> Array:
        """Metrics `[..., all_names]` of sums `[..., 2 * names]`; NaN where undefined."""
        half = len(self.names)
        with np.errstate(invalid="ignore", divide="ignore"):
            plain = totals[..., :half] / totals[..., half:]
            plain = np.where(totals[..., half:] == 0, np.nan, plain)
        made = [self._made(name, plain) for name in self.made_of]
        return np.concatenate([plain, *(column[..., None] for column in made)], axis=-1)

    def _made(self, name: str, plain: Array) -> Array:
        parts = plain[..., [self.names.index(part) for part in self.made_of[name]]]
        return compound(name, parts)


def compound(name: str, parts: Array) -> Array:
    """`minimum` or `harmonic` of `parts [..., n]`, shares from 0 to 1; NaN if one of them is."""
    if name == "minimum":
        return parts.min(-1)
    with np.errstate(divide="ignore"):
        mean = parts.shape[-1] / (1 / parts).sum(-1)
    return np.where(np.isnan(parts).any(-1), np.nan, mean)


def cells_of(
    columns: Mapping[str, Column],
    baseline: Mapping[str, Column] | None,
    subjects: Mapping[str, int],
    weights: Array,
    exchanges: Array,
) -> dict[str, Cell]:
    """The cells of one method, in the order of `METRICS`.

    Args:
        columns: metric -> its terms under the method.
        baseline: the same of the method to compare with, if any.
        subjects: case id -> number of its subject.
        weights, exchanges: `[resamples, subjects]` of `intervals`.
    """
    count = weights.shape[1]
    sums = _Sums.over(columns, subjects, count)
    values = sums.values(sums.sums.sum(0))
    lows, highs, defined = intervals.percentiles(sums.values(weights @ sums.sums), sums.subjects)
    cells: dict[str, Cell] = {}
    for place, name in enumerate(sums.all_names):
        of = sums.made_of.get(name)
        n = sum(_size(columns[part]) for part in of) if of else _size(columns[name])
        clusters = int(sums.subjects[place])
        notes = _small(n, clusters)
        if name == "harmonic" and of and len(of) < len(HARMONIC):
            missing = ", ".join(state for state in HARMONIC if state not in of)
            notes.append(f"of {len(of)} states: no cases of {missing}")
        bounds = (float(lows[place]), float(highs[place]))
        if of and _empty(bounds, clusters):
            parts = np.array([[cells[part].low, cells[part].high] for part in of], dtype=float)
            bounds = (float(compound(name, parts[:, 0])), float(compound(name, parts[:, 1])))
            notes.append("interval from those of its parts")
        elif _empty(bounds, clusters):
            bounds, note = _fallback(name, float(values[place]), clusters)
            notes.append(note)
        elif defined[place] < _UNSURE:
            notes.append(f"defined in {defined[place]:.0%} of the resamples")
        cells[name] = Cell(
            float(values[place]), _number(bounds[0]), _number(bounds[1]), n, note="; ".join(notes)
        )
    if baseline is not None:
        _compare(cells, columns, baseline, subjects, weights, exchanges)
    return {name: cells[name] for name in METRICS if name in cells}


def _compare(
    cells: dict[str, Cell],
    columns: Mapping[str, Column],
    baseline: Mapping[str, Column],
    subjects: Mapping[str, int],
    weights: Array,
    exchanges: Array,
) -> None:
    """Put the differences from the baseline into the cells."""
    ours, theirs = _common(columns, baseline)
    if not ours:
        return
    mine = _Sums.over(ours, subjects, weights.shape[1])
    other = _Sums.over(theirs, subjects, weights.shape[1])
    clusters = np.minimum(mine.subjects, other.subjects)
    total, total_other = mine.sums.sum(0), other.sums.sum(0)
    differences = mine.values(total) - other.values(total_other)
    resampled = mine.values(weights @ mine.sums) - other.values(weights @ other.sums)
    lows, highs, _ = intervals.percentiles(resampled, clusters)
    moved = exchanges @ (other.sums - mine.sums)
    permuted = mine.values(total + moved) - other.values(total_other - moved)
    p = intervals.permutation_p(differences, permuted)
    for place, name in enumerate(mine.all_names):
        difference = float(differences[place])
        if np.isnan(difference):
            continue
        bounds, notes = (float(lows[place]), float(highs[place])), [cells[name].note]
        if _empty(bounds, int(clusters[place])):
            bounds, note = _difference_fallback(name, difference, int(clusters[place]))
            notes.append(note)
        parts = mine.made_of.get(name, (name,))
        n = sum(_size(ours[part]) for part in parts)
        if n < cells[name].n:
            notes.append(f"difference over the {n} cases that both answered")
        cells[name] = Cell(
            **vars(cells[name])
            | {
                "difference": difference,
                "difference_low": _number(bounds[0]),
                "difference_high": _number(bounds[1]),
                "p": _number(float(p[place])),
                "note": "; ".join(filter(None, notes)),
            }
        )


def _common(
    ours: Mapping[str, Column], theirs: Mapping[str, Column]
) -> tuple[dict[str, Column], dict[str, Column]]:
    """The metrics that both methods have, over the cases that both have them for."""
    left: dict[str, Column] = {}
    right: dict[str, Column] = {}
    for name in ours:
        ids = ours[name].keys() & theirs.get(name, {}).keys()
        pairs = [(ours[name][id], theirs[name][id]) for id in ids]
        if any(a[1] for a, _ in pairs) and any(b[1] for _, b in pairs):
            # Not in the order of the set, which changes from run to run.
            left[name] = {id: pair for id, pair in ours[name].items() if id in ids}
            right[name] = {id: theirs[name][id] for id in left[name]}
    return left, right


def _size(column: Column) -> int:
    """Cases that a metric rests on."""
    return sum(denominator > 0 for _, denominator in column.values())


def _small(n: int, clusters: int) -> list[str]:
    if n < FEW:
        return [f"n < {FEW}"]
    return [f"only {clusters} subjects"] if clusters < FEW else []


def _empty(bounds: tuple[float, float], clusters: int) -> bool:
    """Whether the bootstrap says nothing: nothing to draw from, or every draw is the same."""
    return clusters < 2 or any(np.isnan(bounds)) or intervals.same(*bounds)


def _fallback(name: str, value: float, clusters: int) -> tuple[tuple[float, float], str]:
    """Interval and note where the bootstrap says nothing about a value."""
    if METRICS[name].unit == "%" and value in (0.0, 1.0):
        return intervals.wilson(value, clusters), f"Wilson interval of {_subjects(clusters)}"
    if clusters < 2:
        return (np.nan, np.nan), "one subject: no interval"
    return (value, value), "the same for every subject"


def _difference_fallback(
    name: str, difference: float, clusters: int
) -> tuple[tuple[float, float], str]:
    """Interval and note where the bootstrap says nothing about a difference.

    Where every subject differs by the same, what another subject would do is bounded as an event
    that was never seen is.
    """
    if clusters < 2:
        return (np.nan, np.nan), "one subject: no interval of the difference"
    if METRICS[name].unit != "%":
        return (difference, difference), "the same difference for every subject"
    unseen = intervals.wilson(0.0, clusters)[1]
    bounds = max(-1.0, difference - unseen), min(1.0, difference + unseen)
    return bounds, f"difference: Wilson interval of {_subjects(clusters)}"


def _subjects(count: int) -> str:
    return "one subject" if count == 1 else f"{count} subjects"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
