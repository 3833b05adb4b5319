"""How well each detector tells conflict from agreement: ROC curves, and what a score means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conflictkit.evaluation.metrics.summary import Summary
from conflictkit.evaluation.report.charts import Chart
from conflictkit.evaluation.report.svg import SERIES, Axis, Drawing, span, text_width
from conflictkit.evaluation.report.tables import LEVELS
from conflictkit.trace.text import number

_SIDE = 300.0
_LEGEND = 18
_CALIBRATED = 3
"""Detectors, the best ones, whose calibration is drawn."""


def charts(summary: Summary) -> list[Chart | None]:
    """ROC curves at both levels, and the calibration of the best detectors."""
    best = _ranked(summary, "answer")[:_CALIBRATED]
    return [roc(summary, level) for level in LEVELS] + [calibration(*one) for one in best]


def roc(summary: Summary, level: str) -> Chart | None:
    """ROC curves of all detectors at one level, the best first in the legend."""
    found = _ranked(summary, level)
    if not found:
        return None
    left, top = 58.0, 14.0
    items = "answers" if level == "answer" else "tokens"
    x = Axis(0.0, 1.0, left, left + _SIDE, f"false alarms (% of {items} without conflict)", True)
    y = Axis(0.0, 1.0, top + _SIDE, top, f"conflicts found (% of {items} with one)", True)
    title = f"Detectors, {LEVELS[level]}"
    keys = [f"{number(result['auroc'], 3)} {name}" for name, result in found]
    width = left + _SIDE + 50 + max(text_width(key, 12) for key in keys)
    height = max(top + _SIDE + 48, top + 40 + _LEGEND * len(found))
    drawing = Drawing(width, height, title, f"ROC curves of {len(found)} detectors.")
    drawing.frame(x, y)
    drawing.line(x(0.0), y(0.0), x(1.0), y(1.0), "guide")
    drawing.text(left + _SIDE + 46, top + 8, "AUROC", "tick")
    # The best one is drawn last, on top.
    for place, (_, result) in reversed(list(enumerate(found))):
        kind = f"curve s{place % SERIES} d{place // SERIES % 3}"
        curve = result["curve"]
        points = zip(curve["fpr"], curve["tpr"], strict=True)
        drawing.path([(x(a), y(b)) for a, b in points], kind)
        row = top + 28 + _LEGEND * place
        drawing.line(left + _SIDE + 16, row - 4, left + _SIDE + 40, row - 4, kind)
        drawing.text(left + _SIDE + 46, row, keys[place], "key")
    note = "Above the thin line is better than chance; intervals are in the table."
    return Chart(title, str(drawing), drawing.width, note)


def calibration(name: str, found: Mapping[str, Any]) -> Chart | None:
    """Share of conflict among answers of similar score."""
    bins = found["calibration"]
    if len(bins) < 2:
        return None
    width, height = 368.0, 270.0
    low, high = span([edge for one in bins for edge in (one["score_low"], one["score_high"])])
    x = Axis(low, high, 58, width - 12, f"{name} of an answer")
    y = Axis(0.0, 1.0, height - 46, 14, "answers with conflict (%)", percent=True)
    about = f"Share of conflict among answers of similar {name}."
    drawing = Drawing(width, height, f"Calibration of {name}", about)
    drawing.frame(x, y)
    base = found["n_conflict"] / (found["n_conflict"] + found["n_agreement"])
    drawing.line(x.start, y(base), x.stop, y(base), "guide")
    for one in bins:
        px = x((one["score_low"] + one["score_high"]) / 2)
        py = y(one["conflict"])
        drawing.line(x(one["score_low"]), py, x(one["score_high"]), py, "error s0")
        drawing.cross(px, py, "s0", up=(y(one["low"]), y(one["high"])))
        share = f"{number(one['conflict'] * 100, 1)} % of {one['n']:,}"
        between = f"{one['score_low']:.3g} to {one['score_high']:.3g}"
        drawing.mark(px, py, 0, "s0", f"{name} {between}: {share}")
    note = "Answers in bins of about equal size; thin line: share among all."
    return Chart(f"Calibration of {name}", str(drawing), width, note)


def _ranked(summary: Summary, level: str) -> list[tuple[str, Mapping[str, Any]]]:
    found = [(name, levels[level]) for name, levels in summary.detection.items() if level in levels]
    return sorted(found, key=lambda one: -one[1]["auroc"])
