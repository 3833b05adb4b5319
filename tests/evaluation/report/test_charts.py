"""Points stand where their values are, names stand clear of each other, sweeps are lines."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conflictkit.evaluation.metrics.summary import Cell, Summary
from conflictkit.evaluation.report import charts, detection
from conflictkit.evaluation.report.families import readable, sweeps
from conflictkit.evaluation.report.labels import Box, Label, place, spread
from conflictkit.evaluation.report.svg import round_values

ROOM = Box(60, 10, 540, 420)


def overlap(one: Box, other: Box) -> bool:
    return (
        one.left < other.right
        and other.left < one.right
        and one.top < other.bottom
        and other.top < one.bottom
    )


def test_sweeps_are_found_by_the_parameter_that_changes() -> None:
    found = sweeps(
        ["plain", "ck-plug?alpha=1", "ck-plug?alpha=0", "ck-plug?alpha=0.5", "cad?alpha=1",
         "cad?alpha=2", "arr?x=a", "arr?x=b", "arr?x=c"]
    )  # fmt: skip
    assert [(one.name, one.parameter) for one in found] == [("ck-plug", "alpha")]
    assert [value for value, _ in found[0].points] == [0, 0.5, 1]


def test_a_sweep_keeps_what_else_was_set() -> None:
    labels = [f"m?a={a}&b={b}" for a in (1, 2, 3) for b in (7, 8)]
    found = sweeps(labels)
    assert [(one.name, one.parameter) for one in found] == [("m b=7", "a"), ("m b=8", "a")]
    assert readable(labels[0]) == "m a=1, b=7"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_crowded_names_never_overlap(seed: int) -> None:
    rng = random.Random(seed)
    labels = [
        Label(f"ck-plug alpha={n / 10:g}", rng.gauss(300, 25), rng.gauss(200, 20))
        for n in range(30)
    ]
    points = [Box(one.x - 5, one.y - 5, one.x + 5, one.y + 5) for one in labels]
    placed, left_out = place(labels, points, ROOM)
    assert len(placed) + len(left_out) == 30
    assert len(left_out) <= 2
    for number, one in enumerate(placed):
        assert one.box.left >= ROOM.left
        assert one.box.right <= ROOM.right
        assert one.box.top >= ROOM.top
        assert one.box.bottom <= ROOM.bottom
        assert not any(overlap(one.box, other.box) for other in placed[number + 1 :])


def test_a_name_without_room_is_reported() -> None:
    labels = [Label("a long name", 20, 10)] * 3
    placed, left_out = place(labels, [], Box(0, 0, 110, 20))
    assert (len(placed), len(left_out)) == (1, 2)


def test_a_lone_name_stands_beside_its_point() -> None:
    (one,), _ = place([Label("plain", 300, 200)], [Box(295, 195, 305, 205)], ROOM)
    assert one.leader is None
    assert not overlap(one.box, Box(296, 196, 304, 204))
    near = max(one.box.left - 300, 300 - one.box.right, one.box.top - 200, 200 - one.box.bottom)
    assert near < 20


@given(st.lists(st.floats(0, 200), min_size=1, max_size=8))
def test_spread_keeps_order_and_gap(places: list[float]) -> None:
    moved = spread(places, 15, 0, 200)
    order = sorted(range(len(places)), key=lambda index: places[index])
    for first, second in zip(order, order[1:], strict=False):
        assert moved[second] - moved[first] >= 15 - 1e-6
    assert min(moved) >= -1e-6
    assert max(moved) <= 200 + 1e-6


@given(st.floats(-1e4, 1e4), st.floats(0.001, 1e4))
def test_ticks_are_few_and_lie_on_the_axis(low: float, length: float) -> None:
    ticks = round_values(low, low + length)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-6 <= tick <= low + length + 1e-6 for tick in ticks)


def _summary(rows: dict[str, dict[str, Cell]]) -> Summary:
    return Summary(tuple(rows), rows)


def _numbers(line: str, names: Sequence[str]) -> list[float]:
    return [float(re.search(rf'{name}="([-\d.]+)"', line)[1]) for name in names]  # type: ignore


def test_points_and_intervals_of_the_plane_stand_where_their_values_are() -> None:
    rows = {
        "plain": {"resistance": Cell(0.25, 0.2, 0.4, 99), "correction": Cell(0.75, 0.5, 0.8, 99)}
    }
    chart = charts.plane(_summary(rows))
    assert chart is not None
    drawn = chart.drawing
    # The plot's corners: the ends of the diagonal, from (0, 0) to (1, 1).
    (guide,) = re.findall(r'<line class="guide"[^>]*>', drawn)
    x0, y0, x1, y1 = _numbers(guide, ("x1", "y1", "x2", "y2"))
    cx, cy = _numbers(re.search(r"<circle[^>]*>", drawn)[0], ("cx", "cy"))  # type: ignore
    assert (cx - x0) / (x1 - x0) == pytest.approx(0.25, abs=1e-3)
    assert (cy - y0) / (y1 - y0) == pytest.approx(0.75, abs=1e-3)
    across, up = (
        _numbers(line, ("x1", "y1", "x2", "y2"))
        for line in re.findall(r'<line class="error[^>]*>', drawn)
    )
    ends = [(across[0] - x0) / (x1 - x0), (across[2] - x0) / (x1 - x0)]
    assert ends == pytest.approx([0.2, 0.4], abs=1e-3)
    ends = [(up[1] - y0) / (y1 - y0), (up[3] - y0) / (y1 - y0)]
    assert ends == pytest.approx([0.5, 0.8], abs=1e-3)
    assert "<title>plain: Resistance 25.0 % [20.0, 40.0]; Correction 75.0 %" in drawn


def test_a_chart_without_its_figures_is_left_out() -> None:
    summary = _summary({"plain": {"correction": Cell(0.5, None, None, 9)}})
    assert charts.plane(summary) is None
    assert charts.all_curves(summary) == []
    assert charts.cost(summary, "correction") is None
    assert detection.charts(summary) == [None, None]


def test_a_sweep_is_one_line_through_its_points_in_order() -> None:
    rates = {0.0: 0.1, 0.5: 0.4, 1.0: 0.9}
    rows = {
        f"ck-plug?alpha={a:g}": {"context_rate": Cell(rate, rate - 0.05, rate + 0.05, 99)}
        for a, rate in sorted(rates.items(), reverse=True)
    }
    (chart,) = charts.all_curves(_summary(rows))
    (points,) = re.findall(r'<polyline class="curve context" points="([^"]*)"', chart.drawing)
    found = [tuple(map(float, point.split(","))) for point in points.split()]
    xs, ys = zip(*found, strict=True)
    assert list(xs) == sorted(xs)
    heights = [(ys[0] - y) / (ys[0] - ys[2]) for y in ys]
    assert heights == pytest.approx([0, 3 / 8, 1], abs=0.01)
    assert "alpha" in chart.title


def test_methods_that_do_the_same_share_a_name() -> None:
    same = {"resistance": Cell(0.5, 0.4, 0.6, 99), "correction": Cell(0.5, 0.4, 0.6, 99)}
    chart = charts.plane(_summary({"plain": same, "cad": same}))
    assert chart is not None
    assert ">plain, cad</text>" in chart.drawing


def test_names_of_methods_are_harmless() -> None:
    cells = {"resistance": Cell(0.5, 0.4, 0.6, 99), "correction": Cell(0.5, 0.4, 0.6, 99)}
    chart = charts.plane(_summary({"<script>alert(1)</script>": cells}))
    assert chart is not None
    assert "<script" not in chart.drawing
