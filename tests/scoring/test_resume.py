"""A run that is cut short at any moment goes on with no row lost and none doubled."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import conflictkit as ck
from conflictkit.errors import OutputError, ResumeError, RowError
from conflictkit.scoring import Scorer, score_file
from conflictkit.scoring.ledger import Ledger
from conflictkit.scoring.reading import open_source
from conflictkit.scoring.rows import Fields
from tests.tiny import byte_tokenizer, llama

Write = Callable[..., Path]
FAST: dict[str, Any] = {"scores": ["jsd"], "max_new_tokens": 3, "window": 3, "tokens": False}


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def short(rows: list[dict[str, Any]]) -> list[Any]:
    """Few rows, quickly scored, one of them bad."""
    answered = [row for row in rows if "answer" in row][:6]
    return [*answered[:3], b"bad", *answered[3:]]


def crash_at(monkeypatch: pytest.MonkeyPatch, moment: int, *, after: bool) -> list[int]:
    """Let the process end before or after its nth call that changes something on the disk."""
    calls = [0]

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == moment and not after:
                raise Crash
            made = call(*arguments, **options)
            if calls[0] == moment:
                raise Crash
            return made

        return do

    for name in ("fsync", "replace", "open"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", watched(Path.unlink))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_crash_at_any_moment_changes_nothing(
    model: Any, jsonl: Write, short: list[Any], tmp_path: Path, ending: str, after: bool
) -> None:
    source = jsonl(short)
    for place in ("whole", "torn"):
        (tmp_path / place).mkdir()
    whole, out = tmp_path / "whole" / f"s.{ending}", tmp_path / "torn" / f"s.{ending}"
    score_file(model, source, whole, on_error="skip", **FAST)
    moment, crashed, resumed = 0, True, set()
    while crashed:
        moment += 1
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, moment, after=after)
            try:
                score_file(model, source, out, on_error="skip", **FAST)
                crashed = False
            except Crash:
                assert not out.exists() or out.read_bytes() == whole.read_bytes()
        if crashed and (not out.exists() or Path(f"{out}.journal").exists()):
            summary = score_file(model, source, out, on_error="skip", **FAST)
            resumed.add(summary.resumed)
            assert (summary.rows, summary.skipped) == (6, 1)
        assert sorted(os.listdir(out.parent)) == sorted(os.listdir(whole.parent))
        for name in os.listdir(whole.parent):
            assert (out.parent / name).read_bytes() == (whole.parent / name).read_bytes()
            (out.parent / name).unlink()
    assert moment > 20
    assert resumed == {0, 3, 6, 7}


@pytest.mark.slow
def test_kill_9_at_random_moments(jsonl: Write, rows: list[Any], tmp_path: Path) -> None:
    llama(vocab=261).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    source = jsonl([*rows, b"bad", *rows])
    out = tmp_path / "scores.jsonl"
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "model", source, out, "0"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= 3
    whole = tmp_path / "whole.jsonl"
    model = ck.load(str(tmp_path / "model"))
    score_file(model, source, whole, window=3, on_error="skip", scores=["jsd"])
    assert out.read_bytes() == whole.read_bytes()
    errors = tmp_path / "scores.jsonl.errors.jsonl"
    assert errors.read_bytes() == (tmp_path / "whole.jsonl.errors.jsonl").read_bytes()


def begin(model: Any, source: Path, out: Path, windows: int = 1, **options: Any) -> None:
    """A run that ends after so many windows."""
    commit, done = Ledger.commit, [0]

    def limited(self: Ledger, *arguments: Any) -> None:
        commit(self, *arguments)
        done[0] += 1
        if done[0] == windows:
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "commit", limited)
        with pytest.raises(Crash):
            score_file(model, source, out, **{**FAST, **options})


def test_the_records_are_on_the_disk_before_the_journal_says_so(
    model: Any, jsonl: Write, short: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, order = tmp_path / "s.jsonl", []

    def spy(handle: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
        lines = Path(f"{out}.journal").read_bytes().count(b"\n")
        order.append((name.removeprefix("s.jsonl."), lines))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is brought to the disk")
    monkeypatch.setattr(os, "fsync", spy)
    begin(model, jsonl(short), out, windows=2, on_error="skip")
    # Settings and first mark, then two windows; the second one holds the bad row.
    assert order[-5:] == [
        ("partial", 2), ("journal", 3), ("partial", 3), ("errors.jsonl.partial", 3), ("journal", 4)
    ]  # fmt: skip


def test_what_was_never_promised_is_cut_off(
    model: Any, jsonl: Write, short: list[Any], tmp_path: Path
) -> None:
    source, whole = jsonl(short), tmp_path / "whole.jsonl"
    score_file(model, source, whole, on_error="skip", **FAST)
    for number, torn in enumerate((b'{"line": 4, "id', b"\0\0\0\n", b"[1]\n", b"7")):
        out = tmp_path / f"s{number}.jsonl"
        begin(model, source, out, windows=2, on_error="skip")
        for ending in (".partial", ".errors.jsonl.partial", ".journal"):
            with open(f"{out}{ending}", "ab") as file:
                file.write(torn)
        summary = score_file(model, source, out, on_error="skip", **FAST)
        assert summary.resumed == 6
        assert out.read_bytes() == whole.read_bytes()
        aside = tmp_path / f"s{number}.jsonl.errors.jsonl"
        assert aside.read_bytes() == (tmp_path / "whole.jsonl.errors.jsonl").read_bytes()


def test_a_run_goes_on_only_as_it_was(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path
) -> None:
    source, out = jsonl(rows), tmp_path / "s.jsonl"
    begin(model, source, out, windows=2)
    other = ck.load(llama(vocab=261, seed=1), tokenizer=byte_tokenizer())

    def refused(given: Any = model, path: Path = source, **options: Any) -> str:
        with pytest.raises(ResumeError, match="--overwrite") as caught:
            score_file(given, path, out, **{**FAST, **options})
        return str(caught.value)

    assert "model was" in refused(other)
    assert 'scores was ["jsd"], is ["total_variation"]' in refused(scores=["total-variation"])
    assert "tokens was false, is true" in refused(tokens=True)
    assert "method was" in refused(method="cad")
    assert "decoding was" in refused(max_new_tokens=4)
    assert "wording was" in refused(truncate=True)
    assert "generate was" in refused(generate=True)
    assert "fields was" in refused(fields=Fields(id="id"))
    changed = jsonl([{**rows[0], "context": "other"}, *rows[1:]], "changed.jsonl")
    assert "rows of" in refused(path=changed)
    assert "rows of" in refused(path=jsonl(rows[:3], "shorter.jsonl"))
    # What has not been read may change, and so may what moves no number.
    longer = jsonl([*rows[:10], rows[11], rows[0]], "longer.jsonl")
    summary = score_file(
        model, longer, out, batch_size=1, on_error="skip", **{**FAST, "window": 100}
    )
    assert (summary.resumed, summary.rows) == (6, 12)
    names = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert names == [*(f"r{n}" for n in range(10)), "r11", "r0"]


def test_overwrite_goes_on_or_starts_over(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path
) -> None:
    source, out = jsonl(rows), tmp_path / "s.jsonl"
    begin(model, source, out, windows=2)
    assert score_file(model, source, out, overwrite=True, **FAST).resumed == 6
    begin(model, source, out, windows=2, overwrite=True)
    assert out.exists()  # the finished file stays until there is another
    summary = score_file(model, source, out, "cad", overwrite=True, generate=True, **FAST)
    assert (summary.resumed, summary.rows) == (0, 13)
    assert {json.loads(line)["method"] for line in out.read_text().splitlines()} == {"cad"}


@pytest.mark.parametrize("ending", [".partial", ".errors.jsonl.partial"])
def test_files_that_somebody_shortened_are_not_believed(
    model: Any, jsonl: Write, short: list[Any], tmp_path: Path, ending: str
) -> None:
    source, out = jsonl(short), tmp_path / "s.jsonl"
    begin(model, source, out, windows=2, on_error="skip")
    part = Path(f"{out}{ending}")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ResumeError, match="the length of"):
        score_file(model, source, out, on_error="skip", **FAST)
    part.unlink()
    with pytest.raises(ResumeError, match="the length of"):
        score_file(model, source, out, on_error="skip", **FAST)


def stop_at(call: str, model: Any, source: Path, out: Path, **options: Any) -> None:
    """A run that ends before its first such call of `os` for the output, or `Path` for the journal.

    `replace`: the input was read to its end, and the output is not in its place; `unlink`: it is.
    """
    place = os if call == "replace" else Path
    kept = getattr(place, call)

    def limited(*given: Any, **more: Any) -> Any:
        if str(given[-1]) in (str(out), f"{out}.journal"):
            raise Crash
        return kept(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, call, limited)
        with pytest.raises(Crash):
            score_file(model, source, out, **{**FAST, **options})


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_rows_that_are_added_at_the_last_moment_are_scored(
    model: Any, write: Write, rows: list[Any], tmp_path: Path, ending: str
) -> None:
    out, name = tmp_path / "s.jsonl", f"rows.{ending}"
    given = [row for row in rows if "answer" in row and isinstance(row["context"], str)]
    assert len(given) > 5
    stop_at("replace", model, write(given[:3], name), out)
    source = write(given[:5], name)
    stop_at("replace", model, source, out)
    summary = score_file(model, source, out, **FAST)
    assert (summary.resumed, summary.rows) == (5, 5)
    whole = tmp_path / "whole.jsonl"
    score_file(model, source, whole, **FAST)
    assert out.read_bytes() == whole.read_bytes()
    # Once the output is in its place, rows cannot be added to it.
    stop_at("unlink", model, source, out, overwrite=True)
    assert out.exists()
    source = write(given[:6], name)
    with pytest.raises(ResumeError, match="rows were added to .*--overwrite"):
        score_file(model, source, out, **FAST)
    assert score_file(model, source, out, overwrite=True, **FAST).rows == 6


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_last_row_that_grew_is_not_believed(
    model: Any, write: Write, rows: list[Any], tmp_path: Path, ending: str
) -> None:
    out, given = tmp_path / "s.jsonl", [row for row in rows if isinstance(row["context"], str)]
    source = write(given, f"rows.{ending}")
    source.write_bytes(source.read_bytes().rstrip(b"\r\n"))
    stop_at("replace", model, source, out)
    source.write_bytes(source.read_bytes() + b" more\n")
    with pytest.raises(ResumeError, match=f"line {len(given) + (ending == 'csv')} .*longer"):
        score_file(model, source, out, **FAST)


def test_a_row_of_a_table_may_be_mended(
    model: Any, write: Write, rows: list[Any], tmp_path: Path
) -> None:
    out = tmp_path / "s.jsonl"
    given = [{**row, "context": [row["id"]]} for row in rows]
    broken = [*given[:8], {**given[8], "context": None}, *given[9:]]
    with pytest.raises(RowError, match="line 9"):
        score_file(model, write(broken, "rows.parquet"), out, **FAST)
    summary = score_file(model, write(given, "rows.parquet"), out, **FAST)
    assert (summary.resumed, summary.rows) == (8, 13)
    with pytest.raises(RowError, match="line 9"):
        score_file(model, write(broken, "rows.parquet"), out, overwrite=True, **FAST)
    given[7] = {**given[7], "context": ["other"]}
    with pytest.raises(ResumeError, match="the rows of"):
        score_file(model, write(given, "rows.parquet"), out, **FAST)


def test_a_run_goes_on_only_with_a_model_that_reads_as_it_did(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path
) -> None:
    source, out = jsonl(rows), tmp_path / "s.jsonl"

    def refused(net: Any, tokenizer: Any) -> str:
        with pytest.raises(ResumeError, match="--overwrite") as caught:
            score_file(ck.load(net, tokenizer=tokenizer), source, out, **FAST)
        return str(caught.value)

    begin(model, source, out, windows=2)
    chatty, lower, spelled = byte_tokenizer(chat=True), byte_tokenizer(), byte_tokenizer()
    assert "tokenizer was" in refused(model.model, chatty)
    lower.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    assert "tokenizer was" in refused(model.model, lower)
    spelled.add_tokens(["because"])
    assert "tokenizer was" in refused(model.model, spelled)
    stretched = copy.deepcopy(model.model)
    stretched.config.rope_parameters = {**stretched.config.rope_parameters, "rope_theta": 777.0}
    assert "config was" in refused(stretched, byte_tokenizer())
    ends = copy.deepcopy(model.model)
    ends.generation_config.eos_token_id = [1, 70]
    assert "ends was" in refused(ends, byte_tokenizer())
    # Read from a folder, it is the same model.
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    again = ck.load(str(tmp_path / "model"))
    assert score_file(again, source, out, **FAST).resumed == 6


def test_one_run_at_a_time(model: Any, jsonl: Write, rows: list[Any], tmp_path: Path) -> None:
    source, out = jsonl(rows), tmp_path / "s.jsonl"
    with (
        Ledger(out, open_source(source, Fields()), {}),
        pytest.raises(OutputError, match="another run is writing"),
    ):
        score_file(model, source, out, **FAST)


def test_an_interruption_keeps_the_windows_before_it(
    model: Any, jsonl: Write, rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, score, calls = jsonl(rows), tmp_path / "s.jsonl", Scorer.score, [0]

    def interrupted(self: Scorer, some: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return score(self, some)

    monkeypatch.setattr(Scorer, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_file(model, source, out, **FAST)
    assert not out.exists()
    summary = score_file(model, source, out, **FAST)
    assert summary.resumed == 6
    assert summary.rows == 13
