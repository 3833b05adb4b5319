"""The processor written down plainly: it reads every row from its beginning, alone, uncached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tests.engine.reference import next_logits


class Exact(LogitsProcessor):
    """Knows the prompts, and folds the rule over each answer from its own first token.

    Args:
        width: length of the padded prompts.
    """

    def __init__(
        self, model: Any, rule: Any, prompts: Sequence[dict[str, list[int]]], width: int
    ) -> None:
        self.model, self.rule, self.prompts, self.width = model, rule, prompts, width
        self._states: dict[tuple[int, ...], Any] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        repeats = len(input_ids) // len(self.prompts)
        rows = []
        for row, ids in enumerate(input_ids.tolist()):
            number, said = row // repeats, ids[self.width :]
            memory = self._read("memory", number, said)
            state = self._state(number, said)
            rows.append(self.rule.combine(scores[row : row + 1].float(), memory, state).logits)
        return torch.cat(rows)

    def _state(self, number: int, said: list[int]) -> Any:
        """What the rule remembers before the token after `said`: a fold from the first."""
        if not said:
            return None
        key = (number, *said)
        if key not in self._states:
            context, memory = (
                self._read(name, number, said[:-1]) for name in ("context", "memory")
            )
            before = self._state(number, said[:-1])
            self._states[key] = self.rule.combine(context, memory, before).state
        return self._states[key]

    def _read(self, stream: str, number: int, said: list[int]) -> Tensor:
        return next_logits(self.model, [*self.prompts[number][stream], *said])


def padded(rows: Sequence[Sequence[int]], pad: int = 2) -> dict[str, Tensor]:
    """Left-padded `input_ids` and `attention_mask`."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
