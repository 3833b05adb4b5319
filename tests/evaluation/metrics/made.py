"""Cases and results written for the tests of the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conflictkit.evaluation.record import Cost, Result
from conflictkit.types import Case

MEMORY, CONTEXT = "Oslo", "Rome"


def case(id: str, state: str, subject: str | None = None, **fields: Any) -> Case:
    """A case of a state: memory says Oslo, the context Rome where they differ."""
    memory, context = (MEMORY,), (CONTEXT,)
    gold = context if state == "correction" else memory
    if state == "agreement":
        context = memory
    if state in ("irrelevant", "recall"):
        context = ()
    if state in ("reading", "quoting"):
        memory, gold = (), context
    given: dict[str, Any] = {
        "id": id,
        "split": "test",
        "relation": "capital",
        "subject": id if subject is None else subject,
        "question": "?",
        "contexts": () if state == "recall" else ("A passage.",),
        "context_kind": "bare",
        "memory_answers": memory,
        "context_answers": context,
        "gold_answers": gold,
        "state": state,
    }
    return Case(**given | fields)


def cost(**fields: Any) -> Cost:
    given: dict[str, Any] = {
        "forwards": 2.0,
        "context_tokens": 10,
        "memory_tokens": 0,
        "seconds": 0.5,
        "cache_bytes": 0,
    }
    return Cost(**given | fields)


def result(id: str, answer: str, method: str = "plain", **fields: Any) -> Result:
    given: dict[str, Any] = {
        "case": id,
        "method": method,
        "answer": answer,
        "ids": (1,),
        "finish_reason": "eos",
        "context_logprob": -0.5,
        "cost": cost(),
    }
    return Result(**given | fields)


def tokens(*scores: float, name: str = "jsd") -> Sequence[dict[str, Any]]:
    """What a trace holds of tokens with these scores."""
    return [{"scores": {name: score}} for score in scores]
