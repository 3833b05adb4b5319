"""How well a detector tells conflict from agreement, per token and per answer.

Positives are the tokens or answers of cases in which context and memory say different things,
negatives those of agreement cases. An answer's score is its most alarming token's, as in
`Model.calibrate`; a detector whose low values mean conflict is turned round first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conflictkit import detectors
from conflictkit.calibration import QUIET
from conflictkit.evaluation.metrics import intervals
from conflictkit.evaluation.metrics.intervals import Array
from conflictkit.evaluation.metrics.rates import Seen

LEVELS = ("token", "answer")
BINS = 10
"""Bins of a calibration table, at most."""
POINTS = 200
"""Points kept of a ROC curve, about."""
_TINY = 1e-300


@dataclass(frozen=True)
class Scored:
    """Scores of one detector at one level, high for conflict.

    Attributes:
        scores: `[items]`.
        conflict: `[items]` bool.
        subjects: `[items]`, number of each item's subject.
    """

    scores: Array
    conflict: np.ndarray[Any, np.dtype[np.bool_]]
    subjects: np.ndarray[Any, np.dtype[np.int64]]


def ranked(scored: Scored, weights: Array) -> tuple[Array, Array]:
    """AUROC and average precision of weighted items, for many weightings at once.

    With items sorted from the highest score, T and F the weights of positives and negatives up to
    the end of each group of equal scores, and dT, dF what that group adds:
    `AUROC = sum(dF (T + T_before) / 2) / (T_all F_all)`, the probability that a positive scores
    higher than a negative, ties counting half; `AP = sum(dT / T_all * T / (T + F))`.

    Args:
        scored: the items.
        weights: `[weightings, subjects]`, every item's weight is its subject's.

    Returns:
        Two arrays `[weightings]`, 0 to 1; NaN without weight on either side.
    """
    order = np.argsort(-scored.scores, kind="stable")
    values, subjects = scored.scores[order], scored.subjects[order]
    conflict = scored.conflict[order]
    rows = np.ascontiguousarray(weights.T)
    starts = np.flatnonzero(np.append(True, np.diff(values) != 0))
    true, false, area, average = np.zeros((4, len(weights)))
    # Item by item with all weightings at once: no array of items by weightings is ever made.
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        group, positive = subjects[start:end], conflict[start:end]
        added = _weight(rows, group[positive])
        if added is not None:
            true += added
        if (negative := _weight(rows, group[~positive])) is not None:
            false += negative
            area += negative * (true if added is None else true - added / 2)
        if added is not None:
            average += added * true / np.maximum(true + false, _TINY)
    one_sided = (true <= 0) | (false <= 0)
    true[one_sided] = false[one_sided] = np.nan
    return area / (true * false), average / true


def _weight(rows: Array, subjects: np.ndarray[Any, np.dtype[np.int64]]) -> Array | None:
    """Weight of some items under every weighting; None without any."""
    if len(subjects) == 0:
        return None
    if len(subjects) == 1:
        return rows[subjects[0]]
    return np.bincount(subjects, minlength=len(rows)).astype(float) @ rows


def roc_curve(scored: Scored) -> dict[str, list[float]]:
    """False and true positive rates as the threshold falls, from (0, 0) to (1, 1).

    Of long curves about `POINTS` points are kept, evenly spaced along the curve.
    """
    order = np.argsort(-scored.scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scored.scores[order]) != 0, True))
    conflict = scored.conflict[order]
    tpr = np.append(0.0, np.cumsum(conflict)[ends] / np.count_nonzero(conflict))
    fpr = np.append(0.0, np.cumsum(~conflict)[ends] / np.count_nonzero(~conflict))
    if len(fpr) > POINTS:
        kept = np.unique(np.searchsorted(fpr + tpr, np.linspace(0, 2, POINTS)))
        kept = np.unique(np.append(kept[kept < len(fpr)], (0, len(fpr) - 1)))
        fpr, tpr = fpr[kept], tpr[kept]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}


def calibration(scored: Scored, sign: str) -> list[dict[str, float]]:
    """What a score means: share of conflict among items of similar score.

    The items are cut into at most `BINS` bins of about equal size, equal scores never apart. The
    share depends on how many conflict cases there are among the cases.

    Args:
        scored: the items.
        sign: `>` or `<`: which side of the detector's own scale is conflict.

    Returns:
        Per bin, from the lowest score on the detector's own scale: `score_low, score_high, n,
        conflict` and its 95 % interval `low, high` (Wilson's, for the number of subjects).
    """
    values = scored.scores if sign == ">" else -scored.scores
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True)) + 1
    wanted = np.linspace(0, len(values), BINS + 1)[1:]
    cuts = np.unique(np.append(0, ends[np.searchsorted(ends, wanted)]))
    bins = []
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        items = order[first:last]
        share = float(np.mean(scored.conflict[items]))
        low, high = intervals.wilson(share, len(np.unique(scored.subjects[items])))
        bins.append(
            {
                "score_low": float(values[items[0]]),
                "score_high": float(values[items[-1]]),
                "n": len(items),
                "conflict": share,
                "low": low,
                "high": high,
            }
        )
    return bins


def detect(
    seen: Iterable[Seen], subjects: Mapping[str, int], weights: Array
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure every detector that the answers' tokens hold scores of.

    Args:
        seen: answers of one method, normally of `plain`.
        subjects: case id -> number of its subject.
        weights: `[resamples, subjects]` of `intervals.draw_subjects`.

    Returns:
        Detector -> level -> `auroc`, `auprc` (each with `_low` and `_high`, 95 % by subject; None
        where there is none), `n_conflict`, `n_agreement`, `curve`, `calibration`, `note`. Levels
        that lack one of the sides are left out.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, levels in _collect(seen, subjects).items():
        sign = detectors.get(name).sign
        measured = {
            level: measure(scored, sign, weights)
            for level, scored in levels.items()
            if scored.conflict.any() and not scored.conflict.all()
        }
        if measured:
            found[name] = measured
    return found


def _collect(seen: Iterable[Seen], subjects: Mapping[str, int]) -> dict[str, dict[str, Scored]]:
    signs = {name: 1.0 if detectors.get(name).sign == ">" else -1.0 for name in detectors.names()}
    items: dict[str, dict[str, list[tuple[float, bool, int]]]] = defaultdict(
        lambda: {level: [] for level in LEVELS}
    )
    for one in seen:
        if not one.conflict and one.case.state not in QUIET:
            continue
        subject = subjects[one.case.id]
        # The end token, where it is recorded, is nobody's answer.
        tokens = one.result.tokens[: len(one.result.ids)]
        for name, sign in signs.items():
            key = name.replace("-", "_")
            values = [
                sign * token["scores"][key] for token in tokens if _finite(token["scores"].get(key))
            ]
            if values:
                items[name]["token"] += [(value, one.conflict, subject) for value in values]
                items[name]["answer"].append((max(values), one.conflict, subject))
    return {
        name: {level: _arrays(rows) for level, rows in levels.items()}
        for name, levels in items.items()
    }


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _arrays(rows: Sequence[tuple[float, bool, int]]) -> Scored:
    scores, conflict, subjects = zip(*rows, strict=True)
    return Scored(np.array(scores, float), np.array(conflict, bool), np.array(subjects, np.int64))


def measure(scored: Scored, sign: str, weights: Array) -> dict[str, Any]:
    """What `detect` says of one detector at one level.

    Args:
        scored: its scores, of both sides.
        sign: the side on which conflict lies, for the calibration table.
        weights: `[resamples, subjects]` of `intervals.draw_subjects`.
    """
    even = np.ones((1, weights.shape[1]))
    values = np.concatenate(ranked(scored, even))
    counts = [len(np.unique(scored.subjects[side])) for side in (scored.conflict, ~scored.conflict)]
    fewest = min(counts)
    samples = np.stack(ranked(scored, weights), axis=1)
    lows, highs, _ = intervals.percentiles(samples, np.full(2, float(fewest)))
    measured: dict[str, Any] = {}
    notes = []
    for number, name in enumerate(("auroc", "auprc")):
        value, low, high = float(values[number]), float(lows[number]), float(highs[number])
        if fewest < 2 or math.isnan(low) or intervals.same(low, high):
            if value in (0.0, 1.0):
                low, high = intervals.wilson(value, fewest)
                notes.append(f"{name.upper()} is {value:g}: Wilson interval of {fewest} subjects")
            else:
                low = high = math.nan
                notes.append(f"{name.upper()}: too few subjects for an interval")
        measured[name] = value
        measured[f"{name}_low"] = None if math.isnan(low) else low
        measured[f"{name}_high"] = None if math.isnan(high) else high
    if fewest < 30:
        notes.insert(0, f"{fewest} subjects on one side")
    return measured | {
        "n_conflict": int(np.count_nonzero(scored.conflict)),
        "n_agreement": int(np.count_nonzero(~scored.conflict)),
        "curve": roc_curve(scored),
        "calibration": calibration(scored, sign),
        "note": "; ".join(notes),
    }
