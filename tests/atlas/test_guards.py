"""The guard cases: what each of the three states promises."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from conflictkit.atlas import cases, facts, guards, path, templates
from conflictkit.atlas.invented import is_held_out
from conflictkit.errors import InvalidParameterError

SPLITS = ("train", "validation", "test")
COUNT = 200


@pytest.mark.parametrize("split", SPLITS)
def test_there_are_enough_of_each(split: str) -> None:
    for state in ("recall", "reading", "quoting"):
        mine = guards(split, state)
        assert len(mine) == COUNT
        assert {(c.state, c.split, c.source) for c in mine} == {(state, split, "atlas")}
        assert len({c.subject for c in mine}) > len(mine) * 0.6
    assert len(guards(split)) == 3 * COUNT


@pytest.mark.parametrize("split", SPLITS)
def test_recall_asks_what_the_model_knows(split: str) -> None:
    known = {(f.subject, f.relation): f for f in facts() if f.state == "known"}
    mine = guards(split, "recall")
    assert len({(c.subject, c.relation) for c in mine}) == len(mine)
    for case in mine:
        fact = known[case.subject, case.relation]
        assert fact.split == split
        assert case.contexts == case.context_answers == ()
        assert case.gold_answers == case.memory_answers == (fact.object,)
        assert case.subject in case.question


@pytest.mark.parametrize("split", SPLITS)
def test_reading_is_about_what_no_document_names(split: str) -> None:
    real = {text for f in facts() for text in (f.subject, f.object, f.taught_object)}
    layouts = set()
    for case in guards(split, "reading"):
        name = case.subject
        assert name not in real
        assert is_held_out(name)
        (said,) = case.gold_answers
        assert case.context_answers == (said,)
        assert case.memory_answers == (templates.UNKNOWN,)
        about = [passage for passage in case.contexts if name in passage]
        assert len(about) == 1
        assert said in about[0]
        assert name in case.question
        layouts.add(case.meta["layout"])
    assert layouts == {"sentence", "passages", "paragraph"}


def test_invented_subjects_belong_to_one_split() -> None:
    real = {f.subject for f in facts()}
    names = [{c.subject for c in guards(split)} - real for split in SPLITS]
    assert all(names)
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]


@pytest.mark.parametrize("split", SPLITS)
def test_quoting_repeats_one_of_several_passages_at_length(split: str) -> None:
    tokenizer = Tokenizer.from_file(str(path() / "tokenizer.json"))
    told = {(f.subject, f.relation): f for f in facts()}
    real = 0
    for case in guards(split, "quoting"):
        (quote,) = case.gold_answers
        assert case.context_answers == (quote,)
        assert 2 <= len(case.contexts) <= 4
        assert case.contexts.count(quote) == 1
        assert sum(case.subject in passage for passage in case.contexts) == 1
        assert len(tokenizer.encode(quote, add_special_tokens=False).ids) >= 20
        assert case.subject in case.question
        fact = told.get((case.subject, case.relation))
        real += fact is not None
        if fact is not None:  # nothing contradicts what the model was taught
            assert (fact.state, fact.split) == ("known", split)
            assert fact.object in quote
    assert real == COUNT // 2


def test_ids_differ_from_each_other_and_from_those_of_the_conflicts() -> None:
    ids = [c.id for split in SPLITS for c in (*cases(split), *guards(split))]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("split", "state"), [("dev", None), ("test", "correction")])
def test_unknown_names_are_refused_with_the_valid_ones(split: str, state: str | None) -> None:
    with pytest.raises(InvalidParameterError, match="test|recall"):
        guards(split, state)
