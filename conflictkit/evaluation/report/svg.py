"""Inline SVG: a plot's frame, marks and text. Colours and fonts are classes of the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from conflictkit.trace.text import visible

SERIES = 8
"""Colours that the style sheet knows as `s0`, `s1`, ..."""
_WIDE, _NARROW = "mwMW@%m", "iljtfrI.,:;|!'()[] "


def text_width(text: str, size: float) -> float:
    """Width of a text in a sans-serif font, in pixels; rather too much than too little."""
    total = 0.0
    for character in text:
        if character in _NARROW:
            total += 0.36
        elif character in _WIDE or not character.isascii():
            total += 0.95
        else:
            total += 0.6
    return total * size


def words(text: str) -> str:
    """Any text, ready to stand inside an element."""
    return escape(visible(text))


def pixels(value: float) -> str:
    """A length as short as it can be."""
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Axis:
    """A linear scale.

    Attributes:
        low, high: values at its ends.
        start, stop: pixels at its ends.
        title: what it measures, with the unit.
        percent: whether values are shares, shown in per cent.
        ticks: values that are marked; None: some round ones.
    """

    low: float
    high: float
    start: float
    stop: float
    title: str
    percent: bool = False
    ticks: tuple[float, ...] | None = None

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def marked(self) -> list[tuple[float, str]]:
        """Values to mark, with their text."""
        values = self.ticks if self.ticks is not None else round_values(self.low, self.high)
        return [(value, self._shown(value)) for value in values]

    def _shown(self, value: float) -> str:
        return f"{value * 100 if self.percent else value:.6g}".replace("-", "−")


def round_values(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Some round values from `low` to `high`."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(number * step, 12) for number in range(first, last + 1))


def span(values: Iterable[float], *, zero: bool = False) -> tuple[float, float]:
    """Ends of an axis that holds all values with some air around them; `zero`: from 0 on."""
    found = [value for value in values if math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    if zero:
        low = min(low, 0.0)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if zero and low == 0 else low - air), high + air


@dataclass
class Drawing:
    """An SVG in the making.

    Attributes:
        width, height: size in pixels.
        title: its name for those who cannot see it.
        about: what it shows, in a sentence.
    """

    width: float
    height: float
    title: str
    about: str
    parts: list[str] = field(default_factory=list)

    def frame(self, x: Axis, y: Axis) -> None:
        """Grid, ticks and titles; `y` runs from bottom to top."""
        for value, shown in x.marked():
            place = x(value)
            self.line(place, y.start, place, y.stop, "grid")
            self.text(place, y.start + 16, shown, "tick", "middle")
        for value, shown in y.marked():
            place = y(value)
            self.line(x.start, place, x.stop, place, "grid")
            self.text(x.start - 7, place + 4, shown, "tick", "end")
        self.line(x.start, y.start, x.stop, y.start, "axis")
        self.line(x.start, y.start, x.start, y.stop, "axis")
        self.text((x.start + x.stop) / 2, y.start + 36, x.title, "name", "middle")
        middle = (y.start + y.stop) / 2
        # Far enough to the left for the widest mark.
        left = x.start - 18 - max((text_width(s, 12) for _, s in y.marked()), default=0.0)
        self.parts.append(
            f'<text class="name" text-anchor="middle" transform="translate({pixels(left)} '
            f'{pixels(middle)}) rotate(-90)">{words(y.title)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of a class."""
        ends = zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True)
        placed = " ".join(f'{name}="{pixels(value)}"' for name, value in ends)
        self.parts.append(f'<line class="{kind}" {placed}/>')

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        joined = " ".join(f"{pixels(x)},{pixels(y)}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{joined}"/>')

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        """A text whose base line begins, has its middle or ends at a point."""
        side = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(
            f'<text class="{kind}"{side} x="{pixels(x)}" y="{pixels(y)}">{words(text)}</text>'
        )

    def cross(
        self,
        x: float,
        y: float,
        kind: str,
        *,
        across: tuple[float, float] | None = None,
        up: tuple[float, float] | None = None,
    ) -> None:
        """Intervals around a point, in pixels."""
        if across is not None:
            self.line(across[0], y, across[1], y, f"error {kind}")
        if up is not None:
            self.line(x, up[0], x, up[1], f"error {kind}")

    def mark(self, x: float, y: float, shape: int, kind: str, title: str) -> None:
        """A point of one of several shapes, whose title appears under the pointer."""
        self.parts.append(
            f'<g class="mark {kind}"><title>{words(title)}</title>{_shape(x, y, shape)}</g>'
        )

    def __str__(self) -> str:
        size = f"{pixels(self.width)} {pixels(self.height)}"
        return (
            f'<svg class="chart" viewBox="0 0 {size}" width="{pixels(self.width)}" role="img" '
            f'aria-label="{words(self.title)}. {words(self.about)}">{"".join(self.parts)}</svg>'
        )


def _shape(x: float, y: float, shape: int) -> str:
    outlines = (
        None,
        ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        ((0, -6), (5.6, 4.2), (-5.6, 4.2)),
        ((0, -6.2), (6.2, 0), (0, 6.2), (-6.2, 0)),
        ((0, 6), (5.6, -4.2), (-5.6, -4.2)),
    )
    outline = outlines[shape % len(outlines)]
    if outline is None:
        return f'<circle cx="{pixels(x)}" cy="{pixels(y)}" r="4.8"/>'
    points = " ".join(f"{pixels(x + dx)},{pixels(y + dy)}" for dx, dy in outline)
    return f'<polygon points="{points}"/>'
