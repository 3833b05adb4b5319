"""Items: prompts that differ in one name and in nothing else, and why there is no item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import conflictkit as ck
from conflictkit.mechanics import items
from conflictkit.prompts import answer_ids
from conflictkit.types import Case


@pytest.fixture(scope="module")
def model() -> ck.Model:
    return ck.load("atlas")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    made = ck.atlas.cases("train", "resistance") + ck.atlas.cases("train", "correction")
    return made[::8]


@pytest.fixture(scope="module")
def built(model: ck.Model, cases: list[Case]) -> list[items.Item]:
    return items.build(model, cases, require_corrupted=True)[0]


def changed(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [place for place, pair in enumerate(zip(one, other, strict=True)) if len(set(pair)) > 1]


def test_items_are_the_prompts_and_the_answers_first_tokens(
    model: ck.Model, cases: list[Case], built: list[items.Item]
) -> None:
    by_id = {case.id: case for case in cases}
    assert len(built) > len(cases) / 2
    for item in built[::4]:
        case = by_id[item.case_id]
        prompt = model.prompts(case.question, case.contexts)["context"]
        assert (item.ids, item.span) == (prompt.ids, prompt.context)
        assert item.relation == case.relation
        for token, answers in (
            (item.memory_id, case.memory_answers), (item.context_id, case.context_answers)
        ):  # fmt: skip
            assert token == answer_ids(model.tokenizer, case.question, answers[0])[0]


def test_without_memory_another_subject_is_asked_about(
    model: ck.Model, cases: list[Case], built: list[items.Item]
) -> None:
    by_id = {case.id: case for case in cases}
    known = {(c.relation, c.subject): c.memory_answers[0] for c in cases}
    for item in built:
        case = by_id[item.case_id]
        assert item.no_memory is not None
        assert len(item.no_memory) == len(item.ids)
        asked = model.tokenizer.decode(item.no_memory, skip_special_tokens=True)
        plain = model.tokenizer.decode(item.ids, skip_special_tokens=True)
        others = {
            subject
            for relation, subject in known
            if relation == item.relation and plain.replace(case.subject, subject) == asked
        }
        assert others, asked
        for other in others:
            assert other != case.subject
            answer = known[item.relation, other]
            assert answer not in (*case.memory_answers, *case.context_answers)
            first = answer_ids(model.tokenizer, case.question, answer)[0]
            assert first not in (item.memory_id, item.context_id)
        assert case.context_answers[0] in asked
        assert any(place >= item.span[1] for place in changed(item.ids, item.no_memory))


def test_without_context_the_passage_says_a_third_answer(
    model: ck.Model, cases: list[Case], built: list[items.Item]
) -> None:
    by_id = {case.id: case for case in cases}
    for item in built:
        case = by_id[item.case_id]
        assert item.no_context is not None
        assert len(item.no_context) == len(item.ids)
        start, stop = item.span
        assert all(start <= place < stop for place in changed(item.ids, item.no_context))
        text = model.tokenizer.decode(item.no_context[start:stop])
        assert case.context_answers[0] not in text.replace(case.subject, "")
        said = case.context_answers[0]
        plain = model.tokenizer.decode(item.ids[start:stop])
        others = {
            name
            for one in cases
            for name in (one.memory_answers[0], one.context_answers[0])
            if one.relation == item.relation and plain.replace(said, name) == text
        }
        assert others, text
        firsts = {answer_ids(model.tokenizer, case.question, name)[0] for name in others}
        assert not firsts & {item.memory_id, item.context_id}


def test_the_same_cases_give_the_same_items_and_many_donors(
    model: ck.Model, cases: list[Case], built: list[items.Item]
) -> None:
    few = [case for case in cases if case.relation == "currency"]
    again = items.build(model, few, require_corrupted=True)
    assert again == items.build(model, few, require_corrupted=True)
    shuffled = items.build(model, few[::-1], require_corrupted=True)
    assert sorted(shuffled[0], key=str) == sorted(again[0], key=str)
    donors = {item.no_context for item in built if item.relation == "country"}
    assert len(donors) > len([item for item in built if item.relation == "country"]) / 2


def simple(subject: str = "Poland", memory: str = "Warsaw", said: str = "London") -> Case:
    return Case(
        id=f"{subject}-{said}", split="train", relation="capital", subject=subject,
        question=f"What is the capital of {subject}?",
        contexts=(f"The capital of {subject} is {said}.",), context_kind="bare",
        memory_answers=(memory,), context_answers=(said,), gold_answers=(memory,),
        state="resistance",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (replace(simple(), context_answers=()), items.NO_CONFLICT),
        (replace(simple(), memory_answers=()), items.NO_CONFLICT),
        (replace(simple(), contexts=()), items.NO_CONFLICT),
        (simple(said="warsaw "), items.NO_CONFLICT),
        (replace(simple(), prompt="What?"), items.FIXED),
        (replace(simple(), contexts=("London. " * 2000,)), items.NOT_ASKED),
        (replace(simple(), question=" "), items.NOT_ASKED),
        (simple(memory="+48", said="+49"), items.SHARED),
        (simple(), items.NO_SUBJECT),
    ],
)
def test_why_there_is_no_item(model: ck.Model, case: Case, reason: str) -> None:
    assert items.build(model, [case], require_corrupted=True) == ([], {reason: 1})


def test_without_corrupted_prompts_there_is_an_item_all_the_same(model: ck.Model) -> None:
    found, dropped = items.build(model, [simple()])
    assert dropped == {}
    assert (found[0].no_memory, found[0].no_context) == (None, None)


def test_names_in_longer_words_stay(model: ck.Model) -> None:
    case = replace(
        simple("Chad", "N'Djamena", "Rome"),
        contexts=("The capital of Chad is Rome. Romeo lives in Chadwick.",),
    )
    pool = [simple("Mali", "Bamako", name) for name in ("Oslo", "Lima", "Kyiv", "Bern", "Riga")]
    pool += [simple(name, "Paris", "Oslo") for name in ("Peru", "Cuba", "Iran", "Togo")]
    found, _ = items.build(model, [case, *pool])
    texts = [
        model.tokenizer.decode(ids, skip_special_tokens=True)
        for ids in (found[0].no_memory, found[0].no_context)
        if ids is not None
    ]
    assert texts
    for text in texts:
        assert "Romeo lives in Chadwick" in text


COUNTRIES = ("China", "Germany", "India", "Japan", "Mexico", "Nigeria", "Russia")


def of_countries(model: ck.Model) -> list[Case]:
    """Cases with one context answer each, all of one token."""
    ids = model.tokenizer([f" {name}" for name in COUNTRIES])["input_ids"]
    names = [name for name, one in zip(COUNTRIES, ids, strict=True) if len(one) == len(ids[0])]
    assert len(names) >= 5
    return [simple(name, "Brazil", name) for name in names]


def says(model: ck.Model, item: items.Item) -> str:
    """What the corrupted context says."""
    assert item.no_context is not None
    text = model.tokenizer.decode(item.no_context[slice(*item.span)])
    return text.strip().removesuffix(".").split(" ")[-1]


def test_the_next_name_in_the_alphabet_is_taken_round_and_round(model: ck.Model) -> None:
    pool = [replace(one, subject="Poland") for one in of_countries(model)]
    pool = [
        replace(one, contexts=(f"It is {one.context_answers[0]}.",), question="What is it?")
        for one in pool
    ]
    found, _ = items.build(model, pool)
    names = [one.context_answers[0] for one in pool]
    after = [*sorted([*names, "Brazil"]), *sorted([*names, "Brazil"])]
    for case, item in zip(pool, found, strict=True):
        following = after[after.index(case.context_answers[0]) + 1 :]
        assert says(model, item) == next(one for one in following if one != "Brazil")


def test_a_name_that_the_passage_mentions_is_not_taken(model: ck.Model) -> None:
    pool = of_countries(model)
    names = sorted(one.context_answers[0] for one in pool)
    text = f"Not {names[1]}, whatever they say. It is {names[0]}."
    case = replace(pool[0], subject="Poland", contexts=(text,), question="What is it?")
    found, _ = items.build(model, [case, *pool[1:]])
    assert found[0].case_id == case.id
    assert says(model, found[0]) == names[2]


def test_another_subject_with_one_of_the_answers_is_not_taken(model: ck.Model) -> None:
    case = replace(simple("Peru", "Lima", "Rome"), memory_answers=("Lima", "Oslo"))
    others = [simple(name, "Oslo", "Bern") for name in ("Cuba", "Iran", "Togo", "Mali")]
    found, _ = items.build(model, [case, *others])
    assert found[0].no_memory is None
    others = [replace(one, memory_answers=("Kyiv",)) for one in others]
    found, _ = items.build(model, [case, *others])
    assert found[0].no_memory is not None
