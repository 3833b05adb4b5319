"""Which answer stands in for another, and how a passage is rewritten for it."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conflictkit.errors import InvalidParameterError, UnknownNameError
from conflictkit.evaluation.questions import Question
from conflictkit.evaluation.substitution import (
    SUBSTITUTIONS,
    leftover,
    other_name,
    rewritten,
    substitutes,
)
from tests.evaluation.screening.sets import (
    CAPITALS,
    CURRENCIES,
    atlas,
    by_id,
    capital,
)

# Rewriting.


@pytest.mark.parametrize(
    ("passage", "names", "new", "wanted"),
    [
        ("Paris is big.", ["Paris"], "Rome", "Rome is big."),
        ("Parisian, Paris, paris", ["Paris"], "Rome", "Parisian, Rome, paris"),
        ("PARIS! (Paris's)", ["Paris"], "Rome", "ROME! (Rome's)"),
        ("He told us of the US.", ["US"], "UK", "He told us of the UK."),
        ("NYC or New York City", ["New York", "New York City", "NYC"], "Rome", "Rome or Rome"),
        ("Tea is best; drink tea", ["tea"], "coffee", "Coffee is best; drink coffee"),
        ("New York", ["new york"], "rome", "Rome"),
        ("He was an actor.", ["actor"], "poet", "He was a poet."),
        ("A poet, a poet", ["poet"], "actor", "An actor, an actor"),
        ("It cost $5 (5).", ["$5"], "$6", "It cost $6 (5)."),
        ("首都は東京です。", ["東京"], "大阪", "首都は大阪です。"),
        (r"a\1b \1", [r"\1"], r"\2", r"a\1b \2"),
    ],
)
def test_every_mention_is_replaced_and_nothing_else(
    passage: str, names: list[str], new: str, wanted: str
) -> None:
    assert rewritten(passage, names, new) == wanted


_NAMES = st.lists(
    st.text("abAB ", min_size=1, max_size=4).filter(lambda text: text.strip() == text),
    min_size=1,
    max_size=3,
)


@given(st.text("abAB .,", max_size=30), _NAMES)
def test_no_whole_word_mention_is_left(passage: str, names: list[str]) -> None:
    done = rewritten(passage, names, "0")
    for name in names:
        # Within marks that were put in, a new mention may come together; not between letters.
        pieces = re.split("0", done)
        assert not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", piece) for piece in pieces)


def test_part_of_a_name_that_stays_is_noticed() -> None:
    asked = Question("1", "Who wrote the nocturnes?", ("Frédéric Chopin",))
    assert leftover("Frédéric Chopin was born in 1810. Chopin played.", asked)
    assert not leftover("Frédéric Chopin was born in 1810. He played.", asked)
    named = replace(asked, question="Who was Chopin?")
    assert not leftover("Frédéric Chopin was born. Chopin played.", named)


# Substitution.


def test_wrong_answers_are_the_true_ones_dealt_out_anew() -> None:
    some = atlas()
    found = substitutes(some, seed=3)
    assert set(found) == {question.id for question in some}
    assert Counter(found.values()) == Counter(question.answers[0] for question in some)
    for name, answer in found.items():
        question = by_id(some)[name]
        assert answer != question.answers[0]
        assert answer in (CAPITALS if question.relation == "capital" else CURRENCIES).values()
    assert found == substitutes(some, seed=3)
    assert found != substitutes(some, seed=4)


def test_what_would_not_be_wrong_is_never_dealt() -> None:
    some = [
        capital("Poland", "Madrid"),  # say Madrid were another name of it
        capital("Spain"),
        Question("in", "What is Rome the capital of?", ("Italy",), relation="capital"),
        capital("Italy"),
        Question("long", "Which?", ("New Paris",), relation="capital"),
        capital("France"),
        capital("Norway"),
        capital("Japan"),
    ]
    for seed in range(30):
        found = substitutes(some, seed=seed, taboo={"Japan/capital": ("Oslo",)})
        assert found["Poland/capital"] != "Madrid"
        assert found["Spain/capital"] != "Warsaw"
        assert found["in"] != "Rome"
        assert found["long"] != "Paris"
        assert found["France/capital"] != "New Paris"
        assert found["Japan/capital"] != "Oslo"


def test_an_answer_of_more_than_half_leaves_none_empty() -> None:
    some = [Question(str(n), f"Is it {n}?", ("yes" if n < 7 else "no",)) for n in range(10)]
    found = substitutes(some)
    assert all(found[q.id] != q.answers[0] for q in some)
    assert len(found) == 10


def test_an_only_answer_has_no_substitute() -> None:
    assert substitutes([Question(str(n), "Is it?", ("yes",)) for n in range(3)]) == {}


def test_an_answer_that_the_passage_speaks_of_comes_last() -> None:
    told = "Warsaw, unlike Oslo and Paris, lies on the Vistula."
    for seed in range(10):
        some = [capital("Poland", passage=told), *map(capital, ["Norway", "France", "Italy"])]
        assert substitutes(some, seed=seed)["Poland/capital"] == "Rome"
        few = [capital("Poland", passage=told), capital("Norway")]
        assert substitutes(few, seed=seed)["Poland/capital"] == "Oslo"


def test_another_kind_and_other_popularities() -> None:
    some = atlas()
    swapped = substitutes(some, "type-swap")
    assert set(swapped) == {question.id for question in some}
    for name, answer in swapped.items():
        assert (answer in CURRENCIES.values()) == (by_id(some)[name].relation == "capital")
    capitals = [question for question in some if question.relation == "capital"]
    known = {question.answers[0]: question.popularity or 0 for question in capitals}
    # Ten questions make two parts.
    alike = substitutes(capitals, "popularity")
    for name, answer in alike.items():
        assert (known[answer] > 95) == ((by_id(some)[name].popularity or 0) > 95)
    assert all(known[one] > 95 for one in substitutes(capitals, "popularity-high").values())
    low = substitutes(capitals, "popularity-low")
    assert all(known[one] <= 95 for one in low.values())
    assert len(low) == 10
    assert len(set(low.values())) == 5


def test_substitutions_that_cannot_be() -> None:
    some = [capital("Poland"), capital("Norway")]
    with pytest.raises(InvalidParameterError, match="two kinds"):
        substitutes(some, "type-swap")
    with pytest.raises(InvalidParameterError, match="'Norway/capital' has no popularity"):
        substitutes([capital("Poland", popularity=1.0), some[1]], "popularity")
    with pytest.raises(UnknownNameError, match="did you mean 'corpus'"):
        substitutes(some, "corpse")
    assert "alias" not in SUBSTITUTIONS  # which is not wrong


def test_another_name_is_no_respelling() -> None:
    one = capital("Poland", "WARSAW", "Warszawa")
    assert other_name(one, random.Random(0)) == "Warszawa"
    assert other_name(capital("Poland", "warsaw."), random.Random(0)) is None
