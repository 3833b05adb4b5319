"""The state of one stream: what a model has read in each row, and how to go on or back.

A stream feeds tokens to one model with its own cache, mask and positions. The engine drives any
number of them by the same four verbs: `prefill`, `step`, `select`, `roll_back`. What several runs
begin with is read once and forked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from conflictkit import _hf
from conflictkit._hf_packed import Share
from conflictkit.errors import EmptyInputError, UnsupportedError


class Acting(Protocol):
    """Changes to activations that act while a stream reads."""

    @property
    def edits(self) -> int:
        """Positions changed so far."""
        ...

    def at_work(self) -> AbstractContextManager[None]:
        """Act on what is computed inside."""
        ...

    def select(self, index: Tensor) -> None:
        """Go on with these rows."""
        ...

    @property
    def attends(self) -> bool:
        """Whether some of them change attention itself."""
        ...

    def owns(self, one: object) -> bool:
        """Whether a change at work is one of these."""
        ...

    def fork(self) -> Self:
        """The same for a stream that goes its own way."""
        ...


def left_padded(mask: Tensor) -> Tensor:
    """`[batch, length]` columns in the order that puts each row's padding first."""
    return mask.argsort(dim=-1, stable=True)


class Prompts(Protocol):
    """Prompts that have been read already: `conflictkit.prompt_cache.PromptCache`."""

    def serves(self, stream: Stream) -> bool:
        """Whether a stream's prompts may be taken from there."""
        ...

    def read(self, stream: Stream) -> Tensor:
        """Fill the stream's cache, reading what is missing; the logits after its prompts."""
        ...


class Stream:
    """Rows of tokens read by one model, left-padded, with a key-value cache.

    Args:
        model: a Hugging Face decoder-only model.
        prompts: token ids of every row; lengths may differ.
        pad_id: id written at padding; masked, so its value never matters.
        use_cache: False re-reads the whole prefix at each step (slow; the plain definition).
        acting: changes to activations that act whenever this stream reads.
        origin: a stream of the same prompts whose cache this one takes over for all but the last
            prompt token; `acting` must leave what is before it alone.
        seen: where `acting` puts what it saw of the newest pass.
        prompts_read: where prompts are taken from that have been read before.

    Raises:
        EmptyInputError: no row, or a row without tokens.
        UnsupportedError: rows of different lengths for a model that counts padding as positions.

    Attributes:
        ids: `[batch, length]` tokens read so far, padding on the left.
        mask: `[batch, length]` 1 at tokens, 0 at padding.
        forwards: passes so far.
        rides: how many of them rode along in another stream's pass over the weights.
        tokens: tokens read so far, padding not counted.
        seen: `kind.layer` -> `[batch, some, width]` of the newest pass's last positions, where
            somebody asked for it.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        pad_id: int,
        use_cache: bool = True,
        acting: Acting | None = None,
        origin: Stream | None = None,
        seen: Mapping[str, Tensor] | None = None,
        prompts_read: Prompts | None = None,
    ) -> None:
        if not prompts or any(not row for row in prompts):
            raise EmptyInputError("a stream needs at least one token in every row")
        width = max(len(row) for row in prompts)
        if min(map(len, prompts)) < width and _hf.misplaces_padded_rows(model):
            raise UnsupportedError(
                f"{type(model).__name__} counts padding as positions, so rows of different lengths "
                "would be misread: ask one question at a time, or only rows of one length"
            )
        device = model.get_input_embeddings().weight.device
        self.model = model
        self.pad_id = pad_id
        self.ids = torch.tensor(
            [[pad_id] * (width - len(row)) + list(row) for row in prompts], device=device
        )
        lengths = torch.tensor([len(row) for row in prompts], device=device)
        places = torch.arange(width, device=device)
        self.mask = (places >= (width - lengths)[:, None]).long()
        self.forwards = 0
        self.rides = 0
        self.tokens = 0
        self.seen: Mapping[str, Tensor] = {} if seen is None else seen
        self._cache = _hf.new_cache(model) if use_cache else None
        self._accepted = _hf.accepted_arguments(model)
        self._prefilled: Tensor | None = None
        self._padded = min(map(len, prompts)) < width
        self._acting = acting
        self._prompts_read = prompts_read
        self._origin = origin if use_cache else None
        if self._origin is not None and _hf.has_recurrent_layers(model):
            raise UnsupportedError(
                f"{type(model).__name__} has recurrent layers: its state cannot be cut back, and "
                "two streams cannot share a prompt"
            )

    @property
    def cache_bytes(self) -> tuple[float, float]:
        """Size of the cache: bytes per row and position, and further bytes per row."""
        return (0.0, 0.0) if self._cache is None else _hf.cache_bytes(self._cache)

    @property
    def edits(self) -> int:
        """Positions at which an activation was changed (waits for the device)."""
        return 0 if self._acting is None else self._acting.edits

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.ids.shape[0]

    def prefill(self) -> Tensor:
        """Read the prompts, if that is not done; `[batch, vocab]` logits after their ends."""
        if self._prefilled is None:
            new, counted = self.ids.shape[1], int(self.mask.sum())
            if self._origin is not None:
                self._origin.prefill()
                self._cache = _hf.copy_cache(self._origin._cache)
                _hf.roll_back(self._cache, 1)
                self._origin, new, counted = None, 1, self.batch
            elif self._prompts_read is not None and self._prompts_read.serves(self):
                self._prefilled = self._prompts_read.read(self)
                return self._prefilled
            self._prefilled = self._read(new, counted)[:, -1]
        return self._prefilled

    def close_gaps(self) -> None:
        """Move padding inside rows to their left, and drop what is then padding in all of them."""
        order = left_padded(self.mask)[:, int((self.mask == 0).sum(-1).min()) :]
        self.ids, self.mask = self.ids.gather(1, order), self.mask.gather(1, order)
        if self._cache is not None:
            _hf.reorder_positions(self._cache, order)

    def rows(self) -> list[tuple[int, ...]]:
        """The tokens of every row, without padding (waits for the device)."""
        several = zip(self.ids.tolist(), self.mask.tolist(), strict=True)
        return [tuple(one for one, there in zip(*row, strict=True) if there) for row in several]

    @property
    def is_changed(self) -> bool:
        """Whether activations are changed or looked at, or taken over from another stream."""
        return self._acting is not None or self._origin is not None

    def adopt(self, cache: Any, *, passes: int, tokens: int) -> None:
        """Go on from a cache that holds the prompts; `passes` and `tokens` were read for it."""
        self._cache = cache
        self.forwards += passes
        self.tokens += tokens

    def fork(self) -> Stream:
        """A stream of its own that stands where this one does, without reading anything again.

        Neither sees what the other reads from here on. The fork's counters begin with this
        stream's, as if it had read everything by itself.
        """
        twin = copy.copy(self)
        if self._cache is not None:
            twin._cache = _hf.copy_cache(self._cache)
        if self._acting is not None:
            twin._acting = self._acting.fork()
        return twin

    def step(self, tokens: Tensor) -> Tensor:
        """Append `tokens` `[batch]` and return the `[batch, vocab]` logits after them."""
        return self.extend(tokens[:, None])

    def extend(self, tokens: Tensor) -> Tensor:
        """Append `tokens` `[batch, new]` in one pass; the `[batch, vocab]` logits after the last.

        `new` must be at least 1.
        """
        mask = self.mask.new_ones(tokens.shape)
        return self._append(tokens, mask, mask.numel(), keep=1)[:, -1]

    def follow(self, tokens: Tensor, mask: Tensor, counted: int | None = None) -> Tensor:
        """Append `tokens` `[batch, new]` in one pass; the logits after each of them.

        Args:
            tokens: at least one place.
            mask: `[batch, new]`, 1 at tokens, 0 at padding behind a row's end.
            counted: how many tokens the mask shows, if that is known.

        Returns:
            `[batch, new, vocab]`; at padding they mean nothing.
        """
        counted = int(mask.sum()) if counted is None else counted
        return self._append(tokens, mask, counted, keep=tokens.shape[1])

    def select(self, index: Tensor) -> None:
        """Keep the rows `index`, in that order; rows may be dropped, moved and repeated."""
        index = index.to(self.ids.device)
        self.ids, self.mask = self.ids[index], self.mask[index]
        if self._prefilled is not None:
            self._prefilled = self._prefilled[index.to(self._prefilled.device)]
        if self._cache is not None:
            _hf.select_rows(self._cache, index)
        if self._acting is not None:
            self._acting.select(index)

    def roll_back(self, count: int) -> None:
        """Forget the last `count` tokens of every row.

        Raises:
            UnsupportedError: the model has recurrent layers, whose state cannot be cut back.
        """
        if count <= 0:
            return
        self._prefilled = None
        if self._cache is not None:
            if _hf.has_recurrent_layers(self.model):
                raise UnsupportedError("a model with recurrent layers cannot be rolled back")
            _hf.roll_back(self._cache, count)
        self.ids, self.mask = self.ids[:, :-count], self.mask[:, :-count]

    def board(self, tokens: Tensor, mask: Tensor, counted: int) -> Share:
        """Append `tokens` as `follow` does, but leave the pass that reads them to whoever asks.

        Args:
            counted: how many tokens the mask shows.
        """
        self.forwards += 1
        self.tokens += counted
        self._take(tokens, mask, counted)
        return self._share(tokens.shape[1])

    @property
    def cache(self) -> Any:
        """The key-value cache; None: none is kept."""
        return self._cache

    @cache.setter
    def cache(self, cache: Any) -> None:
        self._cache = cache

    def forget(self, kept: Tensor) -> None:
        """Take the newest tokens back where `kept` `[batch, new]` is 0: they are padding now."""
        kept = kept.to(self.mask)
        new = kept.shape[1]
        self.mask = torch.cat([self.mask[:, :-new], self.mask[:, -new:] * kept], dim=1)
        self._padded = True
        self._prefilled = None

    @property
    def attends(self) -> bool:
        """Whether some change of this stream is to attention itself."""
        return self._acting is not None and self._acting.attends

    def at_work(self) -> AbstractContextManager[None]:
        """Let the changes of this stream act on what is computed inside."""
        return nullcontext() if self._acting is None else self._acting.at_work()

    def _append(self, tokens: Tensor, mask: Tensor, counted: int, keep: int) -> Tensor:
        self._take(tokens, mask, counted)
        return self._read(tokens.shape[1], counted, keep)

    def _take(self, tokens: Tensor, mask: Tensor, counted: int) -> None:
        self.ids = torch.cat([self.ids, tokens.to(self.ids.device)], dim=1)
        self.mask = torch.cat([self.mask, mask.to(self.mask)], dim=1)
        self._padded = self._padded or counted < mask.numel()
        self._prefilled = None

    def _share(self, new: int) -> Share:
        positions = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -new:]
        return Share(
            self.ids[:, -new:], positions, self.mask, self._padded, self._cache, self._acting
        )

    def _read(self, new: int, counted: int, keep: int = 1) -> Tensor:
        read = self._share(self.ids.shape[1] if self._cache is None else new)
        self.forwards += 1
        self.tokens += counted
        with self.at_work():
            return _hf.tail_logits(
                self.model,
                read.ids,
                attention_mask=read.mask,
                position_ids=read.positions,
                keep=keep,
                cache=read.cache,
                accepted=self._accepted,
            )
