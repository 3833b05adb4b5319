"""Passages written, rewritten and found: what a context is made of."""

from __future__ import annotations

import random

import pytest

from conflictkit.errors import InvalidParameterError
from conflictkit.evaluation.build import Builder, wrong_of
from conflictkit.evaluation.questions import Question
from conflictkit.evaluation.substitution import (
    mentions,
)
from conflictkit.evaluation.wording import FORMS, claim, statement
from tests.evaluation.screening.sets import (
    atlas,
    capital,
)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("What is the capital of Poland?", "the capital of Poland is X"),
        ("Who were the founders of Rome?", "the founders of Rome were X"),
        ("What is Ada's occupation?", "Ada's occupation is X"),
        ("In which state is Salt Lake City?", "Salt Lake City is in X"),
        ("Where is the Bay of Biscay?", "the Bay of Biscay is in X"),
        ("In which year was Ada born?", None),
        ("What is the capital of Poland called?", None),
        ("What is Poland known for?", None),
        ("Who wrote Emma?", None),
        ("the capital of Poland", None),
    ],
)
def test_a_question_is_turned_round_only_where_that_is_safe(asked: str, said: str | None) -> None:
    assert statement(asked, "X") == said


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", ["What is the capital of Poland?", "Who wrote {c} twice"])
def test_a_written_passage_holds_question_and_answer(form: str, asked: str) -> None:
    text = claim(asked, "Foo Inc.", form, random.Random(1))
    assert "Foo Inc." in text
    assert "Inc.." not in text
    assert text[0].isupper()
    assert text.count(".") >= (3 if form == "coherent" else 1)
    if form != "bare":
        assert text != claim(asked, "Foo Inc.", "bare", random.Random(1))


@pytest.mark.parametrize("form", FORMS)
def test_passages_for_two_answers_differ_in_the_answer_alone(form: str) -> None:
    told = "Warsaw lies on the Vistula. The name of Warsaw is old."
    for passage in (None, told):
        one = capital("Poland", passage=passage)
        builder = Builder([one])
        right, wrong = (builder.claim(one, answer, form) for answer in ("Warsaw", "Oslo"))
        assert right.text.replace("Warsaw", "Oslo") == wrong.text
        assert mentions(right.text, ["Warsaw"])
        assert not mentions(wrong.text, ["Warsaw"])
        assert right.given == wrong.given == (passage is not None and form == "coherent")


def test_a_passage_that_cannot_be_rewritten_is_left_alone() -> None:
    silent = capital("Poland", passage="It lies on the Vistula.")
    partly = Question(
        "1", "Who wrote it?", ("Marie Curie",), passage="Marie Curie did. Curie knew."
    )
    for one in (silent, partly):
        for answer in (one.answers[0], "Oslo"):
            passage = Builder([one]).claim(one, answer, "coherent")
            assert not passage.given
            assert one.passage is not None
            assert one.passage not in passage.text


@pytest.mark.parametrize(
    ("count", "share", "bad"), [(4, 0.25, 1), (4, 0.75, 3), (5, 0.5, 3), (3, 0, 0)]
)
def test_several_passages_have_the_share_asked_for(count: int, share: float, bad: int) -> None:
    one = capital("Poland", passage="Warsaw lies on the Vistula.")
    made = Builder([one]).several(one, "Warsaw", "Oslo", count=count, wrong_share=share)
    assert len({passage.text for passage in made}) == count
    assert sum(passage.answer == "Oslo" for passage in made) == bad == wrong_of(count, share)
    for passage in made:
        other = {"Oslo": "Warsaw", "Warsaw": "Oslo"}[passage.answer or ""]
        assert mentions(passage.text, [passage.answer or ""])
        assert not mentions(passage.text, [other])
    assert sum(passage.given for passage in made) == 1


def test_no_passage_stands_there_twice() -> None:
    one = capital("Poland", passage="Warsaw lies on the Vistula.")
    for seed in range(5):
        made = Builder([one], seed=seed).several(one, "Warsaw", "Oslo", count=50, wrong_share=0.2)
        assert len({passage.text for passage in made}) == 50


def test_the_order_of_several_is_the_seeds() -> None:
    one = capital("Poland")

    def order(seed: int) -> tuple[str | None, ...]:
        made = Builder([one], seed=seed).several(one, "Warsaw", "Oslo", count=4, wrong_share=0.25)
        return tuple(passage.answer for passage in made)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(20)}) == 4


@pytest.mark.parametrize(
    ("count", "share"), [(1, 0.5), (4, 1.5), (4, -0.1), (True, 0.5), (4, float("nan"))]
)
def test_several_that_cannot_be(count: int, share: float) -> None:
    one = capital("Poland")
    with pytest.raises(InvalidParameterError):
        Builder([one]).several(one, "Warsaw", "Oslo", count=count, wrong_share=share)


def test_irrelevant_passages_are_of_another_relation_or_much_alike() -> None:
    some = atlas()
    builder = Builder(some)
    hard = set()
    for one in some:
        easy, alike = (builder.irrelevant(one, hard=hard) for hard in (False, True))
        assert easy is not None
        assert alike is not None
        for passage in (easy, alike):
            assert not mentions(passage.text, one.answers)
            assert passage.answer is None
        word = {"capital": "capital", "currency": "currency"}[one.relation]
        assert word not in easy.text
        assert one.subject not in easy.text
        assert word in alike.text
        hard.add(alike.text)
    # No passage serves for all.
    assert len(hard) > len(some) / 2


def test_the_same_relation_in_other_words_is_not_something_else() -> None:
    some = [
        capital("Poland"),
        Question("n", "From where do Norwegians rule?", ("Oslo",), relation="capital"),
        Question("k", "How does Kenya pay?", ("shilling",), relation="currency"),
    ]
    for seed in range(10):
        easy = Builder(some, seed=seed).irrelevant(some[0], hard=False)
        assert easy is not None
        assert "shilling" in easy.text


def test_without_relations_the_most_alike_shares_rare_words() -> None:
    texts = ["Who painted the ceiling of the chapel?", "Who built the chapel in Ghent?", "Who won?"]
    names = ["Ann Lee", "Bob Ray", "Cy Dow"]
    some = [Question(str(n), text, (names[n],)) for n, text in enumerate(texts)]
    alike = Builder(some).irrelevant(some[0], hard=True)
    easy = Builder(some).irrelevant(some[0], hard=False)
    assert alike is not None
    assert "Ghent" in alike.text
    assert easy is not None
    assert "Who won?" in easy.text


def test_what_names_the_answer_is_never_irrelevant() -> None:
    asked = capital("Poland")
    other = capital("Norway", passage="Oslo is a friend of Warsaw.")
    assert Builder([asked, other]).irrelevant(asked, hard=True) is None
    calm = capital("Norway", passage="Oslo is cold.")
    assert Builder([asked, calm]).irrelevant(asked, hard=True) is not None
    assert Builder([asked, calm]).irrelevant(asked, hard=True, avoid=["cold"]) is None
