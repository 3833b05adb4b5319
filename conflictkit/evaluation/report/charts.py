"""The charts of a run: what each method does to the two conflicts, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from conflictkit.evaluation.metrics.summary import METRICS, Cell, Summary
from conflictkit.evaluation.report.families import Sweep, readable, styles, sweeps
from conflictkit.evaluation.report.labels import SIZE, Box, Label, place, spread
from conflictkit.evaluation.report.numbers import bounds, figure, is_share, titled
from conflictkit.evaluation.report.svg import Axis, Drawing, span, text_width

WIDTH, HEIGHT = 560.0, 470.0
_PAD = 5.0
_LONGEST = 190.0


@dataclass(frozen=True)
class Chart:
    """A drawing with its words.

    Attributes:
        title: of the figure.
        drawing: the SVG.
        width: its width in pixels.
        note: how to read it.
    """

    title: str
    drawing: str
    width: float
    note: str


def plane(summary: Summary) -> Chart | None:
    """Correction against resistance: each method a point, sweeps as lines."""
    return _scatter(
        summary,
        ("resistance", "correction"),
        "Correction and resistance",
        "Up: the context is right and the method follows it. To the right: the context is wrong "
        "and the method keeps what the model knows. On the thin line both are equal.",
        diagonal=True,
    )


def cost(summary: Summary, quality: str) -> Chart | None:
    """A measure of quality against forwards per token."""
    title = METRICS[quality][0]
    return _scatter(
        summary,
        ("forwards_per_token", quality),
        f"Cost and {title.lower()}",
        "To the left is cheaper, up is better.",
        zero=True,
    )


def curves(summary: Summary, sweep: Sweep) -> Chart | None:
    """Where answers come from, against the parameter of one sweep."""
    shown = [name for name in _SOURCES if _has(summary, sweep, name)]
    if not shown:
        return None
    width, height = 368.0, 290.0
    values = [value for value, _ in sweep.points]
    low, high = min(values), max(values)
    x = Axis(low, high, 58, width - 92, f"{sweep.name}: {sweep.parameter}")
    y = Axis(0.0, 1.0, height - 46, 14, "share of answers (%)", percent=True)
    about = f"Share of answers from each source against {sweep.parameter}."
    drawing = Drawing(width, height, f"Sources of answers under {sweep.name}", about)
    drawing.frame(x, y)
    ends = []
    for name in shown:
        kind, words = _SOURCES[name]
        cells = [(value, summary.cells[label].get(name)) for value, label in sweep.points]
        known = [(value, cell) for value, cell in cells if _known(cell)]
        drawing.path([(x(value), y(cell.value)) for value, cell in known], f"curve {kind}")
        for value, cell in known:
            up = bounds(cell)
            title = f"{sweep.parameter}={value:g}, {words}: {figure(cell, name)}"
            drawing.cross(x(value), y(cell.value), kind, up=up and (y(up[0]), y(up[1])))
            drawing.mark(x(value), y(cell.value), 0, kind, title)
        if known:
            ends.append((y(known[-1][1].value), words, kind))
    moved = spread([end[0] for end in ends], 15, y.stop + 4, y.start - 2)
    for place_, (_, words, kind) in zip(moved, ends, strict=True):
        drawing.text(x.stop + 10, place_ + 4, words, f"label {kind}")
    title = f"Sources of answers under {sweep.name}, by {sweep.parameter}"
    note = "Cases where context and memory contradict each other; bars: 95 % intervals."
    return Chart(title, str(drawing), width, note)


_SOURCES = {
    "context_rate": ("context", "context"),
    "memory_rate": ("memory", "memory"),
    "other_rate": ("other", "other"),
}


def all_curves(summary: Summary) -> list[Chart]:
    """One chart for each sweep of the run."""
    drawn = (curves(summary, sweep) for sweep in sweeps(summary.methods))
    return [chart for chart in drawn if chart is not None]


def _known(cell: Cell | None) -> TypeGuard[Cell]:
    return cell is not None and cell.value is not None and math.isfinite(cell.value)


def _has(summary: Summary, sweep: Sweep, metric: str) -> bool:
    return any(_known(summary.cells[label].get(metric)) for _, label in sweep.points)


def _scatter(
    summary: Summary,
    metrics: tuple[str, str],
    title: str,
    note: str,
    *,
    diagonal: bool = False,
    zero: bool = False,
) -> Chart | None:
    """Two metrics of every method against each other."""
    points: dict[str, tuple[Cell, Cell]] = {}
    for label in summary.methods:
        across, up = (summary.cells[label].get(name) for name in metrics)
        if _known(across) and _known(up):
            points[label] = (across, up)
    if not points:
        return None
    x = _axis(metrics[0], [cells[0] for cells in points.values()], 62, WIDTH - 14, zero=zero)
    y = _axis(metrics[1], [cells[1] for cells in points.values()], HEIGHT - 48, 14)
    about = f"{y.title} against {x.title} of {len(points)} methods."
    drawing = Drawing(WIDTH, HEIGHT, title, about)
    drawing.frame(x, y)
    if diagonal:
        drawing.line(x(0.0), y(0.0), x(1.0), y(1.0), "guide")
    style = styles(summary.methods, summary.baseline)
    obstacles = _draw_points(drawing, summary, points, metrics, (x, y), style)
    names = _names(points, lambda cells: (x(cells[0].value), y(cells[1].value)), style)
    room = Box(x.start + 3, y.stop, x.stop + 12, y.start - 2)
    placed, left_out = place(names, obstacles, room)
    for one in placed:
        if one.leader is not None:
            drawing.line(*one.leader, f"leader {one.label.kind}")
    for one in placed:
        drawing.text(one.box.left, one.baseline, one.label.text, f"label {one.label.kind}")
    if left_out:
        note += f" No room for the names of: {', '.join(sorted(one.text for one in left_out))}."
    return Chart(title, str(drawing), WIDTH, note)


def _axis(
    metric: str, cells: Sequence[Cell], start: float, stop: float, *, zero: bool = False
) -> Axis:
    title = titled(metric)
    if is_share(metric):
        return Axis(0.0, 1.0, start, stop, title, percent=True)
    values = [value for cell in cells for value in (cell.value, *(bounds(cell) or ()))]
    low, high = span(values, zero=zero)
    return Axis(low, high, start, stop, title)


def _draw_points(
    drawing: Drawing,
    summary: Summary,
    points: Mapping[str, tuple[Cell, Cell]],
    metrics: tuple[str, str],
    axes: tuple[Axis, Axis],
    style: Mapping[str, tuple[str, int]],
) -> list[Box]:
    """Sweeps, intervals, points, in this order; the room they take."""
    x, y = axes
    taken: list[Box] = []
    for sweep in sweeps(summary.methods):
        line = [points[label] for _, label in sweep.points if label in points]
        ends = [(x(a.value), y(b.value)) for a, b in line]
        drawing.path(ends, f"curve {style[sweep.points[0][1]][0]}")
        taken += _along(ends)
    for label, (across, up) in points.items():
        colour, _ = style[label]
        px, py = x(across.value), y(up.value)
        sides = [
            found and (axis(found[0]), axis(found[1]))
            for axis, found in ((x, bounds(across)), (y, bounds(up)))
        ]
        drawing.cross(px, py, colour, across=sides[0], up=sides[1])
        if sides[0]:
            taken.append(Box(sides[0][0], py - 1, sides[0][1], py + 1))
        if sides[1]:
            taken.append(Box(px - 1, sides[1][1], px + 1, sides[1][0]))
    for label, cells in points.items():
        colour, shape = style[label]
        px, py = x(cells[0].value), y(cells[1].value)
        told = [f"{METRICS[m][0]} {figure(c, m)}" for m, c in zip(metrics, cells, strict=True)]
        drawing.mark(px, py, shape, colour, f"{readable(label)}: {'; '.join(told)}")
        taken.append(Box(px - _PAD, py - _PAD, px + _PAD, py + _PAD))
    return taken


def _along(points: Sequence[tuple[float, float]]) -> list[Box]:
    boxes = []
    for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False):
        steps = max(int(math.hypot(x2 - x1, y2 - y1) / 6), 1)
        for n in range(steps):
            px, py = x1 + (x2 - x1) * n / steps, y1 + (y2 - y1) * n / steps
            boxes.append(Box(px - 1.5, py - 1.5, px + 1.5, py + 1.5))
    return boxes


def _names(
    points: Mapping[str, tuple[Cell, Cell]],
    at: Callable[[tuple[Cell, Cell]], tuple[float, float]],
    style: Mapping[str, tuple[str, int]],
) -> list[Label]:
    """What is written beside the points: of a sweep only its two ends."""
    inner: set[str] = set()
    ends: dict[str, str] = {}
    for sweep in sweeps(list(points)):
        (_, first), (value, last) = sweep.points[0], sweep.points[-1]
        inner |= {label for _, label in sweep.points}
        ends.setdefault(first, readable(first))
        ends.setdefault(last, f"{sweep.parameter}={value:g}")
    found: dict[tuple[float, float], list[tuple[str, str]]] = {}
    for label in points:
        if label in inner and label not in ends:
            continue
        x, y = at(points[label])
        # Methods that did the same share one name.
        found.setdefault((round(x), round(y)), []).append((label, ends.get(label, readable(label))))
    labels = []
    for (x, y), names in found.items():
        kept = [names[0][1]]
        for _, name in names[1:]:
            if text_width(", ".join([*kept, name]), SIZE) > _LONGEST:
                kept.append(f"{len(names) - len(kept)} more")
                break
            kept.append(name)
        labels.append(Label(", ".join(kept), x, y, style[names[0][0]][0]))
    return labels
