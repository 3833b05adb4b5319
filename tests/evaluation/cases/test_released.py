"""The released files themselves, where they are at hand: every row, against counts of our own."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from conflictkit.evaluation.cases import load_cases
from conflictkit.types import Case

PARACONFLICT = {
    "athlete_sport": (424, 74, 4, 454),
    "book_author": (315, 55, 4, 441),
    "company_founder": (84, 14, 4, 185),
    "company_headquarter": (283, 49, 4, 447),
}
NAMES = ("filtered_test", "filtered_validation", "head_finding_set_size_4", "unfiltered_test")


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    folder = shared / "data"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}: benchmark data that is not part of the project")
    return folder


def load(name: str, path: Path) -> list[Case]:
    if not path.exists():
        pytest.skip(f"needs {path}: benchmark data that is not part of the project")
    cases = load_cases(f"{name}:{path}")
    assert {case.source for case in cases} == {name}
    return cases


def sheet(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("relation", PARACONFLICT)
def test_paraconflict(data: Path, relation: str) -> None:
    folder = data / "paraconflict" / f"{relation}_gemma" / "head_size_4"
    for name, count in zip(NAMES, PARACONFLICT[relation], strict=True):
        cases = load("paraconflict", folder / f"{name}.json")
        assert Counter(case.context_kind for case in cases) == {
            "substitution": count,
            "coherent": count,
        }
        rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        prompts = [(row["Substitution Conflict"], row["Coherent Conflict"]) for row in rows]
        assert [case.prompt for case in cases] == [prompt for pair in prompts for prompt in pair]
        assert [case.memory_prompt for case in cases[::2]] == [row["Clean Prompt"] for row in rows]
        assert all(case.aligned == (case.context_kind == "substitution") for case in cases)
        screened = name.startswith("filtered")
        assert {case.state for case in cases} == {"resistance" if screened else "unscreened"}
        assert {case.relation for case in cases} == {relation}
        for case in cases:
            (said,) = case.context_answers
            assert said in case.contexts[0]
            assert said not in case.gold_answers
            assert case.question.endswith("?")


@pytest.mark.parametrize(
    ("name", "rows", "equal"),
    [("Static", 2500, 2), ("Temporal", 2495, 7), ("Disputable", 694, 0)],
)
def test_dynamicqa(data: Path, name: str, rows: int, equal: int) -> None:
    path = data / "dynamicqa" / f"{name}_final.csv"
    cases = load("dynamicqa", path)
    released = sheet(path)
    assert len(released) == rows
    assert sum(row["obj"] == row["replace_name"] for row in released) == equal
    kept = 0
    for row in released:
        right = {text.casefold() for text in json.loads(row.get("possible_answers", "[]"))}
        kept += row["replace_name"].strip().casefold() not in right | {row["obj"].casefold()}
    assert kept <= rows - equal
    assert Counter(c.context_kind for c in cases) == {"original": kept, "replaced": kept}
    for original, replaced in zip(cases[::2], cases[1::2], strict=True):
        assert original.question == replaced.question
        assert original.contexts != replaced.contexts
        assert original.context_answers[0] in original.contexts[0]
        assert replaced.context_answers[0] in replaced.contexts[0]
        assert "[ENTITY]" not in original.contexts[0] + replaced.contexts[0]
        assert original.contexts[0] == original.contexts[0].strip()
        assert replaced.context_answers[0] not in replaced.gold_answers
        assert original.context_answers == original.gold_answers


@pytest.mark.parametrize(
    ("model", "count"), [("chatgpt", 1245), ("llama2-7b", 698), ("qwen7b", 671)]
)
def test_conflictqa(data: Path, model: str, count: int) -> None:
    cases = load("conflictqa", data / "conflictqa" / f"conflictQA-strategyQA-{model}.json")
    assert len(cases) == count
    assert len({case.subject for case in cases}) == count - 1  # one question comes twice
    for case in cases:
        assert case.meta["screened_for"] == model
        assert case.meta["ground_truth"] in (["True"], ["False"])
        assert case.gold_answers == ()
        assert set(case.choices) >= {*case.memory_answers, *case.context_answers}


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("C_right_P_wrong", "correction"),
        ("C_wrong_P_right", "resistance"),
        ("C_right_P_right", "agreement"),
    ],
)
def test_tristate(data: Path, name: str, state: str) -> None:
    path = data / "tristate" / f"{name}.jsonl"
    cases = load("tristate", path)
    assert {case.state for case in cases} == {state}
    assert len(cases) == 400
    halves: dict[int, dict[int, Any]] = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        halves[row["input_index"]][row["assigned_process"]] = row
    for case, rows in zip(cases, halves.values(), strict=True):
        assert case.prompt == rows[0]["context_string"]
        assert case.memory_prompt == rows[1]["context_string"]
        assert list(case.gold_answers) == list(dict.fromkeys(rows[0]["gold_answers"]))
        assert case.question.endswith("?")
        assert "? ?" not in case.question
        assert case.question[:-1] in rows[1]["context_string"]
        assert rows[0]["context_string"].startswith(case.contexts[0])
        assert "Using only the references" not in case.contexts[0]


def test_faitheval(data: Path) -> None:
    cases = load("faitheval", data / "faithfulrag" / "faitheval_data.json")
    assert len(cases) == 1000
    for case in cases:
        assert case.gold_answers == case.context_answers
        assert case.gold_answers[0] in case.choices
        assert len(case.choices) in (3, 4, 5)
        assert all(choice == choice.strip() for choice in case.choices)


def test_the_squad_pair(data: Path) -> None:
    folder = data / "faithfulrag"
    cases = load("squad", folder / "squad_golden.json")
    assert load("squad", folder / "squad_negative.json") == cases
    assert Counter(c.context_kind for c in cases) == {"golden": 1769, "counterfactual": 1769}
    answers = {
        half: {
            row["id"]: row["answer"].strip()
            for row in json.loads((folder / f"squad_{half}.json").read_text(encoding="utf-8"))
        }
        for half in ("golden", "negative")
    }
    for case in cases:
        name = case.id.rpartition("-")[0]
        half = "golden" if case.context_kind == "golden" else "negative"
        assert case.gold_answers == case.context_answers == (answers[half][name],)
        assert case.memory_answers == (answers["golden"][name],)
        assert case.gold_answers[0] in case.choices


def test_counterfact_hard(data: Path) -> None:
    path = data / "eren" / "cfh_filtered.json"
    cases = load("counterfact", path)
    wanted: Counter[str] = Counter()
    edits = json.loads(path.read_text(encoding="utf-8"))
    assert len(edits) == 1024
    for edit in edits:
        wanted["edit"] += len({question for question, _ in edit["edit_scope"]})
        wanted["neighbour"] += len(set(edit["unrelated"]["neighbor_subj"]))
        wanted["same-subject"] += len(set(edit["unrelated"]["same_subj"]))
    assert Counter(case.context_kind for case in cases) == wanted
    states = {"edit": "unscreened", "neighbour": "irrelevant", "same-subject": "irrelevant"}
    for case in cases:
        assert case.state == states[case.context_kind]
        assert bool(case.gold_answers) == (case.context_kind != "same-subject")
        assert set(case.context_answers).isdisjoint(case.memory_answers)
