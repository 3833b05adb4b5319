"""Logistic regression on a few signals, and judgements of cases that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conflictkit.evaluation.metrics.intervals import Array

FOLDS = 5
PENALTY = 1.0
_CONSTANT = 1e-6
"""A signal that spreads less than this says nothing."""

Flags = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Line:
    """`g = bias + signals @ weights`, the log odds of being right.

    Attributes:
        bias: of the signals as they are.
        weights: `[signals]`, per unit of each signal.
        spread: `[signals]`, standard deviation of each signal where the line was fitted.
    """

    bias: float
    weights: Array
    spread: Array

    def __call__(self, signals: Array) -> Array:
        """g of `[cases, signals]`: `[cases]`."""
        return self.bias + signals @ self.weights


def regress(signals: Array, right: Flags, penalty: float = PENALTY) -> Line:
    """Class-balanced logistic regression with an L2 penalty on standardised signals.

    Minimises `penalty / 2 |w|^2 + sum s_i log(1 + exp(-y_i g_i))`, y = 1 or -1, the bias free;
    `s_i = n / (2 n_y)`, so that both classes weigh the same. A signal without spread gets weight 0.

    Args:
        signals: `[cases, signals]`.
        right: `[cases]`, at least one true and one false.
        penalty: above 0.
    """
    from scipy import optimize  # late: it takes a while to import

    centre, spread = signals.mean(0), signals.std(0)
    constant = spread < _CONSTANT
    scale = np.where(constant, 1.0, spread)
    z = np.where(constant, 0.0, (signals - centre) / scale)
    y = np.where(right, 1.0, -1.0)
    share = len(right) / (2 * np.where(right, right.sum(), (~right).sum()))

    def loss(at: Array) -> tuple[float, Array]:
        margin = y * (at[0] + z @ at[1:])
        # 1 - sigmoid(margin), from the side that cannot overflow.
        wrong = np.exp(-np.logaddexp(0.0, margin))
        slope = -share * y * wrong
        value = penalty / 2 * at[1:] @ at[1:] + share @ np.logaddexp(0.0, -margin)
        gradient = np.append(slope.sum(), penalty * at[1:] + z.T @ slope)
        return float(value) / len(y), gradient / len(y)

    start = np.zeros(signals.shape[1] + 1)
    exact = {"gtol": 1e-10, "ftol": 1e-15, "maxiter": 1000}
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=exact).x
    weights = found[1:] / scale
    return Line(float(found[0] - centre @ weights), weights, np.where(constant, 0.0, spread))


def folds(groups: Numbers, right: Flags, known: Flags, seed: int, count: int = FOLDS) -> Numbers:
    """The fold of each case: a group's cases share one, and every fold leaves both classes behind.

    Groups are dealt out by which classes they have, in random order among their like, so that with
    `count` groups of a class no fold has all of them.

    Args:
        groups: `[cases]`, number of each case's group.
        right: `[cases]`, class of those that are `known`; the others have none.
    """
    kinds: dict[int, tuple[bool, bool]] = {}
    for group, yes, labelled in zip(groups.tolist(), right.tolist(), known.tolist(), strict=True):
        one, zero = kinds.get(group, (False, False))
        kinds[group] = (one or (labelled and yes), zero or (labelled and not yes))
    order = np.random.default_rng(seed).permutation(sorted(kinds)).tolist()
    dealt = sorted(order, key=lambda group: kinds[group], reverse=True)
    place = {group: number % count for number, group in enumerate(dealt)}
    return np.array([place[group] for group in groups.tolist()], dtype=np.int64)


def held_out(
    signals: Array,
    right: Flags,
    known: Flags,
    groups: Numbers,
    seed: int,
    penalty: float = PENALTY,
) -> Array:
    """g of every case by a line fitted without its group: `[cases]`."""
    where = folds(groups, right, known, seed)
    found = np.zeros(len(signals))
    for fold in range(FOLDS):
        learn = known & (where != fold)
        if (where == fold).any():
            line = regress(signals[learn], right[learn], penalty)
            found[where == fold] = line(signals[where == fold])
    return found


def numbered(names: Sequence[object]) -> Numbers:
    """The same number for the same name, from 0 in order of appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)
