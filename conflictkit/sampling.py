"""From a row of scores to a token: greedy, or drawn with a generator of the row's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conflictkit.errors import InvalidParameterError


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded.

    Attributes:
        max_new_tokens: most tokens per answer, the end token included.
        temperature: 0 is greedy; otherwise scores are divided by it before a token is drawn.
        top_k: keep the k best tokens before drawing; None: all.
        top_p: keep the smallest set of best tokens with at least this probability; None: all.
        seed: of the draws. Every row starts from it, so a row does not depend on its neighbours;
            further samples of the same row use seed + 1, seed + 2, ... None: a fresh one.
        num_beams: 1, or the width of the beam search.
        length_penalty: beams are ranked by score / length ** length_penalty.
        n: answers per question; with beams, at most num_beams.
        stop: answers end before the first of these texts.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "n"):
            _require(name, getattr(self, name), whole=True, low=1)
        _require("temperature", self.temperature, low=0.0)
        _require("length_penalty", self.length_penalty)
        if self.top_k is not None:
            _require("top_k", self.top_k, whole=True, low=1)
        if self.top_p is not None:
            _require("top_p", self.top_p, low=0.0, high=1.0)
        if self.seed is not None:
            _require("seed", self.seed, whole=True, low=0)
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise InvalidParameterError("stop must hold texts of at least one character")
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
        rows: number of rows at the start.
    """

    def __init__(self, decoding: Decoding, rows: int) -> None:
        self._decoding = decoding
        seed = decoding.seed
        first = int(torch.randint(2**48, ())) if seed is None else seed
        self._generators = [
            torch.Generator().manual_seed(first + row % decoding.n) for row in range(rows)
        ]

    def select(self, rows: Sequence[int]) -> None:
        """Keep the generators of these rows, in that order."""
        self._generators = [self._generators[row] for row in rows]

    def choose(self, scores: Tensor) -> Tensor:
        """One token id per row, `[batch]`, from `[batch, vocab]` scores."""
        if self._decoding.temperature == 0:
            return first_argmax(scores)
        kept = warp(scores, self._decoding)
        uniform = torch.tensor(
            [float(torch.rand((), generator=g, dtype=torch.float64)) for g in self._generators],
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
    warped = scores
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
    kinds = int if whole else (int, float)
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        raise InvalidParameterError(f"{name} must be {kind}, not {value!r}")
    if not low <= value <= high:
        upper = f" and at most {high:g}" if math.isfinite(high) else ""
        raise InvalidParameterError(f"{name} must be at least {low:g}{upper}, not {value!r}")
