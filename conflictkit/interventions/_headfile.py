"""A file of ranked heads, read strictly: what may stand where, and one named error for the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from conflictkit.errors import RankingError
from conflictkit.files import JsonFile, short
from conflictkit.interventions.heads import Head

KINDS = ("context", "memory")

Table = tuple[tuple[float, ...], ...]
"""`[layers, heads]` scores."""

Directions = tuple[tuple[tuple[float, ...], ...], ...]
"""`[layers, heads, head_dim]` vectors."""

FILE = JsonFile("ranking", RankingError, largest=64 * 1024 * 1024, most_parts=4_000_000)
"""128 layers of 128 heads need 2 million bytes, with directions of 128 numbers 30 million."""
_LONGEST = 10_000
"""Characters of the longest name."""


def tables(what: str, data: Mapping[str, Any]) -> dict[str, Table]:
    """Kind -> `[layers, heads]` finite numbers, every table a rectangle of its own."""
    for kind in data:
        if kind not in KINDS:
            raise RankingError(f"{what} has an unknown field {short(kind)}")
    return {kind: _table(f"{what}.{kind}", data[kind]) for kind in KINDS if kind in data}


def _table(what: str, rows: Any) -> Table:
    if isinstance(rows, Tensor):
        rows = rows.tolist()
    if not isinstance(rows, list | tuple) or not rows:
        raise RankingError(f"{what} must be a table: a list with a row for each layer")
    for row in rows:
        if not isinstance(row, list | tuple) or not row or len(row) != len(rows[0]):
            raise RankingError(f"{what} must have a row of the same length for each layer")
    return tuple(tuple(_finite(what, one) for one in row) for row in rows)


def _finite(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RankingError(f"{what} holds {short(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RankingError(f"{what} holds a number that is not finite")
    return number


def directions(data: Any, layers: int, heads: int) -> Directions:
    """`[layers, heads, head_dim]` finite numbers."""
    data = data.tolist() if isinstance(data, Tensor) else data
    if not isinstance(data, list | tuple) or len(data) != layers:
        raise RankingError("directions must hold a table for each layer")
    found = tuple(_table(f"directions of layer {layer}", one) for layer, one in enumerate(data))
    if any(len(one) != heads or len(one[0]) != len(found[0][0]) for one in found):
        raise RankingError("directions must hold a vector of the same length for each head")
    return found


def heads(what: str, listed: Any, layers: int, heads: int) -> tuple[Head, ...]:
    """A list of heads that such a model has, none twice."""
    if not isinstance(listed, list | tuple):
        raise RankingError(f"{what} must be a list of heads")
    found: list[Head] = []
    for one in listed:
        pair = tuple(one) if isinstance(one, list | tuple) else ()
        if len(pair) != 2 or any(type(part) is not int or part < 0 for part in pair):
            raise RankingError(f"{what}: a head is [layer, head] from 0, not {short(one)}")
        if pair[0] >= layers or pair[1] >= heads:
            raise RankingError(f"{what}: there is no head {pair} in {layers} layers of {heads}")
        found.append((pair[0], pair[1]))
    if len(set(found)) < len(found):
        raise RankingError(f"{what} names a head twice")
    return tuple(found)


def whole(what: str, value: Any, least: int = 0) -> None:
    """Refuse what is no whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise RankingError(f"{what} must be a whole number from {least}")


def is_text(value: Any) -> bool:
    """Whether it is text that any file can hold: JSON can spell lone surrogates, UTF-8 cannot."""
    if not isinstance(value, str) or len(value) > _LONGEST:
        return False
    return not any(0xD800 <= ord(one) < 0xE000 for one in value)


def text(data: Mapping[str, Any]) -> str:
    """JSON with a line for each layer, so that people can read the tables."""
    lines = []
    for name, value in data.items():
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if name in ("scores", "errors", "directions"):
            text = text.replace("[[", "[\n    [").replace("], [", "],\n    [")
        lines.append(f'  "{name}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"
