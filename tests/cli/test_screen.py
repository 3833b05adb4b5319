"""`conflictkit screen`: questions in, cases out, what it says, what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import conflictkit as ck
from conflictkit.atlas.templates import RELATIONS, fill
from conflictkit.evaluation import priors
from conflictkit.evaluation.cases.io import read_cases
from tests.cli.conftest import Run

Refused = Callable[..., str]


@pytest.fixture
def facts() -> list[Any]:
    """Things that Atlas is sure of: eight right, eight wrong."""
    found = ck.atlas.facts()
    return [f for state in ("known", "wrong") for f in [f for f in found if f.state == state][:8]]


@pytest.fixture
def questions(facts: list[Any], tmp_path: Path) -> Path:
    path = tmp_path / "facts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "question", "answer", "subject", "relation"])
        for fact in facts:
            asked = fill(RELATIONS[fact.relation].questions[0], fact.subject)
            name = f"{fact.subject}/{fact.relation}"
            table.writerow([name, asked, fact.object, fact.subject, fact.relation])
    return path


@pytest.fixture
def screen(run: Run, questions: Path, tmp_path: Path) -> Callable[..., Any]:
    """Screen the questions into `cases.jsonl`."""

    def call(*arguments: Any) -> Any:
        files = ("--questions", questions, "--out", tmp_path / "cases.jsonl")
        sizes = ("--samples", 4, "--max-new-tokens", 12, "--cache", tmp_path / "cache")
        return run("screen", *files, *sizes, *arguments)

    return call


def test_cases_come_out_and_a_second_run_asks_nothing(
    screen: Callable[..., Any], facts: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = screen("--model", "atlas")
    assert (code, err) == (0, "")
    assert "16 questions: memory is right in " in out
    assert "16 prompts asked, 0 known" in out
    cases = read_cases(tmp_path / "cases.jsonl")
    assert f"{len(cases):,} cases (" in out
    assert {case.source for case in cases} == {"facts"}
    states = {f"{fact.subject}/{fact.relation}": fact.state for fact in facts}
    right = [case for case in cases if case.state == "correction"]
    assert right
    agree = sum((states[str(case.meta["question"])] == "wrong") for case in right)
    assert agree >= 0.9 * len(right)

    def never(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(priors, "_batch", never)
    code, out, _ = screen("--json", "--overwrite", "--passages", "coherent, hedged")
    assert code == 0
    summary = json.loads(out)
    assert (summary["asked"], summary["known"]) == (0, 16)
    again = read_cases(tmp_path / "cases.jsonl")
    assert {case.context_kind for case in again} == {"coherent", "hedged"}
    assert sum(summary["states"].values()) == len(again)
    assert screen("--quiet", "--overwrite") == (0, "", "")


def test_all_kinds_of_cases_can_be_asked_for(screen: Callable[..., Any], tmp_path: Path) -> None:
    code, _, err = screen(
        "--passages", "bare,assertive,several,irrelevant-easy", "--substitution", "type-swap",
        "--several-count", 3, "--several-wrong", 0.3, "--several-wrong", 1, "--seed", 4, "--alias",
    )  # fmt: skip
    assert (code, err) == (0, "")
    cases = read_cases(tmp_path / "cases.jsonl")
    several = [case for case in cases if case.context_kind == "several"]
    assert {len(case.contexts) for case in several} == {3}
    wrong = {len(case.meta["wrong_passages"]): case.state for case in several}  # type: ignore[arg-type]
    assert wrong[3] == "resistance"
    assert wrong[1] in ("agreement", "correction")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--questions", "none.jsonl"), "there is no file"),
        (("--out", "cases.csv"), "must end in .jsonl"),
        (("--out", "/nowhere/cases.jsonl"), "no folder '/nowhere'"),
        (("--passages", "bare,hedge"), "did you mean 'hedged'"),
        (("--passages", ","), "each once"),
        (("--substitution", "corpse"), "did you mean 'corpus'"),
        (("--passages", "several", "--several-wrong", "0.5"), "is half"),
        (("--samples", "0"), "--samples"),
        (("--temperature", "0"), "--temperature"),
        (("--right-from", "2"), "--right-from"),
        (("--json", "--quiet"), "exclude each other"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    refused: Refused, questions: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given: dict[str, Any] = {"--questions": questions, "--out": tmp_path / "cases.jsonl"}
    given = {name: value for name, value in given.items() if name not in arguments}
    rest = [part for pair in given.items() for part in pair]
    assert said in refused("screen", *rest, *arguments, "--model", "no/such-model")


def test_a_malformed_row_names_file_line_and_field(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "Who?", "answer": "Ada"}\n{"question": "What?", "answer": 3}\n')
    err = refused("screen", "--questions", path, "--out", tmp_path / "c.jsonl", "--model", "no/one")
    assert "bad.jsonl, line 2, field 'answer': must be text, not a number" in err
    path.write_text("")
    assert "no rows" in refused("screen", "--questions", path, "--out", tmp_path / "c.jsonl")


def test_a_file_is_not_replaced_unasked(refused: Refused, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "cases.jsonl"
    out.write_text("mine")
    files = ("--questions", questions, "--out", out, "--model", "no/such-model")
    assert "--overwrite" in refused("screen", *files)
    assert out.read_text() == "mine"


def test_an_interruption_says_how_to_go_on(
    screen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = priors._batch, []

    def once(*arguments: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(priors, "_batch", once)
    code, out, err = screen("--batch-size", 5)
    assert (code, out) == (130, "")
    assert err == "conflictkit: interrupted: the same command goes on from here\n"
    monkeypatch.setattr(priors, "_batch", real)
    assert "11 prompts asked, 5 known" in screen().out
