"""Whose answer an answer is."""

from __future__ import annotations

import pytest

from conflictkit.errors import UnknownNameError
from conflictkit.evaluation.metrics.source import disagree, judge
from tests.evaluation.metrics.made import case


@pytest.mark.parametrize(
    ("answer", "source", "right"),
    [
        ("Rome", "context", True),
        ("It is Oslo.", "memory", False),
        ("Oslo, not Rome", "both", True),
        ("Paris", "other", False),
        ("  \n", "none", False),
        ("Romeo", "other", False),
    ],
)
def test_where_an_answer_comes_from(answer: str, source: str, right: bool) -> None:
    verdict = judge(case("1", "correction"), answer)
    assert (verdict.source, verdict.right) == (source, right)
    assert verdict.context is (source in ("context", "both"))
    assert verdict.memory is (source in ("memory", "both"))


def test_a_name_inside_a_longer_one_is_not_said() -> None:
    one = case(
        "1",
        "resistance",
        memory_answers=("Guinea",),
        context_answers=("Papua New Guinea",),
        gold_answers=("Guinea",),
    )
    verdict = judge(one, "Papua New Guinea.")
    assert (verdict.source, verdict.gold) == ("context", False)
    verdict = judge(one, "Guinea")
    assert (verdict.source, verdict.gold) == ("memory", True)
    # Said once by itself, it counts beside the longer name.
    assert judge(one, "Papua New Guinea, formerly Guinea").source == "both"
    # As published, the shorter name is in the longer one.
    assert judge(one, "Papua New Guinea.", match="ck-plug").source == "both"


def test_an_alias_inside_another_alias_of_the_same_side_counts() -> None:
    one = case("1", "resistance", memory_answers=("York", "New York"), gold_answers=("York",))
    verdict = judge(one, "New York")
    assert verdict.memory
    assert not verdict.gold


def test_without_answers_of_a_side_nothing_is_of_that_side() -> None:
    verdict = judge(case("1", "irrelevant"), "Oslo")
    assert (verdict.source, verdict.right) == ("memory", True)


def test_sides_that_share_an_answer_do_not_disagree() -> None:
    assert disagree(case("1", "correction"))
    assert not disagree(case("1", "agreement"))
    assert not disagree(case("1", "irrelevant"))
    same = case("1", "resistance", context_answers=("the oslo.",))
    assert not disagree(same)


def test_an_unknown_match_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown match"):
        judge(case("1", "correction"), "Rome", match="sacred")
