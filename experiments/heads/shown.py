"""What the pages on heads share: verdicts over seeds, cells as text, differences turned round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from contests import SIDES
from seed import ALLOWED, GUARDS

__all__ = [
    "GUARDS",
    "SIDES",
    "verdict",
    "keeps",
    "reached",
    "share",
    "points",
    "gain",
    "gains",
    "beats",
    "turned",
    "safe",
    "each",
]

ENOUGH = 2
"""Seeds that a claim has to hold on."""
Figures = Mapping[str, Any]
"""What `run.py` writes for one seed."""


def verdict(
    seeds: Mapping[str, Figures],
    holds: Callable[[Figures], bool],
    guarded: Callable[[Figures], bool] | None = None,
) -> str:
    """Whether a claim holds, and on how many seeds; with its guards, if it has some."""
    where = [figures for figures in seeds.values() if holds(figures)]
    told = f"shown on {len(where)} of {len(seeds)} seeds"
    if guarded is not None:
        where = [figures for figures in where if guarded(figures)]
        told += f", with every guard kept on {len(where)}"
    return f"{'holds here' if len(where) >= ENOUGH else 'does not hold here'} ({told})"


def keeps(family: str, side: str, how: str) -> Callable[[Figures], bool]:
    """Whether a family's choice keeps the guards on test."""
    return lambda figures: safe(figures, figures["chosen"][family][side][how])


def reached(figures: Figures, family: str, side: str, how: str = "free") -> Any:
    """The cell of a chosen setting on test."""
    return figures["test"][figures["chosen"][family][side][how]][f"{side}_rate"]


def share(cell: Mapping[str, Any]) -> str:
    """`45.5 (41.4-49.7)`, in per cent."""
    text = f"{100 * cell['value']:.1f}"
    return (
        text
        if cell["low"] is None
        else f"{text} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"
    )


def points(value: float, low: float | None, high: float | None) -> str:
    """`+1.2 (+0.1 to +2.3)`, in points."""
    text = f"{100 * value:+.1f}"
    return (
        text if low is None or high is None else f"{text} ({100 * low:+.1f} to {100 * high:+.1f})"
    )


def gain(cell: Mapping[str, Any]) -> str:
    """The paired difference from `plain`; none where the setting is `plain`."""
    return (
        "0"
        if cell["minus"] is None
        else points(cell["minus"], cell["minus_low"], cell["minus_high"])
    )


def gains(cell: Mapping[str, Any]) -> bool:
    """Whether the interval of the difference from `plain` lies above 0."""
    return (cell["minus_low"] or 0) > 0


def beats(figures: Figures, family: str, rival: str, side: str, how: str) -> Any:
    """A family minus its rival; None where they are one setting."""
    return turned(figures["rivals"][f"{family} {side} {how}"].get(rival))


def turned(cell: Mapping[str, Any] | None) -> Any:
    """A difference and its interval, the other way round."""
    if cell is None or cell["minus"] is None:
        return None
    ends = cell["minus_low"], cell["minus_high"]
    return (-cell["minus"], *(None if one is None else -one for one in reversed(ends)))


def safe(figures: Figures, label: str) -> bool:
    """Whether a setting loses at most two points of every guard on test."""
    test = figures["test"]
    return all(
        test[label][g]["value"] >= test["plain"][g]["value"] - ALLOWED - 1e-9 for g in GUARDS
    )


def each(seeds: Mapping[str, Figures], say: Callable[[Figures], str]) -> str:
    """`seed0 ...; seed1 ...`."""
    return "; ".join(f"{name} {say(figures)}" for name, figures in seeds.items())
