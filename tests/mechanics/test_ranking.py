"""Ranking heads: means of what the analyses say, and runs that are cut short."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import conflictkit as ck
from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    LogitsError,
    OutputError,
    ResumeError,
    UnknownNameError,
)
from conflictkit.evaluation.cases import cases_hash
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.mechanics import attribution, items, patching
from conflictkit.mechanics import ranking as ranking_module
from conflictkit.mechanics.items import Item
from conflictkit.mechanics.ranking import ANALYSES, Analysis, rank
from conflictkit.types import Case
from tests.tiny import byte_tokenizer, llama


@pytest.fixture(scope="module")
def model() -> Any:
    return ck.load(llama(vocab=261), tokenizer=byte_tokenizer(chat=True))


def case(number: int) -> Case:
    name = "abcdefghij"[number]
    return Case(
        id=f"c{number}", split="train", relation="r", subject=f"S{name}",
        question=f"Who is S{name}?", contexts=(f"S{name} is {name.upper()}.",), context_kind="bare",
        memory_answers=(f"{name}m",), context_answers=(name.upper(),), gold_answers=(f"{name}m",),
        state="resistance", meta={"statement": f"S{name} is"},
    )  # fmt: skip


CASES = [case(number) for number in range(6)]


class Fake:
    """An analysis whose tables are known: case number n scores n everywhere, and head (0, 1) is
    ten times as good."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stop_at: str | None = None

    def build(self, _: Any, cases: Any) -> tuple[list[Item], dict[str, int]]:
        found = [Item((1,), 1, 2, (0, 1), case_id=case.id) for case in cases]
        return found[1:], {"fake": 1}

    def score(self, _: Any, item: Item) -> dict[str, Tensor]:
        if item.case_id == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(item.case_id)
        table = torch.full((2, 3), int(item.case_id[-1]) / 3)
        table[0, 1] *= 10
        return {"context": table, "memory": -table}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setitem(ANALYSES, "fake", Analysis(made.build, made.score))
    return made


def test_a_ranking_is_the_mean_with_its_standard_error(model: Any, fake: Fake) -> None:
    steps: list[tuple[int, int]] = []
    made = rank(model, CASES, by="fake", seed=4, progress=lambda *step: steps.append(step))
    assert made.table("context")[1, 2].item() == pytest.approx(1.0, abs=1e-8)  # (1+2+3+4+5)/3/5
    assert made.table("memory")[0, 1].item() == pytest.approx(-10.0, abs=1e-7)
    error = torch.tensor([1, 2, 3, 4, 5], dtype=torch.float64).std().item() / 3 / math.sqrt(5)
    assert made.errors["context"][1][2] == pytest.approx(error, rel=1e-6)
    assert (made.cases, made.dropped, made.seed, made.by) == (5, {"fake": 1}, 4, "fake")
    assert (made.model, made.fingerprint) == (model.name, model.fingerprint)
    assert made.top("context", 1) == ((0, 1),)
    assert steps == [(n, 5) for n in range(6)]
    assert rank(model, CASES[:2], by="fake").errors == {}  # one case has no standard error


def test_cases_are_named_as_evaluate_names_them(model: Any, fake: Fake) -> None:
    assert rank(model, CASES, by="fake").cases_hash == cases_hash(CASES)
    atlas = ck.atlas.cases("validation")[:5]
    assert rank(model, atlas, by="fake").cases_hash == cases_hash(atlas)


def test_a_limit_draws_from_what_can_be_used(model: Any, fake: Fake) -> None:
    drawn = []
    for seed in range(4):
        fake.asked.clear()
        made = rank(model, CASES, by="fake", limit=2, seed=seed)
        assert (made.cases, made.dropped) == (2, {"fake": 1, "not drawn": 3})
        assert "c0" not in fake.asked
        drawn.append(tuple(fake.asked))
    assert len(set(drawn)) > 1
    fake.asked.clear()
    rank(model, CASES, by="fake", limit=2, seed=3)
    assert tuple(fake.asked) == drawn[3]
    with pytest.raises(InvalidParameterError, match="limit"):
        rank(model, CASES, by="fake", limit=0)


def test_an_interrupted_run_goes_on_and_does_nothing_twice(
    model: Any, fake: Fake, tmp_path: Path
) -> None:
    whole = rank(model, CASES, by="fake", out=tmp_path / "whole.json")
    assert os.listdir(tmp_path) == ["whole.json"]
    fake.asked.clear()
    out = tmp_path / "heads.json"
    for stop in ("c3", "c5"):
        fake.stop_at = stop
        with pytest.raises(KeyboardInterrupt):
            rank(model, CASES, by="fake", out=out)
        assert not out.exists()
    fake.stop_at = None
    steps: list[tuple[int, int]] = []
    made = rank(model, CASES, by="fake", out=out, progress=lambda *step: steps.append(step))
    assert fake.asked == ["c1", "c2", "c3", "c4", "c5"]
    assert steps == [(4, 5), (5, 5)]
    assert made == whole
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["heads.json", "whole.json"]


def test_a_line_cut_in_the_middle_costs_that_item_alone(
    model: Any, fake: Fake, tmp_path: Path
) -> None:
    out, kept = tmp_path / "heads.json", tmp_path / "heads.json.partial"
    fake.stop_at = "c4"
    with pytest.raises(KeyboardInterrupt):
        rank(model, CASES, by="fake", out=out)
    whole = kept.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    fake.stop_at = None
    for cut in (0, 5, ends[0], ends[0] + 9, ends[1], ends[2] - 1, len(whole)):
        kept.write_bytes(whole[:cut])
        fake.asked.clear()
        rank(model, CASES, by="fake", out=out, overwrite=True)
        done = max(sum(end <= cut for end in ends) - 1, 0)
        assert fake.asked == [f"c{n}" for n in range(done + 1, 6)]
    kept.write_bytes(whole[: ends[1] + 7])
    for stop in ("c3", "c5", None):  # what is appended to a cut line can be read again
        fake.stop_at = stop
        with contextlib.suppress(KeyboardInterrupt):
            rank(model, CASES, by="fake", out=out, overwrite=True)
    assert fake.asked[-4:] == ["c2", "c3", "c4", "c5"]
    assert not kept.exists()


def test_another_run_is_refused(
    model: Any, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "heads.json"
    fake.stop_at = "c3"
    with pytest.raises(KeyboardInterrupt):
        rank(model, CASES, by="fake", out=out)
    kept = (tmp_path / "heads.json.partial").read_bytes()
    fake.stop_at = None
    fake.asked.clear()
    other = ck.load(llama(vocab=261, seed=1), tokenizer=byte_tokenizer(chat=True))
    for given, said in (
        ((other, CASES, "fake"), "differs in model"),
        ((model, CASES[:5], "fake"), "differs in cases"),
        ((model, CASES, "attribution"), "differs in by"),
    ):
        with pytest.raises(ResumeError, match=said):
            rank(given[0], given[1], by=given[2], out=out)
    assert fake.asked == []
    assert (tmp_path / "heads.json.partial").read_bytes() == kept
    rank(model, CASES[:5], by="fake", out=out, overwrite=True)
    assert fake.asked == ["c1", "c2", "c3", "c4"]


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n", b"[]\n", b'{"item": 9, "case": "c1"}\n',
        b'{"item": 0, "case": "c2", "context": [[1]]}\n',
        b'{"item": 0, "case": "c1", "context": [[1, 2], [3]]}\n', b'{"item": 0, "case": "c1"}\n',
        b'{"item": 0, "case": "c1", "context": [[1, NaN]]}\n', b"[" * 50000 + b"\n", b"\xff\n",
        b'{"item": 0, "case": "c1", "context": [["a"]]}\n',
        b'{"item": 0, "case": "c1", "context": [[1]]}\n'
        b'{"item": 1, "case": "c2", "memory": [[1]]}\n',
    ],
)  # fmt: skip
def test_a_broken_partial_file_is_named(
    model: Any, fake: Fake, tmp_path: Path, line: bytes
) -> None:
    out, kept = tmp_path / "heads.json", tmp_path / "heads.json.partial"
    fake.stop_at = "c1"
    with pytest.raises(KeyboardInterrupt):
        rank(model, CASES, by="fake", out=out)
    kept.write_bytes(kept.read_bytes() + line)
    with pytest.raises(ResumeError, match="line [23] of .*heads.json.partial"):
        rank(model, CASES, by="fake", out=out)


def test_two_runs_do_not_write_at_once(model: Any, fake: Fake, tmp_path: Path) -> None:
    out = tmp_path / "heads.json"

    def score(*_: Any) -> dict[str, Tensor]:
        with pytest.raises(OutputError, match="another run is writing"):
            rank(model, CASES, by="fake", out=out)
        return {"context": torch.ones(1, 1)}

    fake.score = score  # type: ignore[method-assign]
    ANALYSES["fake"] = Analysis(fake.build, score)
    rank(model, CASES[:2], by="fake", out=out)


def test_a_file_is_not_replaced_unasked(model: Any, fake: Fake, tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    out.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        rank(model, CASES, by="fake", out=out)
    assert out.read_text() == "mine"
    assert fake.asked == []
    rank(model, CASES, by="fake", out=out, overwrite=True)
    assert HeadRanking.read(out).cases == 5
    with pytest.raises(OutputError, match="no folder"):
        rank(model, CASES, by="fake", out=tmp_path / "none" / "heads.json")


def test_a_run_killed_between_its_last_moves_ends(
    model: Any, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "heads.json"
    with monkeypatch.context() as patched:
        patched.setattr(ranking_module.Kept, "discard", lambda self: None)
        rank(model, CASES, by="fake", out=out)
    assert (tmp_path / "heads.json.partial").exists()
    before = out.read_bytes()
    fake.asked.clear()
    rank(model, CASES, by="fake", out=out)
    assert fake.asked == []
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == ["heads.json"]


KILLED = """
import os, sys, time, torch
import conflictkit as ck
from conflictkit.mechanics.ranking import ANALYSES, Analysis, rank
from tests.mechanics.test_ranking import CASES, Fake
from tests.tiny import byte_tokenizer, llama

fake = Fake()
def score(model, item):
    with open(sys.argv[2], "a") as log:
        log.write(item.case_id + "\\n")
    time.sleep(0.15)
    return fake.score(model, item)
ANALYSES["fake"] = Analysis(fake.build, score)
model = ck.load(llama(vocab=261), tokenizer=byte_tokenizer(chat=True))
rank(model, CASES, by="fake", out=sys.argv[1])
"""


@pytest.mark.slow
def test_kill_9_loses_at_most_one_item(model: Any, fake: Fake, tmp_path: Path) -> None:
    out, log = tmp_path / "heads.json", tmp_path / "log"
    command = [sys.executable, "-c", KILLED, str(out), str(log)]
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    while killed.poll() is None and (not log.exists() or log.read_text().count("\n") < 3):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = log.read_text().split()
    assert len(before) >= 3
    assert not out.exists()
    subprocess.run(command, cwd=root, check=True, stderr=subprocess.DEVNULL)
    asked = log.read_text().split()
    assert set(asked) == {f"c{n}" for n in range(1, 6)}
    assert len(asked) <= 6
    rank(model, CASES, by="fake", out=tmp_path / "whole.json")
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_what_cannot_be_ranked_is_said(model: Any, fake: Fake) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'path-patching'"):
        rank(model, CASES, by="path-patchin")
    with pytest.raises(UnknownNameError, match="valid: norm"):
        rank(model, CASES, by="attribution?nrm=frozen")
    with pytest.raises(UnknownNameError, match="valid: frozen, ignored"):
        rank(model, CASES, by="attribution?norm=none")
    with pytest.raises(EmptyInputError, match="none of 1 cases can be used: 1 fake"):
        rank(model, CASES[:1], by="fake")
    with pytest.raises(InvalidParameterError, match="expected a Case"):
        ranking_module.cases_hash(["a case"])  # type: ignore[list-item]

    def bad(*_: Any) -> dict[str, Tensor]:
        return {"context": torch.tensor([[math.nan]])}

    ANALYSES["fake"] = Analysis(fake.build, bad)
    with pytest.raises(LogitsError, match="case 'c1': a context score is not finite"):
        rank(model, CASES, by="fake")


Check = Callable[[Any, list[Item]], dict[str, Tensor]]


def _exact(model: Any, found: list[Item]) -> dict[str, Tensor]:
    memory, context = patching.path_patching(model, found, mlps="recomputed", measure="logit")
    return {"context": context, "memory": memory}


@pytest.mark.parametrize(
    ("by", "check"),
    [
        (
            "attribution?norm=ignored",
            lambda m, i: {"memory": attribution.attribution(m, i, norm="ignored")},
        ),
        (
            "attribution",
            lambda m, i: {"context": -attribution.attribution(m, i)},
        ),
        (
            "activation-patching",
            lambda m, i: {
                "context": patching.activation_patching(m, i),
                "memory": patching.activation_patching(m, i, corrupted="no_memory"),
            },
        ),
        ("path-patching-exact?measure=logit", _exact),
    ],
)
def test_every_analysis_is_the_mean_of_its_function(model: Any, by: str, check: Check) -> None:
    made = rank(model, CASES, by=by)
    found, dropped = items.build(model, CASES, require_corrupted="patching" in by)
    assert (made.cases, made.dropped, made.by) == (len(found), dropped, by)
    assert len(found) >= 4
    for name, table in check(model, found).items():
        torch.testing.assert_close(made.table(name), table.double().mean(0), rtol=1e-4, atol=1e-5)


def test_attention_mass_tells_only_the_context(model: Any) -> None:
    made = rank(model, CASES, by="attention-mass")
    assert set(made.scores) == {"context"}
    assert 0 < made.table("context").min() <= made.table("context").max() <= 1


def test_juice_gives_its_lists(model: Any) -> None:
    from conflictkit.mechanics import juice

    made = rank(model, CASES[:2], by="juice")
    triples, _ = juice.build(model, CASES[:2])
    effects = juice.effects(model, triples)
    lists = effects.lists()
    assert made.enlarge == lists.enlarge
    assert made.suppress == lists.suppress
    summed = juice.means(effects.up).sum(-1)
    torch.testing.assert_close(made.table("memory"), summed, rtol=1e-4, atol=1e-7)


def test_the_partial_file_says_what_it_is_of(model: Any, fake: Fake, tmp_path: Path) -> None:
    fake.stop_at = "c2"
    with pytest.raises(KeyboardInterrupt):
        rank(model, CASES, by="fake", out=tmp_path / "heads.json")
    first, second = (tmp_path / "heads.json.partial").read_text().splitlines()
    settings = json.loads(first)
    assert settings["model"] == model.fingerprint
    assert settings["cases"] == cases_hash(CASES)
    assert json.loads(second)["case"] == "c1"
