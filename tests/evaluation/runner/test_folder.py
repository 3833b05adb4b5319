"""A run that is cut short at any moment goes on as if nothing had happened; others are refused."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit.errors import ConflictKitError, OutputError, ResumeError
from conflictkit.evaluation import evaluate, load_run
from conflictkit.evaluation.cases import write_cases
from conflictkit.evaluation.folder import Folder
from conflictkit.evaluation.metrics import summarise
from conflictkit.types import Case
from tests.evaluation.about import rounded
from tests.evaluation.runner.conftest import case, closed, rows
from tests.tiny import byte_tokenizer, llama

SPEC = "plain,grd,ck-plug?alpha=0:1:0.5"
FAST: dict[str, Any] = {"max_new_tokens": 3, "batch_size": 2}


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def few() -> list[Case]:
    """Three batches, one of them closed book, and a case that cannot be asked."""
    return [*map(case, range(4)), closed(1), case(5, id="long", contexts=("x" * 300,))]


def crash_at(patch: pytest.MonkeyPatch, moment: int, *, after: bool) -> None:
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

    for name in ("fsync", "replace", "open", "mkdir"):
        patch.setattr(os, name, watched(getattr(os, name)))
    patch.setattr(Path, "unlink", watched(Path.unlink))


def files(folder: Path) -> dict[str, Any]:
    """What a finished run holds, without what no two runs share."""
    info = json.loads((folder / "run.json").read_text())
    assert info.pop("started") <= info.pop("finished")
    return {
        "names": sorted(os.listdir(folder)),
        "run": info,
        "rows": rounded(rows(folder)),
        "errors": (folder / "errors.jsonl").read_text(),
        "cases": (folder / "cases.jsonl").read_text(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_moment_changes_nothing(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    few = [case(0), case(1), closed(1), case(5, id="long", contexts=("x" * 300,))]
    fast: dict[str, Any] = {"max_new_tokens": 1, "batch_size": 1}
    quick = partial(summarise, resamples=100)  # the intervals are not what is tested here
    monkeypatch.setattr("conflictkit.evaluation.runner.summarise", quick)
    evaluate(model, few, "plain,cad", tmp_path / "whole", **fast)
    whole = files(tmp_path / "whole")
    moment, crashed, kept = 0, True, set()
    while crashed:
        moment += 1
        out = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, moment, after=after)
            try:
                evaluate(model, few, "plain,cad", out, **fast)
                crashed = False
            except Crash:
                pass
        if crashed:
            path = out / "rows.jsonl"
            kept.add(path.read_bytes().count(b"\n") if path.exists() else 0)
            evaluate(model, few, "plain,cad", out, **fast)
        assert files(out) == whole
    assert moment > 15
    assert kept == {0, 2, 4, 6}


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    llama(vocab=261).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    cases = [*map(case, range(12)), *map(closed, range(3)), case(13, contexts=("x" * 300,))]
    write_cases(tmp_path / "cases.jsonl", cases)
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("killed.py"),
            *(tmp_path / name for name in ("model", "cases.jsonl", "run")),
            "0",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills"] >= 3
    model, threads = ck.load(str(tmp_path / "model")), torch.get_num_threads()
    # As many as the killed run had: another number rounds otherwise.
    torch.set_num_threads(1)
    try:
        evaluate(
            model, str(tmp_path / "cases.jsonl"), "plain,memory,grd,ck-plug?alpha=0:1:0.5",
            tmp_path / "whole", batch_size=2, max_new_tokens=4,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert len(rows(tmp_path / "run")) == 15 * 6


def begin(model: Any, cases: list[Case], out: Path, batches: int = 1, **options: Any) -> None:
    """A run that ends after so many batches."""
    add, done = Folder.add, [0]

    def limited(self: Folder, results: Any, aside: Any = ()) -> None:
        add(self, results, aside)
        done[0] += bool(results)
        if done[0] == batches:
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "add", limited)
        with pytest.raises(Crash):
            evaluate(model, cases, SPEC, out, **{**FAST, **options})


@pytest.mark.slow
@pytest.mark.parametrize("torn", [b'{"case": "c1", "me', b"\0\0\0\n", b"[1]\n", b"7"])
def test_what_a_crash_tore_is_cut_off(
    model: Any, few: list[Case], tmp_path: Path, torn: bytes
) -> None:
    evaluate(model, few, SPEC, tmp_path / "whole", **FAST)
    out = tmp_path / "run"
    begin(model, few, out, batches=2)
    for name in ("rows.jsonl", "errors.jsonl"):
        with (out / name).open("ab") as file:
            file.write(torn)
    assert not load_run(out).finished
    assert len(load_run(out).results) == 15
    evaluate(model, few, SPEC, out, **FAST)
    assert files(out) == files(tmp_path / "whole")


def test_a_damaged_line_costs_no_other(model: Any, few: list[Case], tmp_path: Path) -> None:
    evaluate(model, few, SPEC, tmp_path, **FAST)
    before = files(tmp_path)
    path = tmp_path / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:3], b"<<<<<<< mine\n", *lines[4:]])
    path.write_bytes(damaged)
    said = r"rows\.jsonl', line 4 is damaged"
    for _ in range(2):
        with pytest.raises(OutputError, match=said):
            evaluate(model, few, SPEC, tmp_path, **FAST)
        with pytest.raises(OutputError, match=said):
            assert load_run(tmp_path).results
        assert path.read_bytes() == damaged
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    assert evaluate(model, few, SPEC, tmp_path, **FAST).finished
    after = files(tmp_path)
    order = operator.itemgetter("case", "method")
    assert sorted(after.pop("rows"), key=order) == sorted(before.pop("rows"), key=order)
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 7, 24])
def test_a_finished_run_that_lost_rows_says_so_and_gets_them_back(
    model: Any, few: list[Case], tmp_path: Path, kept: int
) -> None:
    evaluate(model, few, SPEC, tmp_path, **FAST)
    before = files(tmp_path)
    path = tmp_path / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:kept], lines[kept][:-9]]))
    with pytest.raises(OutputError, match=rf"lacks {25 - kept} of .* of case .* and method"):
        assert load_run(tmp_path).results
    # Whenever it is cut short again, nothing takes it for a finished run.
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, few, SPEC, tmp_path, progress=interrupt, **FAST)
    run = load_run(tmp_path)
    assert (len(run.results), run.finished, run.summary) == (kept, False, None)
    assert evaluate(model, few, SPEC, tmp_path, **FAST).finished
    assert files(tmp_path) == before
    path.unlink()
    with pytest.raises(OutputError, match=r"rows\.jsonl' cannot be read"):
        assert load_run(tmp_path).results


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_of_which_rows_are_missing_is_never_finished(
    model: Any, few: list[Case], tmp_path: Path
) -> None:
    begin(model, few, tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    with (
        Folder(tmp_path, info, few) as folder,
        pytest.raises(OutputError, match="lacks 20 of the results"),
    ):
        folder.finish(summarise(few, load_run(tmp_path).results, resamples=100))
    assert not load_run(tmp_path).finished


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1, 7, 12])
def test_a_batch_that_was_half_written_is_done_again_and_written_once(
    model: Any, few: list[Case], tmp_path: Path, kept: int
) -> None:
    evaluate(model, few, SPEC, tmp_path / "whole", **FAST)
    out = tmp_path / "run"
    begin(model, few, out, batches=2)
    lines = (out / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (out / "rows.jsonl").write_bytes(b"".join(lines[:kept]))
    evaluate(model, few, SPEC, out, **FAST)
    assert files(out) == files(tmp_path / "whole")
    assert (out / "rows.jsonl").read_bytes().startswith(b"".join(lines[:kept]))


def test_what_is_done_is_not_done_again(
    model: Any, few: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(model, few, tmp_path, batches=2)
    told: list[int] = []
    passes = [0]
    hook = model.model.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    try:
        evaluate(model, few, SPEC, tmp_path, progress=lambda at: told.append(at.rows), **FAST)
        assert told == [15, 25]
        assert passes[0]
        before, count = (tmp_path / "rows.jsonl").read_bytes(), passes[0]
        run = evaluate(model, few, SPEC, tmp_path, **FAST)
        assert (passes[0], run.finished) == (count, True)
        assert (tmp_path / "rows.jsonl").read_bytes() == before
        evaluate(model, few, SPEC, tmp_path, overwrite=True, **FAST)
        assert passes[0] > count
    finally:
        hook.remove()


def test_a_run_goes_on_only_as_it_was(model: Any, few: list[Case], tmp_path: Path) -> None:
    begin(model, few, tmp_path)
    other = ck.load(llama(vocab=261, seed=1), tokenizer=byte_tokenizer())

    def refused(given: Any = model, cases: Any = few, spec: str = SPEC, **options: Any) -> str:
        with pytest.raises(ResumeError, match="--overwrite") as caught:
            evaluate(given, cases, spec, tmp_path, **{**FAST, **options})
        return str(caught.value)

    assert "model.fingerprint was" in refused(other)
    assert "cases.hash was" in refused(cases=[*few[:-1], replace(few[-1], question="Else?")])
    assert "cases.count was 6, is 5" in refused(cases=few[:-1])
    assert 'methods was ["plain"' in refused(spec="plain,grd")
    assert "policies" not in refused(spec="plain,grd,cad")
    assert refused(spec="plain,cad").count(" was ") == 1
    assert "methods was" in refused(spec="grd,plain,ck-plug?alpha=0:1:0.5")
    assert "options.max_new_tokens was 3, is 4" in refused(max_new_tokens=4)
    assert "options.seed was 0, is 1" in refused(seed=1)
    assert "options.top was 3, is 2" in refused(top=2)
    assert "options.chat was null, is false" in refused(chat=False)
    # What moves no number may change.
    run = evaluate(model, few, SPEC, tmp_path, batch_tokens=9999, **{**FAST, "batch_size": 1})
    assert len(run.results) == 25
    assert "methods was" in refused(spec="plain")
    evaluate(model, few, "plain", tmp_path, overwrite=True, **FAST)
    assert load_run(tmp_path).info["methods"] == ["plain"]


def test_the_version_of_a_library_is_part_of_a_run(
    model: Any, few: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(model, few, tmp_path)
    monkeypatch.setattr("torch.__version__", "1.0")
    with pytest.raises(ResumeError, match=r"versions.torch was .*, is \"1.0\""):
        evaluate(model, few, SPEC, tmp_path, **FAST)


@pytest.mark.parametrize("line", ["again", "other case", "other method"])
def test_rows_of_another_run_are_refused(
    model: Any, few: list[Case], tmp_path: Path, line: str
) -> None:
    begin(model, few, tmp_path)
    first, *_ = rows(tmp_path, seconds=True)
    first |= {"other case": {"case": "x"}, "other method": {"method": "cad"}}.get(line, {})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(first) + "\n")
    with pytest.raises(ResumeError, match="not of this run, or twice"):
        evaluate(model, few, SPEC, tmp_path, **FAST)


@pytest.mark.parametrize("name", ["cases.jsonl", "rows.jsonl", "summary.json", "errors.jsonl"])
def test_a_folder_with_other_files_of_these_names_is_left_alone(
    model: Any, few: list[Case], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(OutputError, match=f"{name}' is there, but no run.json"):
        evaluate(model, few, "plain", tmp_path, overwrite=True)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine\n"


@pytest.mark.parametrize("text", ["[]", "{", '{"format": "other"}'])
def test_a_run_json_of_something_else_is_left_alone(
    model: Any, few: list[Case], tmp_path: Path, text: str
) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(OutputError, match=r"run\.json"):
        evaluate(model, few, "plain", tmp_path, overwrite=True)
    assert (tmp_path / "run.json").read_text() == text


def test_what_is_no_folder_or_cannot_be_written(
    model: Any, few: list[Case], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for out, said in (
        (tmp_path / "file", "not a folder"),
        (tmp_path / "file" / "x", "cannot write"),
    ):
        with pytest.raises(ConflictKitError, match=said):
            evaluate(model, few, "plain", out)


def test_one_run_at_a_time(model: Any, few: list[Case], tmp_path: Path) -> None:
    info = {"cases": {}, "methods": []}
    with (
        Folder(tmp_path, info, few),
        pytest.raises(OutputError, match="another run is writing"),
    ):
        evaluate(model, few, "plain", tmp_path, overwrite=True, **FAST)


def test_an_interruption_keeps_the_batches_before_it(
    model: Any, few: list[Case], tmp_path: Path
) -> None:
    def interrupt(at: Any) -> None:
        if at.rows == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, few, SPEC, tmp_path, progress=interrupt, **FAST)
    run = load_run(tmp_path)
    assert (len(run.results), run.finished, run.summary) == (15, False, None)
    assert evaluate(model, few, SPEC, tmp_path, **FAST).finished


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no run in"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "conflictkit-run", "version": 99}')
    with pytest.raises(OutputError, match="not written by this release"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "conflictkit-run", "version": 1}')
    with pytest.raises(OutputError, match="give its command again"):
        load_run(tmp_path)
