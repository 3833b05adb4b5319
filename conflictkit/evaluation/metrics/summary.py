"""From single answers to a table: every metric of every method with its interval.

>>> from conflictkit.evaluation.metrics import summarise
>>> from conflictkit.evaluation.record import Cost, Result
>>> from conflictkit.types import Case
>>> capital = {"Poland": "Warsaw", "Chile": "Santiago", "Kenya": "Nairobi", "Japan": "Tokyo"}
>>> cases = [
...     Case(name, "test", "capital", name, f"The capital of {name}?", ("It is Riga.",), "bare",
...          memory_answers=(city,), context_answers=("Riga",), gold_answers=(city,),
...          state="resistance")
...     for name, city in capital.items()
... ]
>>> cost = Cost(forwards=2, context_tokens=9, memory_tokens=0, seconds=0.1, cache_bytes=0)
>>> def said(method, *answers):
...     return [Result(case.id, method, answer, (5,), "eos", -0.5, cost)
...             for case, answer in zip(cases, answers)]
>>> plain = said("plain", "Riga", "Riga", "Riga", "Tokyo")
>>> memory = said("memory", "Warsaw", "Santiago", "Nairobi", "Tokyo")
>>> table = summarise(cases, plain + memory)
>>> cell = table.cells["plain"]["resistance"]
>>> cell.value, cell.n, cell.note
(0.25, 4, 'n < 30')
>>> cell = table.cells["memory"]["resistance"]
>>> cell.value, cell.difference  # three of four answers became right
(1.0, 0.75)
>>> round(cell.low, 2)  # four of four: all that is known is a Wilson interval
0.51
>>> table.cells["plain"]["memorisation_ratio"].value  # one from memory, three from the context
0.25
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from conflictkit.errors import InvalidParameterError, unknown_name
from conflictkit.evaluation.metrics import intervals, text
from conflictkit.evaluation.metrics.catalogue import METRICS
from conflictkit.evaluation.metrics.cells import Cell, Column, cells_of
from conflictkit.evaluation.metrics.detection import detect
from conflictkit.evaluation.metrics.rates import TERMS, Seen
from conflictkit.evaluation.record import Result
from conflictkit.types import Case

__all__ = ["METRICS", "Cell", "Summary", "summarise"]

FORMAT, VERSION = "conflictkit-summary", 1


@dataclass(frozen=True)
class Summary:
    """What a run says.

    Attributes:
        methods: labels, in order of appearance.
        cells: method -> metric -> cell; metrics that the cases cannot give are absent.
        detection: detector -> `token` or `answer` -> what `detection.detect` says.
        baseline: method that differences and relative costs refer to.
        match: how answers were recognised, a name in `text.MATCHES`.
        cases, subjects: how many were summarised.
        resamples, seed: of bootstrap and permutations.
    """

    methods: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    detection: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    baseline: str = "plain"
    match: str = text.DEFAULT
    cases: int = 0
    subjects: int = 0
    resamples: int = 0
    seed: int = 0

    @property
    def compared(self) -> bool:
        """Whether the baseline is among the methods, so that there are differences to it."""
        return self.baseline in self.methods

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain data, ready for JSON; no NaN in it."""
        data = {"format": FORMAT, "version": VERSION} | asdict(self)
        data["methods"] = list(self.methods)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """The summary of what `to_dict` gave.

        Raises:
            InvalidParameterError: not that, or of another version.
        """
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise InvalidParameterError(
                f"not a summary of version {VERSION}: format {data.get('format')!r}, "
                f"version {data.get('version')!r}; make it again from the run's rows"
            )
        rest = {key: value for key, value in data.items() if key not in ("format", "version")}
        cells = {
            method: {name: Cell(**cell) for name, cell in row.items()}
            for method, row in data["cells"].items()
        }
        return cls(**rest | {"methods": tuple(data["methods"]), "cells": cells})


def summarise(
    cases: Sequence[Case],
    results: Iterable[Result],
    *,
    baseline: str = "plain",
    seed: int = 0,
    resamples: int = 2000,
    match: str = text.DEFAULT,
) -> Summary:
    """Measure all methods.

    Intervals are 95 % bootstrap intervals over subjects (cases without a subject count as one
    each), all metrics and methods from the same resamples; differences are taken over the cases
    that both methods answered, p from exchanging the two methods subject by subject. Where a
    bootstrap has nothing to vary (all right, all wrong) a share's interval is Wilson's for the
    number of subjects, and the note says so.

    Args:
        cases: what was asked; ids unique.
        results: at most one per case and method, in any order.
        baseline: label that the others are compared with; without results of it there are no
            differences.
        seed: of bootstrap and permutations.
        resamples: of each.
        match: how an answer is recognised, a name in `text.MATCHES`.

    Raises:
        InvalidParameterError: two cases of one id, a result of no case, two results of one case
            and method, or fewer than 100 resamples.
        UnknownNameError: no such match.
    """
    if match not in text.MATCHES:
        raise unknown_name("match", match, text.MATCHES)
    if resamples < 100:
        raise InvalidParameterError(f"resamples must be at least 100, not {resamples}")
    known = {case.id: case for case in cases}
    if len(known) < len(cases):
        raise InvalidParameterError("two cases have the same id: ids name the results' cases")
    answered = _by_method(known, results)
    numbers: dict[object, int] = {}
    subjects = {
        # A tuple cannot be the name of a subject.
        case.id: numbers.setdefault(case.subject or (case.id,), len(numbers))
        for case in cases
    }
    plain = answered.get(baseline, {})
    seen = {
        method: {id: Seen.of(known[id], result, plain.get(id), match) for id, result in row.items()}
        for method, row in answered.items()
    }
    rng = np.random.default_rng(seed)
    weights = intervals.draw_subjects(len(numbers), resamples, rng)
    exchanges = intervals.draw_exchanges(len(numbers), resamples, rng)
    columns = {method: _columns(row) for method, row in seen.items()}
    cells = {
        method: cells_of(
            row, columns.get(baseline) if method != baseline else None, subjects, weights, exchanges
        )
        for method, row in columns.items()
    }
    if baseline in cells and (cell := cells[baseline].get("relative_seconds")):
        cells[baseline]["relative_seconds"] = Cell(1.0, 1.0, 1.0, cell.n, note="by definition")
    return Summary(
        methods=tuple(answered),
        cells=cells,
        detection=detect(seen[baseline].values(), subjects, weights) if plain else {},
        baseline=baseline,
        match=match,
        cases=len(cases),
        subjects=len(numbers),
        resamples=resamples,
        seed=seed,
    )


def _by_method(
    known: Mapping[str, Case], results: Iterable[Result]
) -> dict[str, dict[str, Result]]:
    answered: dict[str, dict[str, Result]] = {}
    for result in results:
        row = answered.setdefault(result.method, {})
        if result.case not in known:
            raise InvalidParameterError(f"a result names the case '{result.case}': there is none")
        if result.case in row:
            raise InvalidParameterError(
                f"method '{result.method}' has two results for the case '{result.case}'"
            )
        row[result.case] = result
    # In the order of the cases, so that sums are rounded alike however the results came.
    return {method: {id: row[id] for id in known if id in row} for method, row in answered.items()}


def _columns(row: Mapping[str, Seen]) -> dict[str, Column]:
    """Metric -> case id -> numerator and denominator; metrics without a case are left out."""
    columns: dict[str, Column] = {}
    for name, terms in TERMS.items():
        column = {id: pair for id, one in row.items() if (pair := terms(one)) is not None}
        if any(denominator for _, denominator in column.values()):
            columns[name] = column
    return columns
