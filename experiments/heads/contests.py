"""Who competes, for which source, with which settings: 24 for each, so that none tunes longer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from conflictkit.interventions.edited._base import text_of
from conflictkit.interventions.heads import Head
from conflictkit.interventions.ranking import HeadRanking

SIDES = ("context", "memory")
ALPHAS = (-10, -6, -4, -2, -1, 0, 0.5, 2, 3, 4, 6, 10)
"""Of one scaled head, as wide as in Yu et al."""
FEW_ALPHAS = (-4, -1, 0, 3, 6, 10)
"""Of every head there is."""
PRUNED = range(1, 25)
LARGE, SMALL = range(6), range(4)
"""JuICE's grid: the lists that help the wanted source, and those that harm it."""
LISTED = 5
_CAD = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
        1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5)  # fmt: skip
"""The paper's alpha towards the context."""
_WEIGHTS = tuple(round(number / 24, 4) for number in range(24))
"""Of the context beside memory: what CAD is for a negative alpha, towards memory."""
_THRESHOLDS = tuple(round(0.02 * number, 2) for number in range(24))
_MASKED, _CAPS = (1, 2, 3, 5, 8, 12), (0, 0.25, 0.5, 1)

Rankings = Mapping[str, HeadRanking]


def other(side: str) -> str:
    """The other source."""
    return SIDES[1 - SIDES.index(side)]


def settings(rankings: Rankings) -> dict[tuple[str, str], list[str]]:
    """(family, side) -> the specs that it may choose from."""
    found: dict[tuple[str, str], list[str]] = {}
    scaled = [
        scale(rankings["attribution"].top(source, 1), alpha)
        for source, alpha in itertools.product(SIDES, ALPHAS)
    ]
    for side in SIDES:
        found["head-scale", side] = scaled
        carriers = rankings["path-patching"].top(other(side), max(PRUNED))
        found["ph3", side] = [prune(carriers[:k]) for k in PRUNED]
        for name in ("juice", "juice-single"):
            found[name, side] = [
                juice(name, rankings["juice"], side, LISTED, large, small)
                for large, small in itertools.product(LARGE, SMALL)
            ]
    found["cad", "context"] = [f"cad?alpha={alpha:g}" for alpha in _CAD]
    found["cad", "memory"] = [f"interpolate?weight={weight:g}" for weight in _WEIGHTS]
    found["adacad", "context"] = [f"adacad?threshold={bound:g}" for bound in _THRESHOLDS]
    found["decore", "context"] = [
        mask(rankings["attention-mass"].top("context", k), cap)
        for k, cap in itertools.product(_MASKED, _CAPS)
    ]
    return found


def scale(heads: Sequence[Head], alpha: float) -> str:
    """Heads multiplied by alpha."""
    return f"head-scale?alpha={alpha:g}&heads={text_of(heads)}"


def prune(heads: Sequence[Head]) -> str:
    """Heads set to zero."""
    return f"ph3?heads={text_of(heads)}"


def mask(heads: Sequence[Head], cap: float) -> str:
    """Contrast with heads masked."""
    return f"decore?cap={cap:g}&heads={text_of(heads)}"


def juice(name: str, ranking: HeadRanking, side: str, k: int, large: float, small: float) -> str:
    """JuICE from its lists, which are made for memory: towards the context they change places."""
    helpful, harmful = ranking.top("enlarge", k), ranking.top("suppress", k)
    if side == "context":
        helpful, harmful = harmful, helpful
    return turned(name, helpful, harmful, large, small)


def turned(
    name: str, helpful: Sequence[Head], harmful: Sequence[Head], large: float, small: float
) -> str:
    """Helpful heads enlarged, harmful ones suppressed."""
    return (
        f"{name}?enlarge={large:g}&suppress={small:g}&"
        f"enlarge_heads={text_of(helpful)}&suppress_heads={text_of(harmful)}"
    )
