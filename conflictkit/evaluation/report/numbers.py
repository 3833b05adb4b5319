"""Figures for people: a value, its interval, and whether it differs from the baseline."""

from __future__ import annotations

import math

from conflictkit.evaluation.metrics.summary import METRICS, Cell
from conflictkit.trace.text import NOT_A_NUMBER, number

LEVEL = 0.05
"""A difference with a smaller p-value is marked."""


def is_share(metric: str) -> bool:
    """Whether a metric is a share, shown in per cent."""
    return METRICS[metric][1] == "%"


def titled(metric: str) -> str:
    """A metric with its unit, unless its name says it."""
    name, unit = METRICS[metric][:2]
    return name if unit.replace("/", " per ") in ("", name.lower()) else f"{name} ({unit})"


def shown(value: float | None, metric: str) -> str:
    """A value in the metric's unit."""
    if value is None or not math.isfinite(value):
        return NOT_A_NUMBER
    if is_share(metric):
        return number(value * 100, 1)
    return amount(value)


def amount(value: float, *, sign: bool = False) -> str:
    """A number of any size with three significant digits, from 10,000 on in thousands (k) and so
    on."""
    for power, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 10 * power:
            return amount(value / power, sign=sign) + letter
    size = abs(value)
    if size >= 1000:
        return f"{value:{'+' if sign else ''},.0f}".replace("-", "−")
    return number(value, 2 if size < 10 else 1 if size < 100 else 0, sign=sign)


def bounds(cell: Cell) -> tuple[float, float] | None:
    """The interval, if there is one."""
    if cell.low is None or cell.high is None:
        return None
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return None
    return cell.low, cell.high


def interval(cell: Cell, metric: str) -> str:
    """The interval in brackets, or nothing."""
    ends = bounds(cell)
    return "" if ends is None else f"[{shown(ends[0], metric)}, {shown(ends[1], metric)}]"


def figure(cell: Cell, metric: str) -> str:
    """Value, unit and interval in one line."""
    unit = METRICS[metric][1]
    return " ".join(
        part for part in (shown(cell.value, metric), unit, interval(cell, metric)) if part
    )


def mark(cell: Cell) -> str:
    """▲ or ▼ where the cell is significantly above or below the baseline."""
    if cell.p is None or cell.difference is None or not cell.p < LEVEL or not cell.difference:
        return ""
    return "▲" if cell.difference > 0 else "▼"


def verdict(cell: Cell, metric: str) -> str:
    """What the mark means for this metric: `better`, `worse`, `differs`, or nothing."""
    sign = mark(cell)
    better = METRICS[metric][2]
    if not sign or not better:
        return "differs" if sign else ""
    return "better" if (sign == "▲") == (better == "higher") else "worse"


def against(cell: Cell, metric: str, baseline: str) -> str:
    """The difference to the baseline in words, or nothing."""
    if cell.difference is None or not math.isfinite(cell.difference):
        return ""
    share = is_share(metric)
    unit = "points" if share else METRICS[metric][1]

    def difference(value: float) -> str:
        return number(value * 100, 1, sign=True) if share else amount(value, sign=True)

    text = f"difference to {baseline} {difference(cell.difference)} {unit}".rstrip()
    low, high = cell.difference_low, cell.difference_high
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        text += f" [{difference(low)}, {difference(high)}]"
    if cell.p is not None and math.isfinite(cell.p):
        text += ", p < 0.001" if cell.p < 0.001 else f", p = {cell.p:.3f}"
    return text
