"""Labels of methods read as names and parameters: which of them form a sweep, how each is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conflictkit.evaluation.report.svg import SERIES
from conflictkit.trace.text import visible

LEAST = 3
"""Values from which on a method's settings count as a sweep."""


@dataclass(frozen=True)
class Sweep:
    """One method at several values of one parameter, all else equal.

    Attributes:
        name: the method, with the parameters that stay.
        parameter: the one that changes.
        points: (value, label of the method), by value.
    """

    name: str
    parameter: str
    points: tuple[tuple[float, str], ...]


def parts(label: str) -> tuple[str, dict[str, str]]:
    """Name and parameters of a label as `conflictkit evaluate` writes it, ready to be shown."""
    name, _, query = visible(label).partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if "=" in pair)
    return name, {key: value for key, _, value in pairs}


def readable(label: str) -> str:
    """A label for people: `ck-plug alpha=0.5`."""
    name, parameters = parts(label)
    if not parameters:
        return visible(label)
    return f"{name} {', '.join(f'{key}={value}' for key, value in parameters.items())}"


def sweeps(labels: Sequence[str]) -> list[Sweep]:
    """All sweeps among the labels, in order of appearance; a label may be in several."""
    groups: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[float, str]] = {}
    for label in labels:
        name, parameters = parts(label)
        for key, text in parameters.items():
            try:
                value = float(text)
            except ValueError:
                continue
            rest = tuple((k, v) for k, v in parameters.items() if k != key)
            groups.setdefault((name, key, rest), {}).setdefault(value, label)
    return [
        Sweep(
            readable(f"{name}?{'&'.join(f'{k}={v}' for k, v in rest)}" if rest else name),
            key,
            tuple(sorted(points.items())),
        )
        for (name, key, rest), points in groups.items()
        if len(points) >= LEAST
    ]


def styles(labels: Sequence[str], baseline: str) -> dict[str, tuple[str, int]]:
    """Label -> (class of its colour, shape): one pair for each method's name, whatever its
    parameters; the baseline has the colour of the text."""
    names = list(dict.fromkeys(parts(label)[0] for label in labels if label != baseline))
    of_name = {
        name: (f"s{place % SERIES}", 1 + (place + place // SERIES) % 4)
        for place, name in enumerate(names)
    }
    return {
        label: ("base", 0) if label == baseline else of_name[parts(label)[0]] for label in labels
    }
