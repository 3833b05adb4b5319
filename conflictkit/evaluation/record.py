"""What is kept of one case under one method: a line of a run's `rows.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isinf
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What one answer took. All but the seconds are what it would take by itself, so that they do
    not depend on how cases were batched.

    Attributes:
        forwards: forwards of the streams that the method reads, prefills included;
            one per stream and token chosen, the end token counted.
        context_tokens, memory_tokens: tokens read by each stream, padding not counted.
        seconds: time of those passes, of the rule and of the choice of tokens: a batch's time
            divided evenly among its answers, prompts that several methods share counted for each.
        cache_bytes: key-value cache of all streams at the end, beyond the context stream's.
    """

    forwards: float
    context_tokens: int
    memory_tokens: int
    seconds: float
    cache_bytes: int


@dataclass(frozen=True)
class Result:
    """One case under one method.

    Attributes:
        case: id of the case.
        method: label of the method, `name` or `name?parameter=value&...`.
        answer: its text, without surrounding white space.
        ids: its token ids, the end token not included.
        finish_reason: `eos`, `stop` or `length`.
        context_logprob: log-probability of the answer under the context stream alone, natural log,
            the sum over its tokens; None for a case without a context.
        choices: answer to choose from -> its log-probability under the method (sum over tokens),
            -inf if the method rules one of its tokens out; empty unless the case has choices.
        tokens: per answer token what a trace holds: `text, id, scores, context_weight,
            memory_weight, context_top, memory_top` (tops as `[text, probability]`).
        cost: what it took.
    """

    case: str
    method: str
    answer: str
    ids: tuple[int, ...]
    finish_reason: str
    context_logprob: float | None
    cost: Cost
    choices: Mapping[str, float] = field(default_factory=dict)
    tokens: Sequence[Mapping[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON, which has no -inf: there it is None."""
        choices = {name: None if isinf(value) else value for name, value in self.choices.items()}
        return {**vars(self), "ids": list(self.ids), "cost": asdict(self.cost), "choices": choices}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The result of a line written by `to_dict`."""
        cost = Cost(**data["cost"])
        choices = {
            name: -inf if value is None else value for name, value in data["choices"].items()
        }
        return cls(**{**data, "ids": tuple(data["ids"]), "cost": cost, "choices": choices})
