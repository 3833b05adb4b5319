"""`conflictkit rank-heads`: cases in, a ranking of heads out, what it says, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conflictkit.evaluation.cases.io import write_cases
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.mechanics.ranking import ANALYSES
from tests.cli.conftest import Run
from tests.evaluation.runner.conftest import case
from tests.tiny import byte_tokenizer, llama


@pytest.fixture(scope="session")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a chat template, answers begin with their own first letter."""
    place = tmp_path_factory.mktemp("models") / "chatting"
    llama(vocab=261).save_pretrained(place)
    byte_tokenizer(chat=True).save_pretrained(place)
    return place


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Ten conflicts, and two cases that are none."""
    path = tmp_path / "cases.jsonl"
    states = ["resistance"] * 5 + ["correction"] * 5 + ["irrelevant"]
    made = [
        case(n, state=state, subject=f"s{n}", split="test" if n % 2 else "train")
        for n, state in enumerate(states)
    ]
    same = case(11, state="agreement", memory_answers=("red",), context_answers=("red",))
    write_cases(path, [*made, same])
    return path


@pytest.fixture
def ranked(run: Run, cases: Path, chatting: Path, tmp_path: Path) -> Callable[..., Any]:
    """Rank the tiny model's heads into `heads.json`."""

    def call(*arguments: Any) -> Any:
        files = ("--cases", cases, "--model", chatting, "--out", tmp_path / "heads.json")
        return run("rank-heads", *files, *arguments)

    return call


def test_a_ranking_comes_out(ranked: Callable[..., Any], chatting: Path, tmp_path: Path) -> None:
    code, out, err = ranked("--by", "attribution")
    assert (code, err) == (0, "")
    made = HeadRanking.read(tmp_path / "heads.json")
    assert (made.by, made.model, made.layers, made.heads) == ("attribution", str(chatting), 2, 4)
    assert made.cases == 10 - sum(made.dropped.values())
    lines = out.splitlines()
    assert lines[0].split() == ["context", "memory"]
    layer, head = made.top("context", 1)[0]
    assert f"{layer}.{head} {made.scores['context'][layer][head]:.3g} ± " in lines[1]
    assert "8 heads by attribution" in out
    assert f"{made.cases} of 10 conflicts" in out
    assert str(tmp_path / "heads.json") in out.replace("\n", "")
    assert not (tmp_path / "heads.json.partial").exists()


def test_json_is_the_file_and_quiet_says_nothing(
    ranked: Callable[..., Any], tmp_path: Path
) -> None:
    code, out, _ = ranked("--by", "attention-mass", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "heads.json").read_text())
    assert ranked("--by", "attribution", "--overwrite", "--quiet") == (0, "", "")


def test_cases_can_be_limited_and_split(ranked: Callable[..., Any], tmp_path: Path) -> None:
    ranked("--by", "attribution", "--split", "train", "--quiet")
    train = HeadRanking.read(tmp_path / "heads.json")
    assert train.cases + sum(train.dropped.values()) == 5
    code, out, _ = ranked("--by", "attribution", "--limit", 2, "--seed", 5, "--overwrite")
    made = HeadRanking.read(tmp_path / "heads.json")
    assert (code, made.cases, made.seed) == (0, 2, 5)
    assert "not drawn" in out


def test_an_interrupted_run_goes_on(
    ranked: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = ANALYSES["attribution"]
    asked: list[str] = []

    def score(model: Any, item: Any, **options: Any) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(item.case_id)
        return analysis.score(model, item, **options)

    with monkeypatch.context() as patched:
        patched.setitem(ANALYSES, "attribution", replace(analysis, score=score))
        code, out, err = ranked("--by", "attribution")
        assert (code, out) == (130, "")
        assert "goes on from here" in err
        assert not (tmp_path / "heads.json").exists()
        assert "is of another run" in ranked("--by", "attention-mass").err
        first = list(asked)
        asked[:] = []
        assert ranked("--by", "attribution", "--quiet")[0] == 130
        assert not set(asked) & set(first)
    assert ranked("--by", "attribution", "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cases", "none.jsonl"), "none.jsonl"),
        (("--out", "/nowhere/heads.json"), "no folder '/nowhere'"),
        (("--by", "path-patchin"), "did you mean 'path-patching'"),
        (("--by", "attribution?norm=x"), "valid: frozen, ignored"),
        (("--split", "tests"), "no case is of split 'tests'"),
        (("--limit", "0"), "--limit"),
        (("--json", "--quiet"), "exclude each other"),
        (("--model", "no/such-model"), "no/such-model"),
    ],
)
def test_what_is_wrong_is_said(
    refused: Callable[..., str], cases: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given: dict[str, Any] = {"--cases": cases, "--out": tmp_path / "h.json", "--model": "no/model"}
    given = {name: value for name, value in given.items() if name not in arguments}
    rest = [part for pair in given.items() for part in pair]
    assert said in refused("rank-heads", *rest, *arguments)
    assert not (tmp_path / "h.json").exists()


def test_cases_without_a_conflict_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    write_cases(path, [case(n, state="irrelevant") for n in range(3)])
    said = refused("rank-heads", "--cases", path, "--out", tmp_path / "h.json", "--model", "no/one")
    assert "has a context that contradicts memory" in said


def test_a_ranking_is_not_replaced_unasked(
    refused: Callable[..., str], cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "heads.json"
    out.write_text("mine")
    files = ("--cases", cases, "--out", out, "--model", "no/such-model")
    assert "--overwrite" in refused("rank-heads", *files)
    assert out.read_text() == "mine"
