"""What the pages on heads and on steering share: verdicts over seeds, cells as text, tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import claims
from contests import SIDES
from seed import ALLOWED, GUARDS

__all__ = [
    "GUARDS",
    "SIDES",
    "publish",
    "verdict",
    "keeps",
    "reached",
    "share",
    "points",
    "apart",
    "gain",
    "gains",
    "beats",
    "turned",
    "safe",
    "each",
    "called",
    "table",
]

ENOUGH = 2
"""Seeds that a claim has to hold on."""
Figures = Mapping[str, Any]
"""What `run.py` writes for one seed."""


def publish(
    here: Path,
    page: Callable[[Mapping[str, Figures]], Iterator[str]],
    plot: Callable[[Mapping[str, Figures], Path], None],
) -> None:
    """Write the middle part of a folder's page and its plot, from what `results` has."""
    seeds = {
        file.stem: json.loads(file.read_text()) for file in sorted(here.glob("results/seed*.json"))
    }
    lines = "\n".join(page(seeds))
    readme = here / "README.md"
    before, _, after = readme.read_text(encoding="utf-8").split(claims.MARK)
    readme.write_text(claims.MARK.join([before, f"\n{lines}\n", after]), encoding="utf-8")
    plot(seeds, here / "plot.png")
    print(lines)


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


def apart(difference: Any) -> str:
    """A difference from `beats` in points; `the same` where there is none."""
    return "the same" if difference is None else points(*difference)


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


def called(family: str, side: str) -> str:
    """A family's name; CAD's with a negative alpha, towards memory, is another one."""
    return "interpolate" if (family, side) == ("cad", "memory") else family


def table(
    seeds: Mapping[str, Figures], families: Sequence[str], how: str, what: str, note: str = ""
) -> Iterator[str]:
    """Every family's choice on test; `note` stands behind a name that `called` changes."""
    yield f"### Every method at its best, {what}"
    yield ""
    heads = " | ".join(f"{name}: from it | guards" for name in seeds)
    yield f"| for | method | {heads} |"
    yield "|---|---|" + "---|---|" * len(seeds)
    for side in SIDES:
        for family in ("plain", *families):
            cells = []
            for figures in seeds.values():
                sides = figures["chosen"].get(family, {side: {how: "plain"}})
                if side not in sides:
                    continue
                label = sides[side][how]
                cells += [share(figures["test"][label][f"{side}_rate"]), _guards(figures, label)]
            if cells:
                name = called(family, side)
                more = note if name != family else ""
                yield f"| {side} | `{name}`{more} | " + " | ".join(cells) + " |"
    yield ""


def _guards(figures: Figures, label: str) -> str:
    """What the guards lost, in points, and answers that are neither."""
    test = figures["test"]
    lost = "/".join(
        f"{100 * (test[label][g]['value'] - test['plain'][g]['value']):+.0f}" for g in GUARDS
    )
    word = "kept" if safe(figures, label) else "lost"
    return f"{word} {lost}, other {100 * test[label]['other_rate']['value']:.0f}"
