"""What a run records of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from conflictkit.passages import SourceLog
from conflictkit.types import Combined, Step, TokenRecord


class StepLog:
    """One step's numbers for all rows, moved to the host once."""

    def __init__(
        self,
        step: Step,
        combined: Combined,
        scores: Mapping[str, Tensor],
        top: int,
        compared: SourceLog | None = None,
    ) -> None:
        self._compared = compared
        self._scores = {name: values.tolist() for name, values in scores.items()}
        weights = (combined.context_weight, combined.memory_weight)
        # Weights per token stay where they are: one of them is wanted, not the vocabulary's.
        self._weights = [w[:, 0].tolist() if w.shape[-1] == 1 else w for w in weights]
        self._tops: dict[str, list[tuple[tuple[int, float], ...]]] = {}
        for name, logprobs in step.logprobs.items():
            best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
            rows = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
            self._tops[name] = [tuple(zip(ids, values, strict=True)) for ids, values in rows]

    def record(self, row: int, token: int) -> TokenRecord:
        """The record of `token` chosen in `row`."""
        context, memory = (
            float(weight[row, token]) if isinstance(weight, Tensor) else weight[row]
            for weight in self._weights
        )
        return TokenRecord(
            id=token,
            # In a batch of several methods a row has no score of another row's method.
            scores={
                name: values[row]
                for name, values in self._scores.items()
                if not math.isnan(values[row])
            },
            context_weight=context,
            memory_weight=memory,
            tops={name: rows[row] for name, rows in self._tops.items()},
            comparison=self._compared.of(row, token) if self._compared else None,
        )
