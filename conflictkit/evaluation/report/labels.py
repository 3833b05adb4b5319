"""Where the names of points go: beside them, never on top of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from conflictkit.evaluation.report.svg import text_width

SIZE = 12.0
"""Font size of a label, in pixels."""
_HEIGHT = 14.0
_RADII = (9, 13, 18, 25, 34, 45, 58, 74, 92, 112, 136, 164, 196)
_ANGLES = 24


class Box(NamedTuple):
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point."""

    text: str
    x: float
    y: float
    kind: str = ""


@dataclass(frozen=True)
class Placed:
    """A label with its place.

    Attributes:
        label: the label.
        box: the room its text takes.
        leader: ends of the line that leads to it; None: it stands beside its point.
    """

    label: Label
    box: Box
    leader: tuple[float, float, float, float] | None

    @property
    def baseline(self) -> float:
        """y of the text's base line."""
        return self.box.bottom - 3.5


def place(
    labels: Sequence[Label], obstacles: Sequence[Box], bounds: Box
) -> tuple[list[Placed], list[Label]]:
    """A place for each label, near its point and clear of all other labels.

    Args:
        labels: what to place; the crowded ones are placed last, where there is room left.
        obstacles: what should not be covered if it can be helped: points, intervals, lines.
        bounds: where labels may stand.

    Returns:
        The labels with their places, and those for which there was none.
    """

    def neighbours(label: Label) -> int:
        return sum(math.hypot(o.x - label.x, o.y - label.y) < 40 for o in labels)

    fixed = _array(obstacles)
    taken, leaders = _array(()), _array(())
    placed, left_out = [], []
    for label in sorted(labels, key=neighbours):
        candidates = _candidates(label)
        boxes = _array([one.box for one in candidates])
        margins = np.hstack([boxes[:, :2] - bounds[:2], np.array(bounds[2:]) - boxes[:, 2:]])
        free = (margins.min(-1) >= 0) & ~_shared(boxes, taken).any(-1)
        if not free.any():
            left_out.append(label)
            continue
        covered = _shared(boxes, fixed)
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        price = np.hypot(*(middles - (label.x, label.y)).T)
        price += covered.sum(-1) + 3 * (covered > 0).sum(-1)
        price += 30 * (_shared(boxes, leaders) > 0).sum(-1)
        for place_, one in enumerate(candidates):
            if free[place_] and one.leader is not None:
                way = _along(one.leader)
                price[place_] += 40 + 200 * (_shared(way, taken) > 0).sum()
                price[place_] += 6 * (_shared(way, fixed) > 0).sum()
        best = candidates[int(np.where(free, price, np.inf).argmin())]
        placed.append(best)
        taken = np.vstack([taken, best.box])
        if best.leader is not None:
            leaders = np.vstack([leaders, _along(best.leader)])
    return placed, left_out


def _array(boxes: Sequence[Box]) -> np.ndarray:
    return np.array(boxes, dtype=float).reshape(-1, 4)


def _shared(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas that boxes have in common: `[n, 4]` and `[m, 4]` to `[n, m]`."""
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0.0, None).prod(-1)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places, moved apart along one line so that neighbours are at least `gap` apart.

    The order stays; everything stays between `low` and `high` if there is room for it.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [0.0] * len(places)
    floor = low
    for index in order:
        moved[index] = max(places[index], floor)
        floor = moved[index] + gap
    ceiling = high
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _candidates(label: Label) -> list[Placed]:
    width = text_width(label.text, SIZE)
    found = []
    for radius in _RADII:
        for number in range(_ANGLES):
            angle = 2 * math.pi * number / _ANGLES
            x = label.x + radius * math.cos(angle)
            y = label.y + radius * math.sin(angle)
            # The text's nearest edge is at the radius: it goes outwards from there.
            left = x - width * (1 - math.cos(angle)) / 2
            top = y - _HEIGHT * (1 - math.sin(angle)) / 2
            box = Box(left, top, left + width, top + _HEIGHT)
            found.append(Placed(label, box, _leader(label, box, radius)))
    return found


def _leader(label: Label, box: Box, radius: float) -> tuple[float, float, float, float] | None:
    if radius <= 18:
        return None
    x = min(max(label.x, box.left), box.right)
    y = min(max(label.y, box.top), box.bottom)
    return label.x, label.y, x, y


def _along(leader: tuple[float, float, float, float]) -> np.ndarray:
    """Small boxes along a line, without its ends: `[n, 4]`."""
    x1, y1, x2, y2 = leader
    steps = max(int(math.hypot(x2 - x1, y2 - y1) / 4), 2)
    way = np.arange(2, steps - 1)[:, None] / steps
    points = (x1, y1) + way * (x2 - x1, y2 - y1)
    return np.hstack([points - 1, points + 1])
