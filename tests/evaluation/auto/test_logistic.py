"""Logistic regression against scikit-learn and planted coefficients; folds by subject."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from conflictkit.evaluation.logistic import FOLDS, folds, held_out, numbered, regress
from tests.evaluation.auto.made import BIAS, PLANTED, SIGNALS, answered


def labelled(cases: int, seed: int = 0):
    made = answered(cases, seed)
    known = made.differ & (made.states != "agreement")
    return made.signals, made.states == "correction", known, made.subjects


@pytest.mark.parametrize(("cases", "penalty"), [(60, 1.0), (500, 0.1), (500, 30.0)])
def test_the_line_is_scikit_learns(cases: int, penalty: float) -> None:
    signals, right, known, _ = labelled(cases)
    x, y = signals[known] * [1, 10, 0.01, 1, 1, 1, 1] + [0, 5, 0, 0, -3, 0, 0], right[known]
    ours = regress(x, y, penalty)
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-10, max_iter=10_000)
    theirs.fit(scaler.transform(x), y)
    np.testing.assert_allclose(ours(x), theirs.decision_function(scaler.transform(x)), atol=1e-4)
    np.testing.assert_allclose(ours.weights * ours.spread, theirs.coef_[0], atol=1e-4)


def test_planted_coefficients_are_found() -> None:
    signals, right, known, _ = labelled(40_000)
    line = regress(signals[known], right[known])
    wanted = [PLANTED.get(name, 0.0) for name in SIGNALS]
    np.testing.assert_allclose(line.weights, wanted, atol=0.1)
    # Balanced classes move the bias by the log odds of the classes, and nothing else.
    share = right[known].mean()
    assert line.bias + np.log(share / (1 - share)) == pytest.approx(BIAS, abs=0.15)


def test_a_signal_without_spread_gets_no_weight() -> None:
    signals, right, known, _ = labelled(300)
    signals[:, 2] = 0.1 + 0.2
    line = regress(signals[known], right[known])
    assert line.weights[2] == line.spread[2] == 0
    assert np.isfinite(line(signals)).all()


def test_separable_classes_do_not_diverge() -> None:
    x = np.linspace(-1, 1, 40)[:, None]
    line = regress(x, x[:, 0] > 0)
    assert 0 < line.weights[0] < 100


def test_folds_keep_subjects_together_and_leave_both_classes() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        # Five subjects of the rarer class, and many of neither.
        groups = rng.integers(0, 60, 300)
        right = (groups < FOLDS) & (rng.random(300) < 0.5)
        right[[np.flatnonzero(groups == group)[0] for group in range(FOLDS)]] = True
        known = groups < 40
        where = folds(groups, right, known, seed)
        assert set(where) == set(range(FOLDS))
        assert set(where[right]) == set(range(FOLDS))  # one of the five in each
        for group in set(groups):
            assert len(set(where[groups == group])) == 1
        for fold in range(FOLDS):
            learn = known & (where != fold)
            assert 0 < right[learn].sum() < learn.sum()


def test_a_judgement_does_not_know_its_subject() -> None:
    signals, right, known, subjects = labelled(300)
    before = held_out(signals, right, known, subjects, 0)
    one = subjects == subjects[known][0]
    other = np.where(one, ~right, right)
    # The classes say how subjects are dealt out: keep them in the same folds.
    where = folds(subjects, right, known, 0)
    if (folds(subjects, other, known, 0) == where).all():
        after = held_out(signals, other, known, subjects, 0)
        np.testing.assert_allclose(after[one], before[one])
        assert not np.allclose(after, before)
    for fold in range(FOLDS):
        away = known & (where != fold)
        line = regress(signals[away], right[away])
        np.testing.assert_allclose(before[where == fold], line(signals[where == fold]))


def test_numbers_follow_the_order_of_names() -> None:
    assert numbered(["b", ("b",), "a", "b"]).tolist() == [0, 1, 2, 0]
