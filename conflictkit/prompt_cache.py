"""Prompts that have been read, kept for whoever reads the same text again.

A prompt that begins like a kept one takes over what that begins with: the document before another
question, the question without a document, the same prompt under another method. What is left is
read in one pass; a prompt that is kept whole is not read at all.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conflictkit import _hf
from conflictkit._hf_packed import binds_rows
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions._hooks import any_at_work
from conflictkit.streams import Stream

_BLOCK = 16
"""Tokens between two places at which the beginning of a kept prompt can be found; the rest of what
is common is then compared token by token."""

_WORTH = 64
"""Tokens that rows have to share before one is read ahead of the others."""

Ids = tuple[int, ...]
Rows = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, `[heads, tokens, head_dim]` each."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A prompt in the cache.

    Attributes:
        ids: its tokens.
        bytes: what it takes.
        layers: keys and values of every layer.
        logits: `[vocab]` after its end.
    """

    ids: Ids
    bytes: int
    layers: Rows
    logits: Tensor


_Who = tuple[int, Hashable]
"""Id of a model, and what it computes with by now."""

Found = tuple[Kept | None, int]
"""A kept prompt, and how many tokens of another begin like it."""


@dataclass
class _Begun:
    """What goes on behind a beginning of whole blocks, and the prompts that have it."""

    further: dict[Ids, _Begun] = field(default_factory=dict)
    kept: dict[int, Kept] = field(default_factory=dict)  # by id


class PromptCache:
    """Read prompts of one model or several, bounded in bytes; the least recently used go first.

    Pass it to `Model.ask` and its like, and to `evaluate` (`cache=`). Nothing is taken from it or
    put into it where conflictkit edits activations, for recurrent models, and without a key-value
    cache. It knows models apart, and a model's precision, device and PEFT adapters; after any other
    change (weights, hooks of your own) it has to be cleared. Threads may share it.

    Args:
        max_bytes: most bytes of keys, values and logits to hold.

    Attributes:
        max_bytes: as given.
        tokens_read, tokens_reused: of the prompts that went through it.

    Raises:
        InvalidParameterError: `max_bytes` is not a whole number from 1.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise InvalidParameterError(f"max_bytes must be a whole number, not {max_bytes!r}")
        self.max_bytes = max_bytes
        self.tokens_read = self.tokens_reused = 0
        self._kept: OrderedDict[tuple[_Who, Ids], Kept] = OrderedDict()
        self._begins: dict[_Who, _Begun] = {}
        self._models: dict[int, weakref.ref[Any]] = {}
        self._bytes = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return (
            f"PromptCache({len(self)} prompts, {self.bytes:,} of {self.max_bytes:,} bytes, "
            f"{self.tokens_reused:,} tokens reused, {self.tokens_read:,} read)"
        )

    @property
    def bytes(self) -> int:
        """What is held."""
        return self._bytes

    @property
    def entries(self) -> list[Kept]:
        """What is held, the least recently used first."""
        with self._lock:
            return list(self._kept.values())

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._kept.clear()
            self._begins.clear()
            self._models.clear()
            self._bytes = 0

    def serves(self, stream: Stream) -> bool:
        """Whether a stream's prompts may be taken from here and put here."""
        edited = stream.is_changed or any_at_work()
        cached = stream.cache is not None and not binds_rows(stream.model)
        return cached and not edited

    def read(self, stream: Stream) -> Tensor:
        """Read the prompts of a new stream, as far as that is not done.

        Args:
            stream: one that `serves` approves, of which nothing has been read.

        Returns:
            `[batch, vocab]` logits after the prompts' ends.

        Side effects: fills the stream's cache and counters, and this cache.
        """
        model = self._who(stream.model)
        prompts = stream.rows()
        whole: dict[int, Kept] = {}
        passes = counted = 0
        # What several rows begin with is read with the first of them, and then taken over.
        for first in (True, False):
            waiting = [row for row in range(len(prompts)) if row not in whole]
            found = {row: self._find(model, prompts[row]) for row in waiting}
            whole |= {
                row: one
                for row, (one, size) in found.items()
                if one is not None and size == len(prompts[row])
            }
            now = [row for row in waiting if row not in whole]
            if first:
                now = _leaders(prompts, found, now)
            if now:
                made, tokens = self._finished(stream.model, prompts, found, now, stream.pad_id)
                for one in made.values():
                    self._keep(model, one)
                whole |= made
                passes += 1
                counted += tokens
        with self._lock:
            self.tokens_read += counted
            self.tokens_reused += sum(map(len, prompts)) - counted
        rows = [whole[row] for row in range(len(prompts))]
        cache = _hf.new_cache(stream.model)
        _hf.fill_cache(cache, [one.layers for one in rows], stream.ids.shape[1])
        stream.adopt(cache, passes=passes, tokens=counted)
        return torch.stack([one.logits for one in rows])

    def _finished(
        self,
        model: Any,
        prompts: Sequence[Ids],
        found: Mapping[int, Found],
        left: Sequence[int],
        pad_id: int,
    ) -> tuple[dict[int, Kept], int]:
        """Read what is missing of some rows, in one pass; what they are now, and how many tokens
        that were."""
        # As many new tokens in every row, where there are so many: what is kept is then followed
        # at once, without padding that a sliding window would count.
        new = max(len(prompts[row]) - found[row][1] for row in left)
        sizes = [max(len(prompts[row]) - new, 0) for row in left]
        begun: list[Rows | None] = []
        for row, size in zip(left, sizes, strict=True):
            one = found[row][0]
            begun.append(
                [(k[:, :size], v[:, :size]) for k, v in one.layers] if one and size else None
            )
        rest = [prompts[row][size:] for row, size in zip(left, sizes, strict=True)]
        known = max(sizes)
        cache = _hf.new_cache(model)
        if known:
            shape = next(rows for rows in begun if rows is not None)
            _hf.fill_cache(cache, [rows or _nothing(shape) for rows in begun], known)
        device = model.get_input_embeddings().weight.device
        mask = torch.tensor(
            [
                [0] * (known - size) + [1] * size + [0] * (new - len(ids)) + [1] * len(ids)
                for size, ids in zip(sizes, rest, strict=True)
            ],
            device=device,
        )
        ids = torch.tensor([[pad_id] * (new - len(one)) + list(one) for one in rest], device=device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -new:]
        logits = _hf.tail_logits(
            model, ids, attention_mask=mask, position_ids=positions, cache=cache
        )[:, -1]
        made = {}
        for number, row in enumerate(left):
            places = mask[number].nonzero()[:, 0]
            layers = [
                (k[number].index_select(1, places), v[number].index_select(1, places))
                for k, v in _hf.cache_layers(cache)
            ]
            own = logits[number].clone()
            size = own.nbytes + sum(k.nbytes + v.nbytes for k, v in layers)
            made[row] = Kept(prompts[row], size, layers, own)
        return made, sum(map(len, rest))

    def _who(self, model: Any) -> _Who:
        number = id(model)
        weight = model.get_input_embeddings().weight
        with self._lock:
            known = self._models.get(number)
            if known is None or known() is not model:
                for key in [key for key in self._kept if key[0][0] == number]:
                    self._drop(key)  # of a model that is gone
                self._models[number] = weakref.ref(model)
        return number, (weight.dtype, weight.device, _hf.adapters(model))

    def _find(self, model: _Who, ids: Ids) -> tuple[Kept | None, int]:
        """The kept prompt that has most in common with the beginning of `ids`, and how much.

        All of `ids` only if it is kept whole: the logits after its last token are wanted.
        """
        with self._lock:
            key = (model, ids)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key], len(ids)
            begun = self._begins.get(model)
            size = 0
            for block in _blocks(ids[: len(ids) - 1]):
                if begun is None or block not in begun.further:
                    break
                begun = begun.further[block]
                size += _BLOCK
            if begun is not None and size:
                sizes = {one: _alike(kept.ids, ids, size) for one, kept in begun.kept.items()}
                best = max(sizes, key=lambda one: sizes[one])
                self._kept.move_to_end((model, begun.kept[best].ids))
                return begun.kept[best], sizes[best]
        return None, 0

    def _keep(self, model: _Who, one: Kept) -> None:
        if one.bytes > self.max_bytes:
            return
        key = (model, one.ids)
        with self._lock:
            if key in self._kept:
                return
            while self._bytes + one.bytes > self.max_bytes:  # first: others may be looking
                self._drop(next(iter(self._kept)))
            self._kept[key] = one
            self._bytes += one.bytes
            begun = self._begins.setdefault(model, _Begun())
            for block in _blocks(one.ids):
                begun = begun.further.setdefault(block, _Begun())
                begun.kept[id(one)] = one

    def _drop(self, key: tuple[_Who, Ids]) -> None:
        one = self._kept.pop(key)
        self._bytes -= one.bytes
        begun = self._begins[key[0]]
        for block in _blocks(one.ids):
            further = begun.further[block]
            del further.kept[id(one)]
            if not further.kept:
                del begun.further[block]
                return
            begun = further


def check_cache(cache: object) -> PromptCache | None:
    """A cache, or None.

    Raises:
        InvalidParameterError: anything else.
    """
    if cache is None or isinstance(cache, PromptCache):
        return cache
    raise InvalidParameterError(f"cache must be a PromptCache, not {type(cache).__name__}")


def _blocks(ids: Ids) -> Iterator[Ids]:
    for end in range(_BLOCK, len(ids) + 1, _BLOCK):
        yield ids[end - _BLOCK : end]


def _alike(kept: Ids, ids: Ids, size: int) -> int:
    """How much of `ids`, but for its last token, a prompt begins with that begins with `size`."""
    most = min(len(kept), len(ids) - 1)
    while size < most and kept[size] == ids[size]:
        size += 1
    return size


def _leaders(prompts: Sequence[Ids], found: Mapping[int, Found], rows: Sequence[int]) -> list[int]:
    """Of rows that go on alike for long behind what is kept of them, the first."""
    seen: dict[Ids, int] = {}
    for row in rows:
        seen.setdefault(prompts[row][: found[row][1] + _WORTH], row)
    return list(seen.values())


def _nothing(like: Rows) -> Rows:
    """A row of which nothing has been read."""
    return [(k[:, :0], v[:, :0]) for k, v in like]
