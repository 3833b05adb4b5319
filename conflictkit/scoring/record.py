"""What comes out for a row: the numbers, and the layout of the file that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conflictkit.gates import Gate

SUMMARIES = ("max", "min", "mean", "first")


@dataclass(frozen=True)
class ScoredToken:
    """One token of an answer.

    Attributes:
        text: what it adds to the answer.
        id: its token id.
        context_logprob, memory_logprob: its log-probability with and without the context (natural
            log), given the tokens before it.
        scores: name -> value of every detector at this token.
    """

    text: str
    id: int
    context_logprob: float
    memory_logprob: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Score:
    """How context and memory stand to one answer.

    The end token is no part of the answer, and is not scored.

    Attributes:
        question, contexts: what was asked, and the passages.
        answer: the answer's text, without surrounding white space.
        method: the method that wrote it; None: it was given.
        finish_reason: `eos`, `stop` or `length` of an answer that was written; None: it was given.
        truncated: whether the end of the passages was cut off to fit the window.
        names: the scores taken.
        tokens: the answer token by token.
        gate: what decides whether the answer is flagged; None: nothing does.
        start: how many of the first tokens stand before control starts (`start_after`), its marker
            included; the gate is not asked at them.
    """

    question: str
    contexts: tuple[str, ...]
    answer: str
    method: str | None
    finish_reason: str | None
    truncated: bool
    names: tuple[str, ...]
    tokens: tuple[ScoredToken, ...]
    gate: Gate | None = None
    start: int = 0

    @property
    def flag(self) -> bool | None:
        """Whether the gate opens at some token under control (at the first of them, if it is asked
        at the prompt); None without a gate or without a token.

        False where control never starts. Calibration looks at the same tokens.
        """
        if self.gate is None or not self.tokens:
            return None
        name = self.gate.detector.replace("-", "_")
        asked = self.tokens[self.start :]
        if self.gate.at == "prompt":
            asked = asked[:1]
        return any(self.gate.fires(token.scores[name]) for token in asked)

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """Score name -> `max`, `min` and `mean` over the answer's tokens and the value at its
        `first`; None where the answer has no token."""
        return {
            name: _summary([token.scores[name] for token in self.tokens]) for name in self.names
        }

    @property
    def context_logprob(self) -> float | None:
        """Log-probability of the answer with the context (natural log); None: it has no token."""
        return sum(token.context_logprob for token in self.tokens) if self.tokens else None

    @property
    def memory_logprob(self) -> float | None:
        """Log-probability of the answer without the context; None: it has no token."""
        return sum(token.memory_logprob for token in self.tokens) if self.tokens else None

    def to_dict(self, tokens: bool = True) -> dict[str, Any]:
        """The result as strict JSON data; numbers that are not finite become None.

        Args:
            tokens: False leaves the single tokens out.
        """
        data: dict[str, Any] = {
            "answer": self.answer,
            "method": self.method,
            "finish_reason": self.finish_reason,
            "truncated": self.truncated,
            "flag": self.flag,
            "context_logprob": _finite(self.context_logprob),
            "memory_logprob": _finite(self.memory_logprob),
            "scores": {
                name: {what: _finite(value) for what, value in summary.items()}
                for name, summary in self.scores.items()
            },
        }
        if tokens:
            data["tokens"] = [
                {
                    "text": token.text,
                    "id": token.id,
                    "context_logprob": _finite(token.context_logprob),
                    "memory_logprob": _finite(token.memory_logprob),
                    "scores": {name: _finite(value) for name, value in token.scores.items()},
                }
                for token in self.tokens
            ]
        return data


def schema(names: Sequence[str], *, tokens: bool, whole_ids: bool) -> Any:
    """The Arrow schema of `line`, `id` and what `Score.to_dict` returns.

    Args:
        names: the scores taken.
        tokens: whether the single tokens are there.
        whole_ids: whether every id is a whole number of 64 bits; else they are text.
    """
    import pyarrow as pa

    number = pa.float64()
    summary = pa.struct([(what, number) for what in SUMMARIES])
    columns = [
        ("line", pa.int64()),
        ("id", pa.int64() if whole_ids else pa.string()),
        ("answer", pa.string()),
        ("method", pa.string()),
        ("finish_reason", pa.string()),
        ("truncated", pa.bool_()),
        ("flag", pa.bool_()),
        ("context_logprob", number),
        ("memory_logprob", number),
        ("scores", pa.struct([(name, summary) for name in names])),
    ]
    if tokens:
        token = [("text", pa.string()), ("id", pa.int64())]
        token += [("context_logprob", number), ("memory_logprob", number)]
        token += [("scores", pa.struct([(name, number) for name in names]))]
        columns.append(("tokens", pa.list_(pa.struct(token))))
    return pa.schema(columns)


def _summary(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return dict.fromkeys(SUMMARIES)
    # fsum: the mean must not depend on how the batch was formed.
    mean = math.fsum(values) / len(values)
    return {"max": max(values), "min": min(values), "mean": mean, "first": values[0]}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
