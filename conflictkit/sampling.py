"""From a row of scores to a token: greedy, or drawn with a generator of the row's own."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conflictkit.errors import InvalidParameterError

_LAST_SEED = 2**62
"""Largest seed; torch takes 64 bits, and further answers count on from it."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded.

    Attributes:
        max_new_tokens: most tokens per answer, the end token included.
        temperature: 0 is greedy; otherwise scores are divided by it before a token is drawn.
        top_k: keep the k best tokens before drawing; None: all.
        top_p: keep the smallest set of best tokens with at least this probability; None: all.
        seed: of the draws; None: a fresh one. One number is the seed of the first answer of the
            first row, and every further answer takes the next number: answer `sample` of row `row`
            draws from seed + row * n + sample. A tuple gives every row a seed of its own, so that
            a row draws the same whatever its place in the batch.
        num_beams: 1, or the width of the beam search.
        length_penalty: beams are ranked by score / length ** length_penalty, from -10 to 10.
        n: answers per question; with beams, at most num_beams.
        stop: answers end before the first of these texts.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | tuple[int, ...] | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "n"):
            _require(name, getattr(self, name), whole=True, low=1)
        _require("temperature", self.temperature, low=0.0)
        _require("length_penalty", self.length_penalty, low=-10.0, high=10.0)
        if self.top_k is not None:
            _require("top_k", self.top_k, whole=True, low=1)
        if self.top_p is not None:
            _require("top_p", self.top_p, low=0.0, high=1.0)
        for seed in self.seed if isinstance(self.seed, tuple) else (self.seed,):
            if seed is not None:
                _require("seed", seed, whole=True, low=0, high=_LAST_SEED)
        if self.temperature == 0 and not (self.top_k is None and self.top_p is None):
            raise InvalidParameterError(
                "top_k and top_p act on sampling: set a temperature above 0"
            )
        if self.num_beams == 1 and self.length_penalty != 1:
            raise InvalidParameterError("length_penalty acts on beams: set num_beams above 1")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise InvalidParameterError("stop must hold texts of at least one character")
        for text in self.stop:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidParameterError(f"stop {text!r} is not valid text") from error
        if self.num_beams > 1 and self.temperature > 0:
            raise InvalidParameterError("num_beams > 1 needs temperature=0: beams do not sample")
        if self.num_beams > 1 and self.n > self.num_beams:
            raise InvalidParameterError(f"n={self.n} needs num_beams >= n, not {self.num_beams}")
        if self.n > 1 and self.num_beams == 1 and self.temperature == 0:
            raise InvalidParameterError("n > 1 greedy answers are equal: set temperature or beams")


class Chooser:
    """Draws one token per row; each row has a random generator of its own.

    Args:
        decoding: what to do.
        rows: number of rows at the start, the `n` answers of a row side by side.

    Raises:
        InvalidParameterError: another number of seeds than rows.
    """

    def __init__(self, decoding: Decoding, rows: int) -> None:
        self._decoding = decoding
        seed, n = decoding.seed, decoding.n
        if isinstance(seed, tuple):
            if len(seed) * n != rows:
                raise InvalidParameterError(f"{len(seed)} seeds for {rows // n} rows")
            seeds = [own + sample for own in seed for sample in range(n)]
        else:
            first = int(torch.randint(_LAST_SEED, ())) if seed is None else seed
            seeds = list(range(first, first + rows))
        self._generators = [torch.Generator().manual_seed(one % 2**63) for one in seeds]

    def select(self, rows: Sequence[int]) -> None:
        """Keep the generators of these rows, in that order."""
        self._generators = [self._generators[row] for row in rows]

    def choose(self, scores: Tensor, rows: Collection[int] | None = None) -> Tensor:
        """One token id per row, `[batch]`, from `[batch, vocab]` scores.

        Args:
            rows: those whose token counts; the others draw nothing. None: all.
        """
        if self._decoding.temperature == 0:
            return first_argmax(scores)
        kept = warp(scores, self._decoding)
        uniform = torch.tensor(
            [
                0.0
                if rows is not None and row not in rows
                else float(torch.rand((), generator=own, dtype=torch.float64))
                for row, own in enumerate(self._generators)
            ],
            dtype=torch.float64,
        )
        cumulative = kept.softmax(-1).double().cumsum(-1)
        target = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
        # right=True skips tokens of probability zero, which share their neighbour's sum.
        return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(
            scores.shape[-1] - 1
        )


def first_argmax(scores: Tensor) -> Tensor:
    """`[batch]` index of each row's maximum, the lowest index among equals."""
    width = scores.shape[-1]
    best = scores == scores.amax(-1, keepdim=True)
    places = torch.arange(width, device=scores.device)
    return torch.where(best, places, width - 1).amin(-1)


def warp(scores: Tensor, decoding: Decoding) -> Tensor:
    """Temperature, then top-k, then top-p, as transformers orders them; `[batch, vocab]`."""
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    none: Any = None  # these warpers do not look at the prefix
    # Divided by a tiny temperature, anything above 0 would overflow.
    warped = scores - scores.amax(-1, keepdim=True)
    if decoding.temperature != 1:
        warped = TemperatureLogitsWarper(float(decoding.temperature))(none, warped)
    if decoding.top_k is not None:
        warped = TopKLogitsWarper(decoding.top_k)(none, warped)
    if decoding.top_p is not None and decoding.top_p < 1:
        warped = TopPLogitsWarper(decoding.top_p)(none, warped)
    return warped


def _require(
    name: str,
    value: object,
    *,
    whole: bool = False,
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    kinds = numbers.Integral if whole else numbers.Real
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(float(value)):
        raise InvalidParameterError(f"{name} must be {kind}, not {value!r}")
    if not low <= float(value) <= high:
        upper = f" and at most {high:g}" if math.isfinite(high) else ""
        raise InvalidParameterError(f"{name} must be at least {low:g}{upper}, not {value!r}")
