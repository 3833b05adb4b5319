"""Answers made up so that what a fit has to find is known."""

from __future__ import annotations

import numpy as np

from conflictkit.evaluation.auto import Answered
from conflictkit.interventions.contrast.auto import SIGNALS

BIAS = 0.4
PLANTED = {"jsd": -2.0, "memory_entropy": 1.5, "memory_confidence": -1.0, "context_rank": 0.5}
WEIGHTS = (0.0, 0.5, 1.0, 1.5)


def answered(cases: int, seed: int = 0, *, agreement_needs: float = 0.0) -> Answered:
    """The context is right with log odds of BIAS + signals @ PLANTED.

    Answers of correction are true from weight 0.5 on, those of resistance below 1, and agreement
    from `agreement_needs` on.
    """
    rng = np.random.default_rng(seed)
    signals = rng.normal(1.0, 1.0, (cases, len(SIGNALS)))
    g = BIAS + signals @ np.array([PLANTED.get(name, 0.0) for name in SIGNALS])
    context_right = rng.random(cases) < 1 / (1 + np.exp(-g))
    agree = rng.random(cases) < 0.2
    differ = rng.random(cases) < 0.9
    states = np.where(agree, "agreement", np.where(context_right, "correction", "resistance"))
    at = np.array(WEIGHTS)
    right = np.where((states == "correction")[:, None], at >= 0.5, at < 1)
    right = np.where(agree[:, None], at >= agreement_needs, right)
    return Answered(
        states=states,
        subjects=rng.integers(0, max(cases // 3, 1), cases),
        signals=np.where(differ[:, None], signals, 0.0),
        differ=differ,
        weights=WEIGHTS,
        right=right,
    )
