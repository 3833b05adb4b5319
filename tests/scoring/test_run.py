"""Whole runs: what the output holds, what is set aside, what is refused, what is held in memory."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    LogitsError,
    OutputError,
    RowError,
)
from conflictkit.scoring import Fields, Progress, Row, Scorer, run, score_file
from conflictkit.scoring.ledger import Ledger
from conflictkit.scoring.run import output
from tests.scoring.conftest import records

Write = Callable[..., Path]
FAST: dict[str, Any] = {"scores": ["jsd"], "max_new_tokens": 3}


def test_records_are_in_the_order_of_the_rows_and_hold_their_scores(
    model: Any, jsonl: Write, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    summary = score_file(model, jsonl(rows), out, batch_size=3, window=5, **FAST)
    found = records(out)
    assert [record["id"] for record in found] == [row["id"] for row in rows]
    assert [record["line"] for record in found] == list(range(1, len(rows) + 1))
    scorer = Scorer(model, **FAST)
    for row, record in zip(rows, found, strict=True):
        context = row["context"]
        passages = (context,) if isinstance(context, str) else tuple(context)
        (alone,) = scorer.score([Row(row["question"], passages, row.get("answer"))])
        assert record["answer"] == alone.answer
        assert record["method"] == ("plain" if "answer" not in row else None)
        assert record["context_logprob"] == pytest.approx(alone.context_logprob, abs=1e-5)
        assert record["scores"]["jsd"] == pytest.approx(alone.scores["jsd"], abs=1e-5)
        assert [token["id"] for token in record["tokens"]] == [t.id for t in alone.tokens]
    assert (summary.rows, summary.given, summary.generated) == (13, 8, 5)
    assert summary.tokens == sum(len(record["tokens"]) for record in found)
    assert (summary.skipped, summary.errors, summary.resumed) == (0, None, 0)
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "scores.jsonl"]


def test_parquet_holds_the_same(
    model: Any, jsonl: Write, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for ids, kind in ((range(13), int), (["a", *range(12)], str), ([None] * 13, None)):
        source = jsonl([{**row, "id": name} for row, name in zip(rows, ids, strict=True)])
        for ending in ("jsonl", "parquet"):
            score_file(model, source, tmp_path / f"s.{ending}", overwrite=True, **FAST)
        told = records(tmp_path / "s.jsonl")
        if kind is str:
            told = [{**record, "id": str(record["id"])} for record in told]
        assert parquet.read_table(tmp_path / "s.parquet").to_pylist() == told
    bare = tmp_path / "bare.parquet"
    score_file(model, source, bare, tokens=False, **FAST)
    assert parquet.read_table(bare).to_pylist() == [
        {name: value for name, value in record.items() if name != "tokens"} for record in told
    ]


def test_what_the_model_writes_can_be_asked_for_always(
    model: Any, jsonl: Write, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    summary = score_file(model, jsonl(rows), out, "cad", generate=True, alpha=2.0, **FAST)
    assert (summary.given, summary.generated) == (0, 13)
    assert {record["method"] for record in records(out)} == {"cad"}
    first = model.ask(rows[0]["question"], rows[0]["context"], "cad", alpha=2.0, max_new_tokens=3)
    assert records(out)[0]["answer"] == first.text


BAD = [
    (b'{"question": ""}', "context", "is missing"),
    (json.dumps({"question": "q", "context": "x" * 400}).encode(), "context", "window leaves"),
]


@pytest.mark.parametrize(("line", "field", "reason"), BAD)
def test_a_bad_row_stops_the_run_and_those_before_it_are_kept(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path, line: bytes, field: str, reason: str
) -> None:
    out = tmp_path / "scores.jsonl"
    source = jsonl([*rows[:6], line, *rows[6:]])
    with pytest.raises(RowError, match=f"line 7, field '{field}': .*{reason}.*--on-error skip"):
        score_file(model, source, out, window=4, **FAST)
    assert not out.exists()
    assert len(records(tmp_path / "scores.jsonl.partial")) == 6
    # Mended, the row is read again, and nothing before it.
    mended = jsonl([*rows[:6], {**rows[0], "id": "mended"}, *rows[6:]])
    summary = score_file(model, mended, out, window=4, **FAST)
    assert (summary.resumed, summary.rows) == (6, 14)
    assert [record["id"] for record in records(out)][5:8] == ["r5", "mended", "r6"]


@pytest.mark.parametrize(
    ("question", "context", "answer", "field", "options"),
    [
        ("q", "x" * 400, "a", "passage", {}),
        ("q", "x" * 400, None, "passage", {}),
        ("q" * 400, "x", None, "asked", {}),
        ("q" * 400, "x" * 400, "a", "asked", {}),
        ("q" * 400, "x", "a" * 300, "asked", {}),
        ("q" * 300, "x", "a" * 400, "gold", {}),
        ("q", "x", "a" * 300, "gold", {}),
        ("q" * 100, "x", "a" * 200, "gold", {}),
        ("q" * 200, "x", "a" * 100, "asked", {}),
        ("q" * 100, "x" * 100, "a" * 90, "passage", {}),
        ("q" * 300, "x" * 300, "a", "asked", {"truncate": True}),
        ("q", "x" * 300, "a" * 300, "passage", {"generate": True}),
    ],
)
def test_what_does_not_fit_is_named(
    model: Any, jsonl: Write, tmp_path: Path, question: str, context: str, answer: Any,
    field: str, options: dict[str, Any],
) -> None:  # fmt: skip
    source = jsonl([{"asked": question, "passage": context, "gold": answer}])
    fields = Fields(question="asked", context="passage", answer="gold")
    with pytest.raises(RowError, match=f"line 1, field '{field}': .*(window|nothing of)"):
        score_file(model, source, tmp_path / "s.jsonl", fields=fields, **FAST, **options)


def test_bad_rows_are_set_aside(model: Any, jsonl: Write, rows: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    lines = [BAD[0][0], *rows[:6], BAD[1][0], *rows[6:], b"\xff"]
    summary = score_file(model, jsonl(lines), out, window=4, on_error="skip", **FAST)
    assert [record["id"] for record in records(out)] == [row["id"] for row in rows]
    errors = tmp_path / "scores.jsonl.errors.jsonl"
    assert (summary.rows, summary.skipped, summary.errors) == (13, 3, str(errors))
    aside = records(errors)
    assert [(one["line"], one["field"]) for one in aside] == [
        (1, "context"), (8, "context"), (16, None)
    ]  # fmt: skip
    assert aside[0]["raw"] == '{"question": ""}'
    assert json.loads(aside[1]["raw"])["contexts"] == ["x" * 400]
    assert aside[2]["raw"] == "\\xff"
    # Without bad rows the old list goes.
    score_file(model, jsonl(rows), out, overwrite=True, **FAST)
    assert not errors.exists()


def test_a_row_that_breaks_its_batch_is_told_from_the_others(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Scorer.score

    def broken(self: Scorer, some: Any) -> Any:
        some = list(some)
        if any(one.row.line == 5 for one in some):
            raise LogitsError("logits hold NaN")
        return score(self, some)

    monkeypatch.setattr(Scorer, "score", broken)
    out = tmp_path / "scores.jsonl"
    score_file(model, jsonl(rows), out, on_error="skip", **FAST)
    assert [record["line"] for record in records(out)] == [1, 2, 3, 4, *range(6, 14)]
    (aside,) = records(tmp_path / "scores.jsonl.errors.jsonl")
    assert (aside["line"], aside["reason"]) == (5, "logits hold NaN")
    with pytest.raises(RowError, match="line 5: logits hold NaN"):
        score_file(model, jsonl(rows), out, overwrite=True, on_error="stop", **FAST)
    assert len(records(tmp_path / "scores.jsonl.partial")) == 4


def test_no_more_rows_are_held_than_a_window(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, done, held = [0], [0], []
    open_source, commit = run.open_source, Ledger.commit

    class Counted:
        def __init__(self, source: Any) -> None:
            self._source = source

        def __getattr__(self, name: str) -> Any:
            return getattr(self._source, name)

        def rows(self, start: Any) -> Any:
            for item in self._source.rows(start):
                taken[0] += 1
                held.append(taken[0] - done[0])
                yield item

    def counted(self: Ledger, records: bytes, errors: bytes, place: Any, counts: Any) -> None:
        commit(self, records, errors, place, counts)
        done[0] += counts["scored"] + counts["skipped"]

    monkeypatch.setattr(run, "open_source", lambda *given: Counted(open_source(*given)))
    monkeypatch.setattr(Ledger, "commit", counted)
    out = tmp_path / "scores.jsonl"
    source = jsonl([row if n % 9 else b"bad" for n, row in enumerate(rows * 4)])
    score_file(model, source, out, window=6, on_error="skip", **FAST)
    assert done == taken == [52]
    assert max(held) == 6
    # Long rows fill a window sooner.
    monkeypatch.setattr(run, "_TEXT", 60)
    taken[0] = done[0] = 0
    held.clear()
    score_file(model, source, out, window=6, on_error="skip", overwrite=True, **FAST)
    assert done == taken == [52]
    assert max(held) < 5


def test_progress_never_goes_back_and_reaches_the_end(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path
) -> None:
    told: list[Progress] = []
    source, out = jsonl(rows), tmp_path / "scores.jsonl"
    score_file(model, source, out, batch_size=2, window=5, progress=told.append, **FAST)
    assert told[0] == Progress(0, 0.0)
    assert told[-1] == Progress(13, 1.0)
    assert len(told) > 6
    for one, other in zip(told, told[1:], strict=False):
        assert one.rows <= other.rows
        assert one.done <= other.done


def test_files_that_must_not_be_written(model: Any, jsonl: Write, tmp_path: Path) -> None:
    source = jsonl([{"question": "q", "context": "c"}])

    def refused(out: Any, **more: Any) -> str:
        with pytest.raises(OutputError) as caught:
            score_file(model, source, out, **more)
        return str(caught.value)

    (tmp_path / "folder.jsonl").mkdir()
    assert "not a regular file" in refused(tmp_path / "folder.jsonl")
    assert "must end in .jsonl" in refused(tmp_path / "scores.csv")
    assert "there is no folder" in refused(tmp_path / "none" / "scores.jsonl")
    assert "overwrite the input" in refused(source, overwrite=True)
    (tmp_path / "link.jsonl").symlink_to(source)
    assert "overwrite the input" in refused(tmp_path / "link.jsonl", overwrite=True)
    errors = source.rename(tmp_path / "s.jsonl.errors.jsonl")
    with pytest.raises(OutputError, match="overwrite the input"):
        output(tmp_path / "s.jsonl", errors, overwrite=True)
    errors.rename(source)
    if Path("/proc").is_dir():  # even root may write nothing there
        assert "cannot write" in refused("/proc/scores.jsonl")
    out = tmp_path / "scores.jsonl"
    out.write_text("mine")
    assert "--overwrite" in refused(out)
    assert out.read_text() == "mine"
    left = {"folder.jsonl", "link.jsonl", "rows.jsonl", "scores.jsonl"}
    assert set(os.listdir(tmp_path)) == left


def test_options_are_checked(model: Any, jsonl: Write, tmp_path: Path) -> None:
    source, out = jsonl([{"question": "q", "context": "c"}]), tmp_path / "scores.jsonl"
    wrong: dict[str, Any] = {
        "on_error": "ignore",
        "batch_size": 0,
        "batch_tokens": 1.5,
        "window": True,
        "n": 2,
    }
    for option, value in wrong.items():
        with pytest.raises(InvalidParameterError, match=option):
            score_file(model, source, out, **{option: value})
    with pytest.raises(EmptyInputError, match="holds no rows"):
        score_file(model, jsonl([b"", b" "]), out)
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_full_disk_leaves_nothing_half_done(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path, ending: str
) -> None:
    source, out = jsonl(rows), tmp_path / f"scores.{ending}"
    whole = score_file(model, source, tmp_path / f"whole.{ending}", window=3, **FAST)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures = 0
    # A limit on the size of a file stands in for a full disk: the write fails in its middle.
    for limit in (300, 2500, 5000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OutputError, match="cannot write .*the same call goes on"):
                score_file(model, source, out, window=3, **FAST)
            failures += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not out.exists()
    assert failures == 3
    summary = score_file(model, source, out, window=3, **FAST)
    assert summary.rows == whole.rows
    assert summary.resumed > 0
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
