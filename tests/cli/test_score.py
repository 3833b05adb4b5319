"""`conflictkit score`: files in and out, what it says, what it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console

from conflictkit import scoring
from conflictkit.cli._progress import watching
from tests.cli.conftest import Run

Refused = Callable[..., str]
ROWS = [
    {"question": "Which?", "context": "the red one", "answer": "red"},
    {"question": "Who?", "context": ["she", "he"]},
    {"question": "Where?", "context": "under it", "answer": "there"},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def score(run: Run, folder: Path, rows: Path, tmp_path: Path) -> Callable[..., Any]:
    """Score the rows with the tiny model into `scores.jsonl`."""

    def call(*arguments: Any, source: Path = rows, out: Path | None = None) -> Any:
        given = (source, "--out", out or tmp_path / "scores.jsonl", "--model", folder)
        return run("score", *given, "--max-new-tokens", 3, "--detector", "jsd", *arguments)

    return call


def test_a_file_is_scored_and_summed_up(score: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = score()
    assert (code, err) == (0, "")
    assert "3 rows scored (2 answers given, 1 written)" in out
    found = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [record["line"] for record in found] == [1, 2, 3]
    assert found[0]["answer"] == "red"
    assert set(found[0]["scores"]) == {"jsd"}
    assert len(found[0]["tokens"]) == len(" red")


def test_the_summary_as_data(score: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    code, said, err = score(
        "--json", "--no-tokens", "--generate", "-m", "cad", "-p", "alpha=2", out=out
    )
    assert (code, err) == (0, "")
    summary = json.loads(said)
    assert (summary["rows"], summary["generated"], summary["out"]) == (3, 3, str(out))
    assert "alpha=2" in summary["method"]
    import pyarrow.parquet as parquet

    table = parquet.read_table(out)
    assert "tokens" not in table.column_names
    assert table.column("method").to_pylist() == ["cad"] * 3


def test_columns_of_other_names(score: Callable[..., Any], tmp_path: Path) -> None:
    sheet = tmp_path / "rows.csv"
    sheet.write_text("q,text,gold,key\nWhich?,the red one,red,a\n")
    names = ("--question-field", "q", "--context-field", "text")
    code, _, _ = score(*names, "--answer-field", "gold", "--id-field", "key", source=sheet)
    assert code == 0
    (record,) = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert (json.loads(record)["id"], json.loads(record)["answer"]) == ("a", "red")


def test_a_malformed_row_is_one_line_or_set_aside(
    score: Callable[..., Any], rows: Path, tmp_path: Path
) -> None:
    rows.write_text(rows.read_text() + '{"question": "Why?"}\n')
    code, out, err = score()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "rows.jsonl, line 4, field 'context': is missing" in err
    assert not (tmp_path / "scores.jsonl").exists()
    # The same command with another way out goes on.
    code, out, err = score("--on-error", "skip")
    assert (code, err) == (0, "")
    assert "1 malformed rows set aside" in out
    assert "3 rows were there from before" in out
    (aside,) = (tmp_path / "scores.jsonl.errors.jsonl").read_text().splitlines()
    assert json.loads(aside)["line"] == 4


def test_a_name_that_no_file_can_hold_is_set_aside(
    score: Callable[..., Any], rows: Path, tmp_path: Path
) -> None:
    rows.write_text('{"\\ud800": 1, "\\ud800": 2}\n' + rows.read_text())
    code, out, err = score("--on-error", "skip")
    assert (code, err) == (0, "")
    assert "1 malformed rows set aside" in out
    (aside,) = (tmp_path / "scores.jsonl.errors.jsonl").read_text().splitlines()
    assert json.loads(aside)["field"] == "\\ud800"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.jsonl",), "there is no file"),
        (("ROWS", "--out", "scores.csv"), "must end in .jsonl or .parquet"),
        (("ROWS", "--out", "/nowhere/scores.jsonl"), "no folder '/nowhere'"),
        (("ROWS", "--out", "ROWS", "--overwrite"), "overwrite the input"),
        (("ROWS", "--out", "ROWS"), "overwrite the input"),
        (("ROWS", "--detector", "jds"), "did you mean 'jsd'"),
        (("ROWS", "--method", "addacad"), "did you mean 'adacad'"),
        (("ROWS", "--param", "alpha=1"), "name it with --method"),
        (("ROWS", "--on-error", "ignore"), "stop or skip"),
        (("ROWS", "--batch-size", "0"), "--batch-size"),
        (("ROWS", "--question-field", "context"), "two fields"),
        (("ROWS", "--question-field", "\udcff"), "--question-field is not valid UTF-8"),
        (("ROWS", "--answer-field", "\udcff"), "--answer-field is not valid UTF-8"),
        (("ROWS", "--stop", "\n", "--stop", "\udcff"), "--stop is not valid UTF-8"),
        (("ROWS", "--start-after", "\udcff"), "--start-after is not valid UTF-8"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    refused: Refused, rows: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = [str(rows) if argument == "ROWS" else argument for argument in arguments]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "scores.jsonl")]
    assert said in refused("score", *given, "--model", "no/such-model")
    assert [path for path in tmp_path.iterdir() if path != rows] == []


def test_a_finished_file_is_not_replaced(
    score: Callable[..., Any], refused: Refused, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    assert score().code == 0
    assert "--overwrite" in refused("score", rows, "--out", out, "--model", "no/such-model")
    assert score("--overwrite").code == 0


def test_an_interruption_says_how_to_go_on(
    score: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "score_file", interrupt)
    code, out, err = score()
    assert (code, out) == (130, "")
    assert err == "conflictkit: interrupted: the same command goes on from here\n"


def test_the_bar_is_for_terminals(
    score: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = score("--json", "--batch-size", "1")
    assert code == 0
    assert json.loads(out)["rows"] == 3
    assert "scoring" in err
    assert "3 rows" in err


@pytest.mark.parametrize("pace", [5, 90])
def test_the_bar_tells_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch, pace: int) -> None:
    now, drawn = [0.0], io.StringIO()

    def terminal(**options: Any) -> Any:
        assert options == {"stderr": True}
        return Console(file=drawn, force_terminal=True, width=100, get_time=lambda: now[0])

    Console = rich.console.Console
    monkeypatch.setattr(rich.console, "Console", terminal)
    with watching("scoring", "rows") as watch:
        # An earlier run did half of it: that is no work of this one.
        for rows in (500, 600, 700):
            watch(scoring.Progress(rows, rows / 1000))
            now[0] += pace
        now[0] -= pace
    minutes, seconds = divmod(3 * pace, 60)
    last = drawn.getvalue().split("700 rows")[-1]
    assert f"0:{minutes:02}:{seconds:02}" in last
