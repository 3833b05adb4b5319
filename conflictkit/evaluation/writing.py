"""From tokens and numbers to a result: texts, and figures short enough to keep by the million."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conflictkit.answers import before_stop
from conflictkit.evaluation.asking import Ready
from conflictkit.evaluation.record import Cost, Result
from conflictkit.evaluation.shared import Reading
from conflictkit.trace.decode import candidate_text, cut_at, token_kinds, token_texts
from conflictkit.types import Generation, TokenRecord

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

_DIGITS = 4


class Writer:
    """Writes results; remembers texts of answers and tokens, which come again and again.

    Args:
        model: whose tokens they are.
        stops: texts that end an answer.
        top: candidates of each stream to keep per token.
    """

    def __init__(self, model: Model, stops: Sequence[str], top: int) -> None:
        self._model, self._stops, self.top = model, stops, top
        self._candidates: dict[int, str] = {}

    def result(
        self,
        asked: Ready,
        label: str,
        answer: Generation,
        cost: Cost,
        readings: Sequence[Reading],
        choices: Mapping[str, float],
    ) -> Result:
        """The result of one case under one method."""
        tokenizer = self._model.tokenizer
        text = before_stop(self._model._decode(answer.ids), self._stops)
        kinds = token_kinds(tokenizer, answer.ids, len(answer.ids))
        texts, _ = cut_at(len(text), *token_texts(tokenizer, answer.ids, kinds))
        plain = None
        if "context" in asked.prompts:
            plain = math.fsum(one.logprobs["context"] for one in readings)
        return Result(
            case=asked.case.id,
            method=label,
            answer=text.strip(),
            ids=answer.ids,
            finish_reason=answer.finish_reason,
            context_logprob=None if plain is None else _short(plain, 6),
            choices={name: _short(value, 6) for name, value in choices.items()},
            tokens=[
                self._token(*one)
                for one in zip(texts, answer.ids, answer.records, readings, strict=False)
            ],
            cost=cost,
        )

    def _token(
        self, text: str, token: int, record: TokenRecord, reading: Reading
    ) -> dict[str, Any]:
        scores = {**reading.scores, **record.scores}
        return {
            "text": text,
            "id": token,
            "scores": {name: _short(value) for name, value in scores.items()},
            "context_weight": _short(record.context_weight),
            "memory_weight": _short(record.memory_weight),
            "context_top": self._top(reading.tops.get("context", ())),
            "memory_top": self._top(reading.tops.get("memory", ())),
        }

    def _top(self, candidates: Sequence[tuple[int, float]]) -> list[list[Any]]:
        return [[self._text(token), _short(probability)] for token, probability in candidates]

    def _text(self, token: int) -> str:
        if token not in self._candidates:
            self._candidates[token] = candidate_text(self._model.tokenizer, token)
        return self._candidates[token]


def _short(value: float, digits: int = _DIGITS) -> float:
    return float(f"{value:.{digits}g}")
