"""What the tables say, and that page, Markdown and CSV say the same."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conflictkit.errors import InvalidParameterError, OutputError
from conflictkit.evaluation.metrics.summary import Cell, Summary, summarise
from conflictkit.evaluation.record import Result
from conflictkit.evaluation.report import figures, files, markdown, page, read
from conflictkit.evaluation.report.tables import Table, tables
from conflictkit.types import Case
from tests.evaluation.report import runs


def only(cells: dict[str, dict[str, Cell]]) -> Table:
    (table,) = tables(Summary(tuple(cells), cells))
    return table


def cell(value: float, low: float | None = None, high: float | None = None, **more: object) -> Cell:
    fields = {"n": 50, **more}
    return Cell(value, low, high, **fields)  # type: ignore[arg-type]


def test_a_share_is_shown_in_per_cent_with_its_interval() -> None:
    table = only({"plain": {"correction": cell(0.625, 0.5, 0.7512)}})
    (entry,) = table.rows[0][2]
    assert (entry.value, entry.interval, entry.mark) == ("62.5", "[50.0, 75.1]", "")
    assert table.columns[0].unit.startswith("%")
    assert table.columns[0].n == "n = 50"


@pytest.mark.parametrize(
    ("metric", "difference", "p", "mark", "verdict"),
    [
        ("correction", 0.1, 0.01, "▲", "better"),
        ("correction", -0.1, 0.01, "▼", "worse"),
        ("other_rate", 0.1, 0.01, "▲", "worse"),
        ("other_rate", -0.1, 0.01, "▼", "better"),
        ("context_rate", 0.1, 0.01, "▲", "differs"),
        ("correction", 0.1, 0.05, "", ""),
        ("correction", 0.0, 0.01, "", ""),
        ("correction", 0.1, None, "", ""),
        ("correction", None, None, "", ""),
    ],
)
def test_only_a_significant_difference_is_marked(
    metric: str, difference: float | None, p: float | None, mark: str, verdict: str
) -> None:
    table = only(
        {"plain": {metric: cell(0.5)}, "cad": {metric: cell(0.6, difference=difference, p=p)}}
    )
    (entry,) = table.rows[1][2]
    assert (entry.mark, entry.verdict) == (mark, verdict)


def test_the_difference_is_told_in_points() -> None:
    found = cell(0.6, difference=-0.1234, difference_low=-0.2, difference_high=0.01, p=0.0004)
    (entry,) = only({"plain": {"correction": cell(0.7)}, "cad": {"correction": found}}).rows[1][2]
    assert entry.about == "difference to plain −12.3 points [−20.0, +1.0], p < 0.001"


def test_notes_stand_once_below_the_table() -> None:
    table = only(
        {
            "plain": {
                "correction": cell(1.0, note="n < 30; Wilson interval of 4 subjects"),
                "resistance": cell(0.5, note="n < 30"),
            }
        }
    )
    first, second = table.rows[0][2]
    assert table.notes == (
        ("", "All figures: n < 30."),
        ("a", "Wilson interval of 4 subjects"),
    )
    assert (first.notes, second.notes) == (("a",), ())


def test_numbers_of_cases_that_differ_stand_with_their_figures() -> None:
    table = only({"plain": {"conr": cell(0.5, n=12)}, "cad": {"conr": cell(0.5, n=1234)}})
    assert table.columns[0].n == ""
    assert [entries[0].n for _, _, entries in table.rows] == ["n = 12", "n = 1,234"]


def test_a_metric_that_one_method_lacks_is_a_dash() -> None:
    table = only({"plain": {"correction": cell(0.5)}, "cad": {}})
    assert table.rows[1][2][0].value == ""


def test_intervals_go_below_their_figures_where_a_line_is_too_short() -> None:
    share = cell(0.5, 0.4, 0.6)
    states = ("correction", "resistance", "agreement", "irrelevant", "minimum", "harmonic")
    assert not only({"plain": dict.fromkeys(states, share)}).stacked
    rates = (*states, "context_rate", "memory_rate", "conr", "parr")
    first, second = tables(Summary(("plain",), {"plain": dict.fromkeys(rates, share)}))
    assert (first.stacked, second.stacked) == (False, False)
    assert only({"plain " * 30: dict.fromkeys(states, share)}).stacked
    large = cell(1234.0, 1111.0, 2222.0)
    cost = ("forwards_per_token", "context_tokens", "memory_tokens", "seconds", "cache_bytes")
    assert not only({"plain": dict.fromkeys(cost, large)}).stacked
    assert only({"plain" * 5: dict.fromkeys((*cost, "relative_seconds"), large)}).stacked


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.1234, "0.12"), (12.34, "12.3"), (123.4, "123"), (-1234.0, "−1,234"), (99_410.0, "99.4 k"),
     (118_287.0, "118 k"), (25e6, "25.0 M"), (4e6, "4,000 k"), (float("nan"), "–")],
)  # fmt: skip
def test_large_numbers_stay_short(value: float, shown: str) -> None:
    (entry,) = only({"plain": {"cache_bytes": cell(value)}}).rows[0][2]
    assert entry.value == shown


class _Tables(HTMLParser):
    """Caption -> rows of texts of the tables of figures."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.caption: str | None = None
        self.text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "caption" or (tag in ("th", "td") and self.caption):
            self.text = []
        elif tag == "tr" and self.caption:
            self.found[self.caption].append([])

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.caption = None
        elif self.text is not None and tag in ("caption", "th", "td"):
            text = "".join(self.text)
            self.text = None
            if tag == "caption":
                self.caption = text
                self.found[text] = []
            elif self.caption:
                self.found[self.caption][-1].append(text)

    def handle_data(self, data: str) -> None:
        if self.text is not None:
            self.text.append(data)


def _bare(text: str) -> str:
    """Figures and words alone: how they are spaced and noted differs between the forms."""
    return re.sub(r"\((\w+(, )?)+\)|[\s\\]", "", text)


def test_page_and_markdown_show_the_same_tables(first: Path) -> None:
    sources = read([first])
    parser = _Tables()
    parser.feed(page(sources))
    sections = re.split(r"^### ", markdown(sources), flags=re.M)[1:]
    assert len(parser.found) == len(sections) >= 5
    for section in sections:
        title, *lines = section.splitlines()
        rows = [line.strip("|").split(" | ") for line in lines if line.startswith("|")]
        shown = parser.found[title][1:]
        assert len(rows) - 2 == len(shown)
        for wanted, found in zip(rows[2:], shown, strict=True):
            # Letters of notes: in brackets there, raised here.
            letters = re.compile(r"(?<=[\d▲▼])[a-z]{1,4}(?=\[|n|$)")
            assert [_bare(one) for one in wanted] == [_bare(letters.sub("", one)) for one in found]


def test_csv_holds_every_figure_unrounded(first: Path) -> None:
    sources = read([first])
    summary = json.loads((first / "summary.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader(io.StringIO(figures(sources))))
    kept = {(row["row"], row["metric"]): row for row in rows}
    counted = 0
    for method, cells in summary["cells"].items():
        for metric, one in cells.items():
            row = kept[method, metric]
            for name in ("value", "low", "high", "p", "difference"):
                assert row[name] == ("" if one[name] is None else repr(one[name]))
            counted += 1
    detectors = [row for row in rows if row["table"] == "detection"]
    assert counted + len(detectors) == len(rows)
    for row in detectors:
        measure, _, level = row["metric"].partition("_per_")
        assert float(row["value"]) == summary["detection"][row["row"]][level][measure]


def test_csv_files_hold_what_the_one_file_holds(first: Path) -> None:
    sources = read([first])
    found = files(sources)
    rows = [
        row for name, text in found.items() if name != "roc.csv" for row in text.splitlines()[1:]
    ]
    assert sorted(rows) == sorted(figures(sources).splitlines()[1:])
    curve = list(csv.DictReader(io.StringIO(found["roc.csv"])))
    assert {row["detector"] for row in curve} == set(sources[0].summary.detection)


def test_two_runs_stand_side_by_side(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "other" / "first"
    second.parent.mkdir()
    second.mkdir()
    for file in first.iterdir():
        (second / file.name).write_bytes(file.read_bytes())
    sources = read([first, second])
    assert [source.name.split("/")[-1] for source in sources] == ["first", "first"]
    assert sources[0].name != sources[1].name
    text = markdown(sources)
    assert "## Each method in every run" in text
    assert all(f"{source.name}: Minimum" in text.replace("\\", "") for source in sources)


def test_marks_are_explained_where_there_is_a_baseline(
    atlas_answers: tuple[list[Case], list[Result]], first: Path, tmp_path: Path
) -> None:
    cases, results = atlas_answers
    rest = [result for result in results if result.method != "plain"]
    alone = runs.write(
        tmp_path / "alone", cases, rest, summarise(cases, rest, resamples=100).to_dict()
    )
    for folders, there in (([first], True), ([alone], False), ([first, alone], True)):
        sources = read(folders)
        for shown in (markdown(sources), page(sources)):
            assert ("significantly above or below plain" in shown) is there


def test_runs_that_cannot_be_shown_are_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="at least one run"):
        read([])
    with pytest.raises(InvalidParameterError, match="given twice"):
        read([first, first])
    with pytest.raises(OutputError, match="no run in"):
        read([tmp_path])
    for file in first.iterdir():
        if file.name != "summary.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OutputError, match="not finished"):
        read([tmp_path])
