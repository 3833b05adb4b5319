"""The table: every metric by hand, intervals of compounds, pairs, notes, bad input."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from conflictkit.errors import InvalidParameterError, UnknownNameError
from conflictkit.evaluation.metrics import METRICS, Cell, Summary, summarise
from conflictkit.evaluation.metrics.rates import choice_of
from conflictkit.types import Case
from tests.evaluation.metrics.made import case, cost, result, tokens

QUOTE = "a passage of more than twenty words that has to be repeated " * 2


def _rates(said: Sequence[tuple[str, str]], method: str = "plain") -> Summary:
    cases = [case(str(n), state) for n, (state, _) in enumerate(said)]
    return summarise(cases, [result(str(n), answer, method) for n, (_, answer) in enumerate(said)])


def test_rates_by_hand() -> None:
    said = [
        ("correction", "Rome"),
        ("correction", "Rome"),
        ("correction", "Oslo"),
        ("correction", "Oslo and Rome"),
        ("resistance", "Oslo"),
        ("resistance", "Rome"),
        ("resistance", "Paris"),
        ("resistance", ""),
        ("resistance", "It is Rome"),
        ("agreement", "Oslo."),
        ("agreement", "Rome"),
        ("irrelevant", "Oslo"),
        ("irrelevant", "Oslo"),
        ("irrelevant", "Paris"),
        ("recall", "Oslo"),
        ("reading", "Rome"),
        ("reading", "Oslo"),
    ]
    cells = _rates(said).cells["plain"]
    expected = {
        "correction": (3 / 4, 4),
        "resistance": (1 / 5, 5),
        "agreement": (1 / 2, 2),
        "irrelevant": (2 / 3, 3),
        "minimum": (1 / 5, 9),
        "harmonic": (4 / (4 / 3 + 5 + 2 + 3 / 2), 14),
        "context_rate": (4 / 9, 9),
        "memory_rate": (2 / 9, 9),
        "other_rate": (2 / 9, 9),
        # Three say Oslo and five say Rome, of the seven that say either.
        "memorisation_ratio": (3 / 8, 7),
        "conr": (5 / 9, 9),
        "parr": (3 / 9, 9),
        "controllability": (2 / 5, 5),
        "robustness": (2 / 3, 3),
        # Without the guards; "Oslo and Rome" and "It is Rome" are not exactly right.
        "exact_match": (6 / 14, 14),
        # "Oslo and Rome" has one of three words right: F1 1/2.
        "token_f1": (6.5 / 14, 14),
        "recall": (1.0, 1),
        "reading": (1 / 2, 2),
        "length": (1.0, 17),
        "repetition": (0.0, 17),
    }
    assert {n: (cells[n].value, cells[n].n) for n in expected} == {
        n: (pytest.approx(value), count) for n, (value, count) in expected.items()
    }
    assert "choice_accuracy" not in cells
    assert "quoting" not in cells
    assert list(cells) == [name for name in METRICS if name in cells]


def test_guards_and_costs_by_hand() -> None:
    cases = [
        case("q", "quoting", context_answers=(QUOTE,), gold_answers=(QUOTE,)),
        case("r", "recall"),
        case("c", "correction"),
    ]
    long = tuple(range(24))
    results = [
        result("q", f"It says: {QUOTE}", ids=long, context_logprob=-12.0, finish_reason="length",
               cost=cost(forwards=24, seconds=1.0)),
        result("r", "Oslo", ids=(7,), context_logprob=None, cost=cost(forwards=2, seconds=0.5)),
        # Seven 4-grams, two of them different.
        result("c", "Rome", ids=(1, 2) * 5, context_logprob=-20.0,
               cost=cost(forwards=11, seconds=0.5)),
        result("q", "It says", "slow", ids=(1, 2), cost=cost(seconds=3.0, memory_tokens=6)),
        result("r", "Oslo", "slow", ids=(7,), cost=cost(seconds=1.0, memory_tokens=6)),
    ]  # fmt: skip
    summary = summarise(cases, results)
    plain, slow = summary.cells["plain"], summary.cells["slow"]
    assert plain["quoting"].value == 1.0
    assert slow["quoting"].value == 0.0
    assert plain["length"].value == pytest.approx(35 / 3)
    assert plain["repetition"].value == pytest.approx((0 + 0 + 5 / 7) / 3)
    assert plain["context_logprob_per_token"].value == pytest.approx((-0.5 - 2.0) / 2)
    assert plain["context_logprob_per_token"].n == 2
    # 24 tokens cut short, one and its end, ten and their end.
    assert plain["forwards_per_token"].value == pytest.approx(37 / 37)
    assert plain["seconds"].value == pytest.approx(2 / 3)
    assert plain["relative_seconds"].value == 1.0
    assert slow["relative_seconds"].value == pytest.approx(4.0 / 1.5)
    assert slow["memory_tokens"].difference == 6.0
    assert slow["seconds"].difference == pytest.approx((2.0 + 0.5) / 2)
    assert "difference over" not in slow["seconds"].note


def test_multiple_choice_takes_the_most_probable() -> None:
    cases = [case(n, "resistance", choices=("Oslo", "Rome")) for n in "123"]
    results = [
        result("1", "?", choices={"Oslo": -1.0, "Rome": -2.0}),
        result("2", "?", choices={"Rome": -1.0, "Oslo": -1.0}),
        result("3", "?"),
    ]
    cell = summarise(cases, results).cells["plain"]["choice_accuracy"]
    assert (cell.value, cell.n) == (0.5, 2)


def test_where_no_choice_is_possible_none_is_right() -> None:
    cases = [case(n, "resistance", choices=("Oslo", "Rome")) for n in "12"]
    (right,) = cases[0].gold_answers
    for first, second in (("Oslo", "Rome"), ("Rome", "Oslo")):
        results = [
            result("1", "?", choices={first: -math.inf, second: -math.inf}),
            result("2", "?", choices={**dict.fromkeys((first, second), -math.inf), right: -1.0}),
        ]
        assert [choice_of(one) for one in results] == [None, right]
        cell = summarise(cases, results).cells["plain"]["choice_accuracy"]
        assert (cell.value, cell.n) == (0.5, 2)


def test_a_conflict_needs_two_different_answers() -> None:
    cases = [
        case("1", "correction"),
        case("2", "correction", memory_answers=()),
        case("3", "resistance", context_answers=("oslo",)),
    ]
    cells = summarise(cases, [result(n, "Oslo") for n in "123"]).cells["plain"]
    assert cells["correction"].n == 2
    assert cells["memory_rate"].n == 1
    assert "controllability" not in cells


def _random(seed: int, methods: Sequence[str], subjects: int = 50) -> tuple[list[Case], list]:
    """Cases of all states, three to a subject; each method has its own odds of being right."""
    draw = random.Random(seed)
    states = ("correction", "resistance", "agreement", "irrelevant")
    cases = [
        case(f"{n}", states[n % 4], subject=f"s{n % subjects}") for n in range(subjects * 3 + 1)
    ]
    results = []
    for number, method in enumerate(methods):
        for one in cases:
            right = draw.random() < 0.4 + 0.2 * number
            answer = one.gold_answers[0] if right else draw.choice(["Oslo", "Rome", "Paris"])
            results.append(result(one.id, answer, method, ids=tuple(range(draw.randint(1, 9)))))
    return cases, results


def test_the_order_of_results_does_not_matter() -> None:
    cases, results = _random(0, ["plain", "cad"])
    summary = summarise(cases, results, resamples=200)
    shuffled = results[1:]
    random.Random(1).shuffle(shuffled)
    # The first stays, because methods are listed in order of appearance.
    assert summarise(cases, [results[0], *shuffled], resamples=200) == summary


def _bounds(cell: Cell) -> tuple[float, float]:
    assert cell.low is not None
    assert cell.high is not None
    return cell.low, cell.high


def test_the_order_of_cases_changes_chance_only() -> None:
    cases, results = _random(0, ["plain", "cad"])
    one = summarise(cases, results, resamples=4000).cells["cad"]
    other = summarise(cases[::-1], results, resamples=4000).cells["cad"]
    for name in ("correction", "minimum", "harmonic", "memorisation_ratio", "length"):
        assert other[name].value == pytest.approx(one[name].value)
        assert other[name].difference == pytest.approx(one[name].difference)
        low, high = _bounds(one[name])
        near = pytest.approx((low, high), abs=0.1 * (high - low))
        assert _bounds(other[name]) == near
    assert summarise(cases, results, resamples=200) == summarise(cases, results, resamples=200)
    assert summarise(cases, results, resamples=200, seed=1) != summarise(
        cases, results, resamples=200
    )


def _by_subject(cases: Sequence[Case], right: Sequence[bool]) -> np.ndarray:
    """`[subjects, 8]`: right answers and cases of each state."""
    states = ("correction", "resistance", "agreement", "irrelevant")
    subjects = list(dict.fromkeys(one.subject for one in cases))
    sums = np.zeros((len(subjects), 8))
    for one, hit in zip(cases, right, strict=True):
        row = sums[subjects.index(one.subject)]
        row[states.index(one.state)] += hit
        row[4 + states.index(one.state)] += 1
    return sums


def test_compounds_are_bootstrapped_together_as_scipy_would() -> None:
    cases, results = _random(3, ["plain"])
    sums = _by_subject(
        cases, [r.answer in c.gold_answers for c, r in zip(cases, results, strict=True)]
    )
    cells = summarise(cases, results, resamples=8000).cells["plain"]
    level = float(1 - 2 * stats.norm.cdf(-np.sqrt(50 / 49) * stats.t.ppf(0.975, 49)))

    def compound(name: str, *columns: np.ndarray, axis: int = -1) -> np.ndarray:
        totals = [column.sum(axis) for column in columns]
        c, r, a, i = (totals[n] / totals[4 + n] for n in range(4))
        return np.minimum(c, r) if name == "minimum" else 4 / (1 / c + 1 / r + 1 / a + 1 / i)

    for name in ("minimum", "harmonic"):
        reference = stats.bootstrap(
            tuple(sums.T),
            lambda *columns, axis, name=name: compound(name, *columns, axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=8000,
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        width = reference.high - reference.low
        assert cells[name].value == pytest.approx(float(compound(name, *sums.T)))
        near = pytest.approx((reference.low, reference.high), abs=0.06 * width)
        assert _bounds(cells[name]) == near


def test_differences_are_paired() -> None:
    """A method that mends four answers of the baseline's is surely better, however much the
    questions differ."""
    cases = [case(str(n), "resistance") for n in range(100)]
    before = ["Oslo" if n % 2 else "Rome" for n in range(100)]
    after = ["Oslo" if n % 2 or n < 8 else "Rome" for n in range(100)]
    results = [result(str(n), said) for n, said in enumerate(before)]
    results += [result(str(n), said, "mended") for n, said in enumerate(after)]
    cell = summarise(cases, results, resamples=4000).cells["mended"]["resistance"]
    assert cell.difference == pytest.approx(0.04)
    low, high = _bounds(cell)
    assert low < 0.5 < 0.54 < high
    assert cell.difference_low is not None
    assert cell.difference_high is not None
    # Binomial(100, 0.04): 1 to 8 of 100; unpaired it would reach below -0.09.
    assert -0.001 < cell.difference_low < 0.011
    assert 0.069 < cell.difference_high < 0.091
    # Exchanging four pairs: 2 of 16 ways are as far from 0.
    assert cell.p == pytest.approx(0.125, abs=0.02)


def test_differences_are_over_the_cases_that_both_answered() -> None:
    cases = [case(str(n), "resistance") for n in range(40)]
    results = [result(str(n), "Oslo") for n in range(40)]
    results += [result(str(n), "Oslo" if n < 10 else "Rome", "half") for n in range(20)]
    cells = summarise(cases, results).cells
    assert (cells["half"]["resistance"].value, cells["half"]["resistance"].n) == (0.5, 20)
    assert cells["half"]["resistance"].difference == -0.5
    partly = [one for one in results if one.method == "half" or int(one.case) < 10]
    cell = summarise(cases, partly).cells["half"]["resistance"]
    assert (cell.value, cell.difference) == (0.5, 0.0)
    assert "difference over the 10 cases that both answered" in cell.note
    alone = [one for one in results if one.method == "half"]
    cell = summarise(cases, alone).cells["half"]["resistance"]
    assert (cell.difference, cell.p) == (None, None)


def test_the_memorisation_ratio_is_paired_over_all_conflicts() -> None:
    """A case counts for one method and not for the other: it must not drop out of either."""
    cases = [case(str(n), "resistance") for n in range(4)]
    plain = ["Oslo", "Rome", "Rome", "Paris"]
    other = ["Oslo", "Oslo", "Paris", "Rome"]
    results = [result(str(n), said) for n, said in enumerate(plain)]
    results += [result(str(n), said, "other") for n, said in enumerate(other)]
    cell = summarise(cases, results).cells["other"]["memorisation_ratio"]
    assert cell.value == pytest.approx(2 / 3)
    assert cell.difference == pytest.approx(2 / 3 - 1 / 3)


def test_all_right_or_all_wrong_is_not_certain() -> None:
    said = [("correction", "Rome")] * 40 + [("resistance", "Rome")] * 40 + [("agreement", "Oslo")]
    cells = _rates(said).cells["plain"]
    reference = stats.binomtest(40, 40).proportion_ci(method="wilson").low
    assert (cells["correction"].low, cells["correction"].high) == (pytest.approx(reference), 1.0)
    assert cells["correction"].note == "Wilson interval of 40 subjects"
    assert (cells["resistance"].value, cells["resistance"].low) == (0.0, 0.0)
    assert cells["resistance"].high == pytest.approx(1 - reference)
    assert cells["minimum"].high == pytest.approx(1 - reference)
    assert cells["minimum"].note == "interval from those of its parts"
    assert cells["harmonic"].value == 0.0
    assert _bounds(cells["harmonic"])[1] > 0.15
    assert "of 3 states: no cases of irrelevant" in cells["harmonic"].note
    assert cells["agreement"].note == "n < 30; Wilson interval of one subject"
    assert cells["length"].note == "the same for every subject"


def test_an_equal_method_is_not_certainly_equal() -> None:
    cases = [case(str(n), "resistance") for n in range(50)]
    said = ["Oslo" if n % 2 else "Rome" for n in range(50)]
    results = [result(str(n), a, method) for method in ("plain", "cad") for n, a in enumerate(said)]
    cell = summarise(cases, results).cells["cad"]["resistance"]
    assert (cell.difference, cell.p) == (0.0, 1.0)
    unseen = stats.binomtest(0, 50).proportion_ci(method="wilson").high
    assert (cell.difference_low, cell.difference_high) == pytest.approx((-unseen, unseen))
    assert "difference: Wilson interval of 50 subjects" in cell.note


def test_a_rare_state_says_how_often_it_was_drawn() -> None:
    cases = [case(str(n), "resistance", subject=str(n)) for n in range(60)]
    cases += [case("a", "agreement", "a"), case("b", "agreement", "b")]
    results = [result(one.id, "Oslo" if one.id != "b" else "Rome") for one in cases]
    cell = summarise(cases, results).cells["plain"]["agreement"]
    # Neither of two among 62: (60/62) ** 62 = 13 %.
    assert cell.note in [f"n < 30; defined in {share}% of the resamples" for share in (86, 87, 88)]


def test_few_cases_and_few_subjects_say_so() -> None:
    cases = [case(str(n), "resistance", subject=str(n % 5)) for n in range(40)]
    draw = random.Random(0)
    results = [result(str(n), draw.choice(["Oslo", "Rome"])) for n in range(40)]
    assert summarise(cases, results).cells["plain"]["resistance"].note == "only 5 subjects"
    few = summarise(cases[:9], results[:9]).cells["plain"]["resistance"]
    assert few.note == "n < 30"


def test_one_subject_has_no_interval() -> None:
    cases = [case(str(n), "resistance", subject="one") for n in range(40)]
    results = [
        result(str(n), "Oslo" if n % 2 else "Rome", method, ids=(1,) * (1 + n % 3))
        for method in ("plain", "cad")
        for n in range(40)
    ]
    cells = summarise(cases, results).cells["cad"]
    for name in ("resistance", "length"):
        cell = cells[name]
        assert (cell.low, cell.high, cell.difference_low, cell.difference_high) == (None,) * 4
        assert "one subject: no interval" in cell.note


def test_cases_without_a_subject_are_one_each() -> None:
    cases = [replace(case(str(n), "resistance"), subject="") for n in range(40)]
    results = [result(str(n), "Oslo" if n % 2 else "Rome") for n in range(40)]
    summary = summarise(cases, results)
    assert summary.subjects == 40
    assert summary.cells["plain"]["resistance"].note == ""


def test_bad_input_is_refused() -> None:
    cases = [case("1", "correction")]
    one = result("1", "Rome")
    with pytest.raises(InvalidParameterError, match="two cases have the same id"):
        summarise(cases * 2, [one])
    with pytest.raises(InvalidParameterError, match="names the case '2': there is none"):
        summarise(cases, [result("2", "Rome")])
    with pytest.raises(InvalidParameterError, match="two results for the case '1'"):
        summarise(cases, [one, one])
    with pytest.raises(InvalidParameterError, match="at least 100"):
        summarise(cases, [one], resamples=10)
    with pytest.raises(UnknownNameError, match="unknown match"):
        summarise(cases, [one], match="nothing-like-it")


def test_nothing_gives_an_empty_summary() -> None:
    for cases in ([], [case("1", "correction")]):
        summary = summarise(cases, [])
        assert (summary.methods, dict(summary.cells), summary.detection) == ((), {}, {})


def test_a_summary_survives_json() -> None:
    cases, results = _random(0, ["plain", "cad"], subjects=20)
    results = [replace(one, tokens=tokens(float(n % 7))) for n, one in enumerate(results)]
    summary = summarise(cases, results, resamples=200)
    assert summary.detection
    data = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert Summary.from_dict(data) == summary
    with pytest.raises(InvalidParameterError, match="not a summary of version 1"):
        Summary.from_dict(data | {"version": 2})
    with pytest.raises(InvalidParameterError, match="not a summary"):
        Summary.from_dict({})
