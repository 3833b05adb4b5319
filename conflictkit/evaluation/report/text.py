"""The report's tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conflictkit.evaluation.report import numbers
from conflictkit.evaluation.report.sources import Source, baselines
from conflictkit.evaluation.report.tables import Entry, Table, comparison, tables
from conflictkit.trace.text import visible


def markdown(sources: Sequence[Source]) -> str:
    """All tables of the report, each run under its own heading."""
    return "\n".join(_lines(sources))


def _lines(sources: Sequence[Source]) -> Iterator[str]:
    yield "# Evaluation report"
    yield ""
    marks = (
        f" ▲ and ▼: significantly above or below {plain(baseline)} on the same cases (paired "
        f"permutation test, p < {numbers.LEVEL}, not corrected for the number of comparisons)."
        if (baseline := baselines(sources))
        else ""
    )
    yield f"In brackets: 95 % intervals.{marks}"
    if len(sources) > 1:
        yield from _section(comparison(sources), 2)
    for source in sources:
        yield from ("", f"## {plain(source.name)}", "")
        for name, value in source.facts():
            yield f"- {name}: {plain(value)}"
        for table in tables(source.summary):
            yield from _section(table, 3)
    yield ""


def _section(table: Table, level: int) -> Iterator[str]:
    yield from ("", f"{'#' * level} {table.title}", "")
    heads = [table.head]
    for column in table.columns:
        unit = f"({column.unit})" if column.unit else ""
        heads.append(" ".join(part for part in (column.title, unit, column.n) if part))
    yield _row(heads)
    yield "|---" + "|---:" * len(table.columns) + "|"
    for _, name, entries in table.rows:
        yield _row([name, *(one_line(entry) for entry in entries)])
    if table.notes:
        yield ""
        told = (f"({letter}) {note}" if letter else note for letter, note in table.notes)
        yield plain(" · ".join(told))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(plain(cell) for cell in cells)} |"


def one_line(entry: Entry) -> str:
    """An entry in one line."""
    notes = f"({', '.join(entry.notes)})" if entry.notes else ""
    parts = (entry.value, entry.mark, entry.interval, entry.n, notes)
    return " ".join(part for part in parts if part) or "–"


def plain(text: str) -> str:
    """Text that stays text in Markdown, on one line."""
    text = " ".join(visible(text).split())
    for character in "\\`*_|<>#":
        text = text.replace(character, f"\\{character}")
    return text
