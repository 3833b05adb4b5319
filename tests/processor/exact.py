"""The processor written down plainly: it reads every row from its beginning, alone, uncached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tests.engine.reference import next_logits


class Exact(LogitsProcessor):
    """Knows the prompts; re-reads both streams at every step of the answer to fold the rule."""

    def __init__(
        self, model: Any, rule: Any, prompts: Sequence[dict[str, list[int]]], width: int
    ) -> None:
        self.model, self.rule, self.prompts, self.width = model, rule, prompts, width
        self._read: dict[tuple[int, ...], Tensor] = {}

    def _next(self, ids: Sequence[int]) -> Tensor:
        key = tuple(ids)
        if key not in self._read:
            self._read[key] = next_logits(self.model, key)
        return self._read[key]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        repeats = len(input_ids) // len(self.prompts)
        rows = []
        for row, ids in enumerate(input_ids.tolist()):
            prompt, said = self.prompts[row // repeats], ids[self.width :]
            state, controlled = None, scores
            for length in range(len(said) + 1):
                memory = self._next([*prompt["memory"], *said[:length]])
                if length < len(said):
                    context = self._next([*prompt["context"], *said[:length]])
                else:
                    context = scores[row : row + 1].float()
                combined = self.rule.combine(context, memory, state)
                state, controlled = combined.state, combined.logits
            rows.append(controlled)
        return torch.cat(rows)


def padded(rows: Sequence[Sequence[int]], pad: int = 2) -> dict[str, Tensor]:
    """Left-padded `input_ids` and `attention_mask`."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
