"""The cases that come of what a model knows."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conflictkit as ck
from conflictkit.atlas.templates import RELATIONS, fill
from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    UnknownNameError,
)
from conflictkit.evaluation.cases.io import read_cases
from conflictkit.evaluation.priors import Prior, ask_priors
from conflictkit.evaluation.questions import Question
from conflictkit.evaluation.screening import PASSAGES, Plan, screen, tri_state
from tests.evaluation.screening.sets import (
    MONEY,
    PLACES,
    SOME,
)

FAST: dict[str, Any] = {"samples": 3, "max_new_tokens": 4}


# The split.


def given(questions: Sequence[Question], states: str) -> dict[str, Prior]:
    """Priors by their first letters."""
    names = {"r": "right", "w": "wrong", "u": "uncertain"}
    return {
        question.id: Prior(
            question.id,
            names[letter],
            question.answers[0] if letter == "r" else "Gotham",
            (),
            float(letter == "r"),
            1.0,
        )
        for question, letter in zip(questions, states, strict=True)
    }


def test_the_prior_decides_the_state() -> None:
    split = tri_state(
        [*SOME, *MONEY], given(SOME, "rrrrwwwu"), Plan(passages=("bare", "irrelevant-hard"))
    )
    assert split.dropped == {}
    found = Counter((case.subject, case.state) for case in split.cases)
    for question, letter in zip(SOME, "rrrrwwwu", strict=True):
        states = {"r": ["agreement", "resistance", "irrelevant"], "w": ["correction"], "u": []}
        assert [state for place, state in found if place == question.subject] == states[letter]
    assert set(found.values()) == {1}
    for case in split.cases:
        true = PLACES[case.subject]
        assert case.gold_answers == (true,)
        assert case.memory_answers == (("Gotham",) if case.state == "correction" else (true,))
        (text,) = case.contexts
        assert (true in text) == (case.state in ("agreement", "correction"))
        if case.state == "irrelevant":
            assert case.context_answers == ()
        elif case.state == "resistance":
            assert case.context_answers[0] in set(PLACES.values()) - {true}
            assert case.context_answers[0] in text
        else:
            assert case.context_answers == (true,)


def test_the_answers_text_does_not_give_the_state_away() -> None:
    """With every memory right, right and wrong passages hold the very same answers."""
    split = tri_state(SOME, given(SOME, "r" * 8), Plan(passages=("bare", "coherent", "hedged")))
    said: dict[tuple[str, str], Counter[str]] = {}
    for case in split.cases:
        said.setdefault((case.context_kind, case.state), Counter()).update(case.context_answers)
    for kind in ("bare", "coherent", "hedged"):
        assert said[kind, "agreement"] == said[kind, "resistance"]
        assert said[kind, "agreement"] == Counter(PLACES.values())


def test_several_passages_belong_to_the_majority() -> None:
    plan = Plan(passages=("several",), count=5, wrong_shares=(0.2, 0.8))
    split = tri_state(SOME, given(SOME, "rrrrwwwu"), plan)
    states = Counter(case.state for case in split.cases)
    assert states == {"agreement": 4, "resistance": 4, "correction": 3}
    for case in split.cases:
        assert len(case.contexts) == 5
        wrong = case.meta["wrong_passages"]
        assert isinstance(wrong, list)
        assert len(wrong) == (4 if case.state == "resistance" else 1)
        true = PLACES[case.subject]
        assert [n for n, text in enumerate(case.contexts) if true not in text] == wrong
        assert (case.context_answers == (true,)) == (case.state != "resistance")


def test_names_of_the_true_answer_all_count() -> None:
    some = [replace(SOME[0], answers=("Warsaw", "Warszawa")), *SOME[1:]]
    split = tri_state(some, given(some, "r" * 8), Plan(passages=("bare",), alias=True))
    mine = {case.state: case for case in split.cases if case.subject == "Poland"}
    assert "Warszawa" in mine["agreement"].contexts[0]
    assert "Warsaw" not in mine["agreement"].contexts[0]
    assert mine["agreement"].context_answers == ("Warsaw", "Warszawa")
    assert mine["resistance"].memory_answers == ("Warsaw", "Warszawa")
    plain = tri_state(some, given(some, "r" * 8), Plan(passages=("bare",)))
    assert "Warsaw" in next(c for c in plain.cases if c.state == "agreement").contexts[0]


def test_what_could_not_be_made_is_counted() -> None:
    two = [Question(str(n), f"Is {n} odd?", ("yes",), relation="odd") for n in range(2)]
    split = tri_state(two, given(two, "rr"), Plan(passages=("bare", "several", "irrelevant-easy")))
    assert {case.state for case in split.cases} == {"agreement"}
    assert split.dropped == {"no wrong answer of its kind": 6, "no irrelevant passage": 2}


def test_a_wrong_answer_is_never_what_memory_says() -> None:
    for seed in range(20):
        priors = given(SOME, "rrrrrrrw")
        priors["Cuba"] = replace(priors["Cuba"], answer="Oslo")
        plan = Plan(passages=("several",), wrong_shares=(0.25,), seed=seed)
        (case,) = (c for c in tri_state(SOME, priors, plan).cases if c.state == "correction")
        assert not any("Oslo" in text for text in case.contexts)


def test_the_seed_is_the_split() -> None:
    plan = Plan(passages=PASSAGES)
    priors = given(SOME, "rrrrrrww")
    first = tri_state([*SOME, *MONEY], priors, plan)
    assert first == tri_state([*SOME, *MONEY], priors, plan)
    other = tri_state([*SOME, *MONEY], priors, replace(plan, seed=1))
    assert first.cases != other.cases
    assert [case.id for case in first.cases] == [case.id for case in other.cases]
    assert len({case.id for case in first.cases}) == len(first.cases)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"passages": ()}, "each once"),
        ({"passages": ("bare", "bare")}, "each once"),
        ({"passages": ("several",), "wrong_shares": (0.5,)}, "is half"),
        ({"passages": ("several",), "wrong_shares": (0.25, 0.3)}, "different numbers"),
        ({"passages": ("several",), "wrong_shares": ()}, "at least one"),
        ({"passages": ("several",), "count": 1}, "2 to"),
    ],
)
def test_plans_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        Plan(**options)


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'hedged'"):
        Plan(passages=("hedge",))
    with pytest.raises(UnknownNameError, match="did you mean 'type-swap'"):
        Plan(substitution="typeswap")


# From file to file.


def write(path: Path, questions: Sequence[Question]) -> Path:
    rows = [
        {"id": q.id, "question": q.question, "answers": list(q.answers), "relation": q.relation,
         "subject": q.subject}
        for q in questions
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_model_that_knows_nothing_makes_no_case(model: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", SOME)
    with pytest.raises(EmptyInputError, match="uncertain in 8"):
        screen(model, source, tmp_path / "cases.jsonl", temperature=5.0, wrong=1.0, **FAST)
    assert not (tmp_path / "cases.jsonl").exists()


def test_atlas_is_split_as_its_facts_say(tmp_path: Path) -> None:
    """What was found by nine wordings, and what screening finds with one, agree where both are
    clear."""
    draw = random.Random(0)
    facts = [fact for fact in ck.atlas.facts() if fact.state in ("known", "wrong")]
    chosen = [
        fact
        for state in ("known", "wrong")
        for fact in draw.sample([fact for fact in facts if fact.state == state], 24)
    ]
    questions = [
        Question(
            f"{fact.subject}/{fact.relation}",
            fill(RELATIONS[fact.relation].questions[0], fact.subject),
            (fact.object,),
            fact.subject,
            fact.relation,
            popularity=fact.frequency,
        )
        for fact in chosen
    ]
    atlas = ck.load("atlas")
    out = tmp_path / "cases.jsonl"
    done = screen(atlas, questions, out, samples=5, max_new_tokens=12)
    priors = ask_priors(atlas, questions, samples=5, max_new_tokens=12)
    assert priors.asked == 0
    expected = {"known": "right", "wrong": "wrong"}
    clear = [
        (expected[fact.state], priors.priors[f"{fact.subject}/{fact.relation}"].state)
        for fact in chosen
        if priors.priors[f"{fact.subject}/{fact.relation}"].state != "uncertain"
    ]
    assert len(clear) >= 0.7 * len(chosen)
    assert sum(a == b for a, b in clear) >= 0.95 * len(clear)
    cases = read_cases(out)
    assert Counter(case.state for case in cases) == done.states
    assert set(done.states) == {"correction", "resistance", "agreement", "irrelevant"}
    states = {fact.subject + "/" + fact.relation: fact.state for fact in chosen}
    odd = [
        c
        for c in cases
        if (states[str(c.meta["question"])] == "wrong") != (c.state == "correction")
    ]
    assert len(odd) <= 0.05 * len(cases)
