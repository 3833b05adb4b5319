"""Which tokens a pass reads, and where in a row an edit acts.

A place is a token's index in its own row, padding not counted; -1 stands for padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from conflictkit import _hf
from conflictkit.errors import InvalidParameterError

Positions = str | tuple[int, int] | None
"""None: everywhere; one of `WORDS`; or (start, stop)."""

WORDS = ("prompt", "last", "answer", "decoding")
"""The prompt; its last position; all behind it; the last position and all behind it, which are the
positions that predict the answer."""


@dataclass(frozen=True)
class Pass:
    """One forward of a model: which positions of each row it reads.

    Attributes:
        positions: `[batch, new]` places of the tokens read.
        seen: `[batch, total]` places of these and all tokens before them; None: nothing says more
            than `positions` do.
        total: how many columns those are, padding included.
    """

    positions: Tensor
    seen: Tensor | None = None
    total: int | Tensor = 0

    @classmethod
    def of(cls, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Pass | None:
        """From what a model's forward is called with; None if it says nothing of rows."""
        ids = named.get("input_ids", arguments[0] if arguments else None)
        ids = named.get("inputs_embeds") if ids is None else ids
        if not isinstance(ids, Tensor):
            return None
        batch, new = ids.shape[:2]
        mask, given = named.get("attention_mask"), named.get("position_ids")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            counted = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, -1)
            return cls(counted[:, -new:], counted, counted.shape[-1])
        cache = named.get("past_key_values")
        # A static cache counts on the device: asking for the number would wait for it.
        total = new + (0 if cache is None else _hf.seen_tokens(cache))
        if isinstance(given, Tensor) and given.shape[-1] == new:
            return cls(given.expand(batch, new), None, total)
        places = torch.arange(new, device=ids.device) + (total - new)
        return cls(places.expand(batch, new), None, total)

    def keys(self, count: int) -> Tensor:
        """`[batch, count]` places of the keys that an attention layer reads.

        Fewer than all tokens so far are the last of them (a sliding window's cache); where there
        are more, the rest is room that nothing has been written to (a static cache).
        """
        if self.seen is not None:
            missing = count - self.seen.shape[-1]
            if missing <= 0:
                return self.seen[:, -count:]
            return functional.pad(self.seen, (0, missing), value=-1)
        columns = torch.arange(count, device=self.positions.device)
        columns = columns + torch.clamp(torch.as_tensor(self.total) - count, min=0).to(columns)
        # The last token's column and place tell how much padding stands on the left.
        padding = self.total - 1 - self.positions[:, -1:]
        places = columns - padding
        return places.masked_fill((columns >= self.total) | (places < 0), -1)


def check_positions(positions: Any, lengths: Tensor | None) -> Positions:
    """`positions` as an edit may have them.

    Raises:
        InvalidParameterError: neither None, one of the words, nor (start, stop); or a word without
            the prompts' lengths.
    """
    if positions is None:
        return None
    if isinstance(positions, str) and positions in WORDS:
        if lengths is None:
            raise InvalidParameterError(
                f"positions='{positions}' needs prompt_lengths=, the tokens of each row's prompt"
            )
        return positions
    pair = tuple(positions) if isinstance(positions, list | tuple) else ()
    if len(pair) == 2 and all(type(one) is int and one >= 0 for one in pair) and pair[0] < pair[1]:
        return pair
    raise InvalidParameterError(
        f"positions must be None, {', '.join(map(repr, WORDS))} or (start, stop), not {positions!r}"
    )
