"""Spans, heads and numbers as users give them, for one row or for each, as plain checked data.

Values for several rows are tuples with one entry per row; of length 1, they hold for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit.anatomy import Anatomy
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions.heads import Head, checked

Span = tuple[int, int]
"""(start, stop) in a row's own prompt tokens, padding not counted."""

Spans = Sequence[Span] | Sequence[Sequence[Span]]
"""The same for all rows, or one list for each prompt of the batch."""

Heads = Iterable[Head] | Sequence[Iterable[Head] | None] | None
"""The same for all rows, or one choice for each prompt of the batch; None: all heads."""


def by_layer(body: Anatomy, rows: Any) -> Iterator[tuple[int, Module, Tensor]]:
    """Layer, attention module and `[rows, heads]` bool, for the layers where some head is chosen.

    Raises:
        InvalidParameterError: a head that the model does not have.
    """
    everything = body.names()
    several = [everything if row is None else row for row in rows]
    for head in dict.fromkeys(head for row in several for head in row):
        body.output_of(*head)
    for layer, attention in enumerate(body.attentions):
        chosen = torch.zeros(len(several), body.heads, dtype=torch.bool)
        for row, heads in enumerate(several):
            chosen[row, [head for where, head in heads if where == layer]] = True
        if attention is not None and bool(chosen.any()):
            yield layer, attention, chosen


def common_rows(owner: str, *several: Sequence[Any]) -> int:
    """How many rows values for one or all rows are made for.

    Raises:
        InvalidParameterError: for different numbers of them.
    """
    counts = sorted({len(one) for one in several} - {1}) or [1]
    if len(counts) > 1:
        raise InvalidParameterError(f"{owner}: values for {counts[0]} and for {counts[1]} rows")
    return counts[0]


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """One finite number, or one per row.

    Raises:
        InvalidParameterError: something else.
    """
    try:
        (found,) = checked(name, {(0, 0): value}).values()
    except InvalidParameterError:
        raise InvalidParameterError(
            f"{name}: expected a finite number, or one per row, not {value!r}"
        ) from None
    return found if isinstance(found, tuple) else (found,)


def span_rows(spans: Any) -> tuple[tuple[Span, ...], ...]:
    """Spans by row.

    Raises:
        InvalidParameterError: none at all, or one that is not (start, stop).
    """
    several: list[Any] = list(spans) if isinstance(spans, list | tuple) else [None]
    rows = [several] if any(map(_is_pair, several)) else several
    for row in rows:
        known = isinstance(row, list | tuple) and all(map(_is_pair, row))
        if not known or not all(0 <= start < stop for start, stop in row):
            raise InvalidParameterError(
                "AttentionBias: spans are (start, stop) with 0 <= start < stop, in one list or in "
                f"one list per row, not {spans!r}"
            )
    if not any(rows):
        raise InvalidParameterError("AttentionBias: needs at least one span")
    return tuple(tuple((start, stop) for start, stop in row) for row in rows)


def head_rows(owner: str, heads: Any) -> tuple[tuple[Head, ...] | None, ...]:
    """Heads by row; None: all of them.

    Raises:
        InvalidParameterError: none at all, or one that is not (layer, head).
    """
    if heads is None:
        return (None,)
    several = list(heads) if isinstance(heads, Iterable) else [heads]
    # A head is a tuple of numbers; a row of heads has pairs in it, or is no tuple.
    shared = all(isinstance(one, tuple) and not any(map(_is_pair, one)) for one in several)
    rows = [several] if shared else several
    if any(isinstance(row, str) or not isinstance(row, Iterable | None) for row in rows):
        raise InvalidParameterError(
            f"{owner}: heads are (layer, head), in one list or in one list per row, not {heads!r}"
        )
    found = [None if row is None else tuple(row) for row in rows]
    given = [head for row in found for head in row or ()]
    if any(not isinstance(head, tuple) for head in given):
        raise InvalidParameterError(f"{owner}: a head is (layer, head) from 0, not {given[0]!r}")
    if given or None not in found:
        checked(owner, dict.fromkeys(given, 1.0))
    return tuple(found)


def vector(owner: str, head: Head, direction: Any) -> Tensor:
    """`[head_dim]` float32, a copy.

    Raises:
        InvalidParameterError: not a vector of finite numbers.
    """
    found = torch.as_tensor(direction).detach().float().cpu().clone()
    if found.dim() != 1 or not bool(found.isfinite().all()):
        raise InvalidParameterError(f"{owner}: head {head}: expected a finite [head_dim] vector")
    return found


def _is_pair(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(type(part) is int for part in value)
