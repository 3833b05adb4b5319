"""Intervals and tests against scipy, and by how often they hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from conflictkit.evaluation.metrics import intervals


def _clusters(rng: np.random.Generator, subjects: int, spread: float = 4.0) -> np.ndarray:
    """`[subjects, 2]`: hits and questions of subjects that differ in how easy they are."""
    questions = rng.integers(1, 5, subjects)
    ease = rng.beta(0.7 * spread, 0.3 * spread, subjects)
    return np.stack([rng.binomial(questions, ease), questions], axis=1).astype(float)


def _interval(sums: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    totals = intervals.draw_subjects(len(sums), resamples, rng) @ sums
    samples = (totals[:, 0] / totals[:, 1])[:, None]
    low, high, _ = intervals.percentiles(samples, np.array([float(len(sums))]))
    return float(low[0]), float(high[0])


@pytest.mark.parametrize("subjects", [8, 60])
def test_the_bootstrap_is_scipys_over_subjects(subjects: int) -> None:
    sums = _clusters(np.random.default_rng(1), subjects)
    # Hesterberg's expansion, from its definition.
    t = stats.t.ppf(0.975, subjects - 1)
    level = float(1 - 2 * stats.norm.cdf(-np.sqrt(subjects / (subjects - 1)) * t))
    reference = stats.bootstrap(
        (sums[:, 0], sums[:, 1]),
        lambda hits, asked, axis: hits.sum(axis) / asked.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    low, high = _interval(sums, 20000, 3)
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.04 * width)
    assert high == pytest.approx(reference.high, abs=0.04 * width)


def test_the_permutation_test_is_scipys() -> None:
    rng = np.random.default_rng(4)
    ours, theirs = _clusters(rng, 10), _clusters(rng, 10)
    theirs[:, 0] = np.minimum(theirs[:, 0], rng.integers(0, 3, 10))

    def statistic(a: np.ndarray, n: np.ndarray, axis: int) -> np.ndarray:
        return a.sum(axis) / n.sum(axis)

    def exact() -> float:
        # All 1024 ways to exchange the two methods' subjects.
        ways = (np.arange(1024)[:, None] >> np.arange(10)) & 1
        moved = ways @ (theirs - ours)
        left, right = ours.sum(0) + moved, theirs.sum(0) - moved
        spread = left[:, 0] / left[:, 1] - right[:, 0] / right[:, 1]
        return float(np.mean(np.abs(spread) >= abs(spread[0]) - 1e-12))

    exchanges = intervals.draw_exchanges(10, 20000, np.random.default_rng(5))
    moved = exchanges @ (theirs - ours)

    def quotient(sums: np.ndarray) -> np.ndarray:
        return sums[..., :1] / sums[..., 1:]

    observed = quotient(ours.sum(0)) - quotient(theirs.sum(0))
    permuted = quotient(ours.sum(0) + moved) - quotient(theirs.sum(0) - moved)
    p = float(intervals.permutation_p(observed, permuted)[0])
    assert p == pytest.approx(exact(), abs=0.01)

    # With as many questions for every subject, it is also scipy's test of paired samples.
    a, b = ours[:, 0], theirs[:, 0]
    reference = stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis),
        permutation_type="samples", vectorized=True, n_resamples=1024,
    ).pvalue  # fmt: skip
    moved = exchanges @ (b - a)[:, None]
    observed = np.array([a.sum() - b.sum()])
    permuted = (a.sum() + moved) - (b.sum() - moved)
    assert intervals.permutation_p(observed, permuted)[0] == pytest.approx(reference, abs=0.01)
    assert 0.005 < reference < 0.5


def test_p_of_equal_methods_is_one_and_never_zero() -> None:
    assert intervals.permutation_p(np.zeros(1), np.zeros((99, 1)))[0] == 1.0
    assert intervals.permutation_p(np.ones(1), np.zeros((99, 1)))[0] == 0.01
    undefined = np.full((99, 1), np.nan)
    assert intervals.permutation_p(np.ones(1), undefined)[0] == 1.0
    assert np.isnan(intervals.permutation_p(np.full(1, np.nan), undefined)[0])


@pytest.mark.parametrize(("hits", "count"), [(0, 3), (1, 10), (7, 20), (50, 50), (399, 400)])
def test_wilson_is_scipys(hits: int, count: int) -> None:
    reference = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert intervals.wilson(hits / count, count) == pytest.approx(
        (reference.low, reference.high), abs=1e-12
    )


def test_few_subjects_widen_the_cut() -> None:
    cut = intervals.tail(np.array([1.0, 2.0, 5.0, 30.0, 100000.0]))
    assert cut[0] == 0
    assert np.all(np.diff(cut) > 0)
    assert cut[-1] == pytest.approx(0.025, rel=1e-3)
    reference = stats.norm.cdf(-np.sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    assert cut[2] == pytest.approx(float(reference), rel=1e-9)


def test_undefined_resamples_are_left_out() -> None:
    samples = np.array([[np.nan, np.nan], [1.0, np.nan], [3.0, np.nan], [2.0, np.nan]])
    low, high, defined = intervals.percentiles(samples, np.array([1e9, 1e9]))
    reference = np.quantile([1.0, 2.0, 3.0], [0.025, 0.975])
    assert (low[0], high[0]) == pytest.approx(tuple(reference))
    assert defined.tolist() == [0.75, 0.0]
    assert np.isnan([low[1], high[1]]).all()


def test_every_subject_is_drawn_as_often() -> None:
    weights = intervals.draw_subjects(7, 20000, np.random.default_rng(0))
    assert weights.sum(1).tolist() == [7.0] * 20000
    assert weights.mean(0) == pytest.approx(np.ones(7), abs=0.03)
    assert weights.var(0) == pytest.approx(np.full(7, 6 / 7), abs=0.05)


def test_what_subjects_share_widens_the_interval() -> None:
    """The same answers, asked of as many subjects or of a quarter of them four times each."""
    hits = np.random.default_rng(6).integers(0, 2, 100).astype(float)
    single = np.stack([np.repeat(hits, 4), np.ones(400)], axis=1)
    together = np.stack([hits * 4, np.full(100, 4.0)], axis=1)
    apart, clustered = _interval(single, 4000, 7), _interval(together, 4000, 7)
    ratio = (clustered[1] - clustered[0]) / (apart[1] - apart[0])
    assert ratio == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("subjects", [12, 60])
def test_the_interval_holds_as_often_as_it_says(subjects: int) -> None:
    rng = np.random.default_rng(8)
    # Subjects' questions and ease are drawn apart, so the quotient's true value is the mean ease.
    held = 0
    for trial in range(300):
        low, high = _interval(_clusters(rng, subjects), 400, trial)
        held += low <= 0.7 <= high
    # Binomial: 285 expected, standard deviation 3.8.
    assert 271 <= held <= 298


def test_equal_methods_are_told_apart_no_more_often_than_it_says() -> None:
    rng = np.random.default_rng(9)
    alarms = 0
    for _ in range(300):
        ease = rng.beta(2, 2, 25)
        ours, theirs = (rng.binomial(3, ease).astype(float)[:, None] for _ in range(2))
        moved = intervals.draw_exchanges(25, 300, rng) @ (theirs - ours)
        permuted = (ours.sum(0) + moved) - (theirs.sum(0) - moved)
        alarms += float(intervals.permutation_p(ours.sum(0) - theirs.sum(0), permuted)[0]) <= 0.05
    # Binomial: at most 15 expected, standard deviation 3.8.
    assert 3 <= alarms <= 27
