"""The tables of a report, as data: the page and Markdown show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Any

from conflictkit.evaluation.metrics.summary import METRICS, Cell, Summary
from conflictkit.evaluation.report import numbers
from conflictkit.evaluation.report.families import readable
from conflictkit.evaluation.report.sources import Source
from conflictkit.evaluation.report.svg import text_width
from conflictkit.states import ALL
from conflictkit.trace.text import visible

GROUPS = {
    "states": (
        "Right answers by state",
        ("correction", "resistance", "agreement", "irrelevant", "minimum", "harmonic"),
    ),
    "sources": (
        "Where answers come from",
        (
            "context_rate", "memory_rate", "other_rate", "memorisation_ratio", "conr", "parr",
            "controllability", "robustness",
        ),
    ),
    "answers": ("Answers against the truth", ("exact_match", "token_f1", "choice_accuracy")),
    "guards": (
        "What a method must not spoil",
        ("recall", "reading", "quoting", "context_logprob_per_token", "length", "repetition"),
    ),
    "cost": (
        "Cost",
        (
            "forwards_per_token", "context_tokens", "memory_tokens", "seconds",
            "relative_seconds", "cache_bytes",
        ),
    ),
}  # fmt: skip
OTHER = ("other", "Other measures")
DETECTION = "detection"
LEVELS = {"answer": "per answer", "token": "per token"}
"""What a detector may be measured over."""
_COMPARED = ("minimum", "harmonic", "exact_match")
_PAGE = 1136.0
"""Pixels that a table may take."""
_HINTS = {"higher": "higher is better", "lower": "lower is better"}


@dataclass(frozen=True)
class Entry:
    """One figure.

    Attributes:
        value: with as many digits as it deserves; empty: not measured.
        interval: in brackets, or empty.
        mark: ▲ or ▼ for a significant difference to the baseline.
        verdict: what the mark means: `better`, `worse`, `differs`, or empty.
        n: cases behind it, where its column does not say so.
        notes: what limits it; in a table the letters of the table's notes.
        about: the difference to the baseline, in words.
        state: the state whose cases it counts, if it counts those of one.
    """

    value: str = ""
    interval: str = ""
    mark: str = ""
    verdict: str = ""
    n: str = ""
    notes: tuple[str, ...] = ()
    about: str = ""
    state: str = ""


@dataclass(frozen=True)
class Column:
    """What a column measures.

    Attributes:
        title: its name.
        unit: of its figures, and whether higher or lower is better.
        n: cases behind each figure, if it is the same in all rows.
        about: what it is, in a sentence.
    """

    title: str
    unit: str = ""
    n: str = ""
    about: str = ""


Row = tuple[str, str, tuple[Entry, ...]]
"""Label, name for people, one entry per column."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        key: its name in file names and anchors.
        title: its heading.
        head: what the first column holds.
        columns, rows: the figures.
        notes: (letter, what limits the figures that bear it); without a letter: all of them.
    """

    key: str
    title: str
    head: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether intervals have to stand below their figures: beside them there is no room."""
        names = max((text_width(name, 14) for _, name, _ in self.rows), default=0.0)
        lines = zip(*(entries for _, _, entries in self.rows), strict=True)
        return names + sum(max(map(_width, column)) for column in lines) > _PAGE


def _width(entry: Entry) -> float:
    """Pixels that an entry takes in one line, with what stands between columns."""
    return text_width(entry.value, 14) + max(text_width(entry.interval, 12.5), 80.0) + 40


def group_of(metric: str) -> str:
    """Key of the table that shows a metric."""
    return next((key for key, (_, names) in GROUPS.items() if metric in names), OTHER[0])


def tables(summary: Summary) -> list[Table]:
    """All tables of a run; metrics that it could not measure are left out."""
    present = [
        name for name in METRICS if any(name in summary.cells[label] for label in summary.methods)
    ]
    found = []
    rest = (OTHER[1], tuple(name for name in present if group_of(name) == OTHER[0]))
    for key, (title, names) in {**GROUPS, OTHER[0]: rest}.items():
        columns = [_Figures(name, summary) for name in names if name in present]
        if columns:
            found.append(_of_methods(key, title, summary.methods, columns))
    if summary.detection:
        found.append(_of_detectors(summary))
    return found


def comparison(sources: Sequence[Source]) -> Table:
    """What sums a method up, for all runs beside each other."""
    labels = dict.fromkeys(label for source in sources for label in source.summary.methods)
    columns = [
        _Figures(metric, source.summary, visible(source.name))
        for source in sources
        for metric in _COMPARED
        if any(metric in row for row in source.summary.cells.values())
    ]
    return _of_methods("runs", "Each method in every run", list(labels), columns)


class _Figures:
    """One metric of one run, as a column."""

    def __init__(self, metric: str, summary: Summary, run: str = "") -> None:
        self.metric, self.baseline = metric, summary.baseline
        self.cells = {label: row[metric] for label, row in summary.cells.items() if metric in row}
        name, unit, better, about = METRICS[metric]
        sizes = {cell.n for cell in self.cells.values()}
        self.column = Column(
            f"{run}: {name}" if run else name,
            ", ".join(part for part in (unit, _HINTS.get(better, "")) if part),
            f"n = {sizes.pop():,}" if len(sizes) == 1 else "",
            about,
        )

    def entry(self, label: str) -> Entry:
        """The figure of one method."""
        cell = self.cells.get(label)
        if cell is None:
            return Entry()
        return Entry(
            numbers.shown(cell.value, self.metric),
            numbers.interval(cell, self.metric),
            numbers.mark(cell),
            numbers.verdict(cell, self.metric),
            "" if self.column.n else f"n = {cell.n:,}",
            _remarks(cell.note),
            numbers.against(cell, self.metric, self.baseline),
            self.metric if self.metric in ALL else "",
        )


def _of_methods(key: str, title: str, labels: Sequence[str], columns: Sequence[_Figures]) -> Table:
    rows = [
        (visible(label), readable(label), tuple(one.entry(label) for one in columns))
        for label in labels
    ]
    return _lettered(Table(key, title, "method", tuple(one.column for one in columns), tuple(rows)))


def _of_detectors(summary: Summary) -> Table:
    found = summary.detection
    columns, measures = [], []
    for level, words in LEVELS.items():
        there = [levels[level] for levels in found.values() if level in levels]
        if not there:
            continue
        sizes = {(one["n_conflict"], one["n_agreement"]) for one in there}
        n = "n = {:,} + {:,}".format(*sizes.pop()) if len(sizes) == 1 else ""
        for name, about in (("AUROC", "the ROC curve"), ("AUPRC", "precision and recall")):
            about = f"area under {about}"
            columns.append(Column(f"{name} {words}", "higher is better", n, about))
            measures.append((level, name.lower()))
    rows = [
        (visible(name), visible(name), tuple(_area(levels.get(level), m) for level, m in measures))
        for name, levels in found.items()
    ]
    title = "Detectors: conflict against agreement"
    told = _lettered(Table(DETECTION, title, "detector", tuple(columns), tuple(rows)))
    about = (
        "Conflict: correction and resistance; no conflict: agreement. Scores as they were under "
        f"{visible(summary.baseline)}. n: with conflict + without; 0.5 is chance."
    )
    return replace(told, notes=(("", about), *told.notes))


def _area(found: Mapping[str, Any] | None, measure: str) -> Entry:
    if found is None:
        return Entry()
    cell = Cell(found[measure], found[f"{measure}_low"], found[f"{measure}_high"], n=0)
    ends = numbers.bounds(cell)
    shown = [numbers.number(end, 3) for end in (cell.value, *(ends or ()))]
    between = f"[{shown[1]}, {shown[2]}]" if ends else ""
    return Entry(shown[0], between, notes=_remarks(found["note"]))


def _remarks(note: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in note.split(";") if part.strip()))


def _lettered(table: Table) -> Table:
    """The table with its figures' notes below it: once each, those of all figures without a
    letter."""
    filled = [entry.notes for _, _, entries in table.rows for entry in entries if entry.value]
    order = list(dict.fromkeys(note for notes in filled for note in notes))
    common = [note for note in order if all(note in notes for notes in filled)]
    letters = {
        note: _letter(place) for place, note in enumerate(n for n in order if n not in common)
    }
    rows = tuple(
        (
            label,
            name,
            tuple(
                replace(entry, notes=tuple(letters[n] for n in entry.notes if n in letters))
                for entry in entries
            ),
        )
        for label, name, entries in table.rows
    )
    notes = [("", f"All figures: {note}.") for note in common]
    notes += [(letter, note) for note, letter in letters.items()]
    return replace(table, rows=rows, notes=tuple(notes))


def _letter(place: int) -> str:
    rest, last = divmod(place, len(ascii_lowercase))
    return (_letter(rest - 1) if rest else "") + ascii_lowercase[last]
