"""The streams of a run on their way through an answer, in as few passes over the weights as can be.

Four roads lead to the same logits, up to rounding:

- `packed`: one pass for all streams; attention for each by itself, over its own cache at its own
  length (`_hf_packed`).
- `padded`: one pass and one cache, the shorter streams padded on the left to the longest; where
  a model's attention cannot be reached.
- `compiled`: as `packed`, with caches of fixed size and a compiled graph (`_hf_compiled`); where it
  was asked for.
- `sequential`: a pass for each stream: the definition, and what is left for streams of different
  models, recurrent layers, compiled models and runs without a cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from conflictkit import _hf, _hf_compiled, _hf_packed
from conflictkit._hf_compiled import Steps
from conflictkit._hf_packed import RefusedError, Share, riding
from conflictkit.errors import UnsupportedError
from conflictkit.interventions._hooks import any_at_work, counts, on_attention
from conflictkit.interventions.attending import Leading
from conflictkit.streams import Stream, left_padded

Road = Literal["packed", "padded", "sequential", "compiled"]

ROADS: tuple[Road, ...] = ("packed", "padded", "sequential")
"""Best first: what a model does not support falls back to the next."""

_GAPS = 128
"""Columns with padding inside some row that are put up with before they are closed."""

_ATTENDS: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""Models whose first packed pass has shown whether they attend as a pack needs it."""


class Together:
    """Streams that read the same answer tokens.

    Args:
        streams: name -> stream, the answering one first; all with the same number of rows.
        best: the best road to take; a worse one is taken where the streams or the model need it.
        steps: compile the step, and take it from here if it has been compiled before.
        room: how many tokens will be appended at most, if the step is compiled.

    Raises:
        UnsupportedError: a step that cannot be compiled.

    Attributes:
        road: the road taken, which the first pass may still change for the worse; `sequential` if
            there is one stream.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        best: Road = "packed",
        *,
        steps: Steps | None = None,
        room: int = 0,
    ) -> None:
        self._names = tuple(streams)
        self._streams = tuple(streams.values())
        self._model = self._streams[0].model
        self._accepted = _hf.accepted_arguments(self._model)
        self._merged: Any = None
        self._gaps = 0
        self._leading: Leading | None = None
        self._steps, self._room, self._static = steps, room, None
        if steps is not None:
            _hf_compiled.check_static(self._model)
            if any(one.is_changed or one.cache is None for one in self._streams):
                raise UnsupportedError(
                    "compile=True: activations are edited, looked at or not cached in this run"
                )
        self.road: Road = "compiled" if steps is not None else self._chosen(best)

    def step(self, tokens: Tensor) -> dict[str, Tensor]:
        """Append `tokens` `[batch]` to every stream; stream name -> `[batch, vocab]` logits."""
        return {name: logits[:, 0] for name, logits in self.follow(tokens[:, None]).items()}

    def follow(
        self, tokens: Tensor, mask: Tensor | None = None, counted: int | None = None
    ) -> dict[str, Tensor]:
        """Append several tokens to every stream in one go.

        Args:
            tokens: `[batch, new]`, at least one.
            mask: `[batch, new]`, 1 at tokens, 0 at padding behind a row's end; None: no padding.
            counted: how many tokens the mask shows.

        Returns:
            Stream name -> `[batch, new, vocab]` logits after each token.

        Side effects: the road may become a worse one.
        """
        mask = torch.ones_like(tokens) if mask is None else mask
        counted = mask.numel() if counted is None else counted
        if self.road == "compiled":
            return dict(zip(self._names, self._stepped(tokens, mask, counted), strict=True))
        if self.road == "sequential":
            logits = [one.follow(tokens, mask, counted) for one in self._streams]
            return dict(zip(self._names, logits, strict=True))
        shares = [one.board(tokens, mask, counted) for one in self._streams]
        logits = self._pass(shares, tokens.shape[1])
        return dict(zip(self._names, logits, strict=True))

    def select(self, index: Tensor) -> None:
        """Keep the rows `index` of every stream, in that order."""
        for one in self._streams:
            one.select(index)
        if self._static is not None:
            self._static.select(index.to(self._streams[0].ids.device))
        if self._merged is not None:
            index = index.to(self._streams[0].ids.device)
            rows = len(self._merged.layers[0].keys) // len(self._streams)
            every = [index + rows * number for number in range(len(self._streams))]
            _hf.select_rows(self._merged, torch.cat(every))

    def roll_back(self, count: int) -> None:
        """Forget the last `count` tokens of every row of every stream."""
        for one in self._streams:
            one.roll_back(count)
        if self._merged is not None:
            _hf.roll_back(self._merged, count)

    def forget(self, kept: Tensor) -> None:
        """Take tokens of the last pass back, row by row: they are padding from here on.

        Args:
            kept: `[batch, new]`, 1 at tokens of the last pass that stay, 0 at the others.
        """
        for one in self._streams:
            one.forget(kept)
        self._gaps += kept.shape[1]
        if self._gaps > _GAPS or _hf.counts_columns(self._model):
            self.close_gaps()

    def close_gaps(self) -> None:
        """Move padding out of the rows to their left, where a sliding window does not count it, and
        drop what is padding in all of them (a longer row may have ended)."""
        self._gaps = 0
        order = None if self._merged is None else left_padded(self._merged_mask())
        for one in self._streams:
            one.close_gaps()
        if order is not None:
            width = max(one.mask.shape[1] for one in self._streams)
            _hf.reorder_positions(self._merged, order[:, -width:])

    def _chosen(self, best: Road) -> Road:
        streams, model = self._streams, self._model
        apart = any(one.model is not model or one.cache is None for one in streams)
        bound = _hf.is_compiled(model) or _hf_packed.binds_rows(model)
        if len(streams) == 1 or apart or bound or best == "sequential":
            return "sequential"
        if best == "packed" and _ATTENDS.get(model, True):
            configs = _hf_packed.led_configs(model)
            if configs is not None:
                self._leading = Leading(configs)
                return "packed"
        return "sequential" if any(one.attends for one in streams) else "padded"

    def _stepped(self, tokens: Tensor, mask: Tensor, counted: int) -> list[Tensor]:
        if tokens.shape[1] > 1:
            raise UnsupportedError("a compiled step appends one token at a time")
        if any_at_work():
            raise UnsupportedError(
                "compile=True: an edit is attached, which a compiled graph leaves out: detach it"
            )
        if self._static is None:
            assert self._steps is not None
            caches = [one.cache for one in self._streams]
            masks = [one.mask for one in self._streams]
            self._static = self._steps.take(self._model, caches, masks, self._room)
            weakref.finalize(self, self._steps.give_back, self._static)
            for one in self._streams:
                one.cache = None
        for one in self._streams:
            one.board(tokens, mask, counted)
        self._count_rides()
        return [one[:, None] for one in self._static.step(tokens[:, 0])]

    def _pass(self, shares: Sequence[Share], keep: int) -> list[Tensor]:
        if self.road == "packed":
            found = self._packed(shares, keep)
            if found is not None:
                return found
            self.road = self._chosen("padded")
        if self.road == "padded":
            found = self._padded(shares, keep)
            if found is not None:
                return found
            self.road = "sequential"
        found = []
        for one, share in zip(self._streams, shares, strict=True):
            with one.at_work():
                found += self._read([share], share.mask, one.cache, keep)
        return found

    def _packed(self, shares: Sequence[Share], keep: int) -> list[Tensor] | None:
        """None: the model does not attend as a pack needs it; the caches are as they were."""
        assert self._leading is not None
        # What the caches held is kept once in a model's life: it is as large as they are.
        known = _ATTENDS.get(self._model, False)
        before = [] if known else [_hf.copy_cache(one.cache) for one in shares]
        with self._riding(shares):
            restore = counts()
            try:
                with self._leading.during(on_attention):
                    found = _hf_packed.packed_logits(
                        self._model, shares, keep=keep, accepted=self._accepted
                    )
            except Exception as error:
                if known:
                    raise
                for one, cache in zip(self._streams, before, strict=True):
                    one.cache = cache
                if not _hf_packed.is_refusal(error):
                    raise
                restore()
                _ATTENDS[self._model] = False
                return None
        _ATTENDS[self._model] = True
        self._count_rides()
        return found

    @contextmanager
    def _riding(self, shares: Sequence[Share]) -> Iterator[None]:
        """All streams' changes at work, each on its own rows."""
        with ExitStack() as acting:
            for one in self._streams:
                acting.enter_context(one.at_work())
            with riding(shares):
                yield

    def _padded(self, shares: Sequence[Share], keep: int) -> list[Tensor] | None:
        """None: the caches cannot be made one."""
        if self._merged is None:
            lengths = [one.mask.shape[1] - one.ids.shape[1] for one in shares]
            try:
                self._merged = _hf_packed.joined([one.cache for one in self._streams], lengths)
            except RefusedError:
                return None
            for one in self._streams:
                one.cache = None
        with self._riding(shares):
            found = self._read(shares, self._merged_mask(), self._merged, keep)
        self._count_rides()
        return found

    def _merged_mask(self) -> Tensor:
        masks = [one.mask for one in self._streams]
        width = max(one.shape[1] for one in masks)
        return torch.cat([functional.pad(one, (width - one.shape[1], 0)) for one in masks])

    def _read(self, shares: Sequence[Share], mask: Tensor, cache: Any, keep: int) -> list[Tensor]:
        """A pass over one cache."""
        logits = _hf.tail_logits(
            self._model,
            torch.cat([one.ids for one in shares]),
            attention_mask=mask,
            position_ids=torch.cat([one.positions for one in shares]),
            keep=keep,
            cache=cache,
            accepted=self._accepted,
        )
        return list(logits.split([len(one.ids) for one in shares]))

    def _count_rides(self) -> None:
        for one in self._streams[1:]:
            one.rides += 1
