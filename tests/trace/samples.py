"""Traces made by hand, for tests that draw them."""

from __future__ import annotations

import math
from typing import Any

from conflictkit.trace import Candidate, TokenTrace, Trace


def top(*found: tuple[str, int, float]) -> tuple[Candidate, ...]:
    return tuple(Candidate(*one) for one in found)


def token(text: str, number: int, jsd: float | None, **given: Any) -> TokenTrace:
    """A token with nothing in its streams but what a test names."""
    scores = {} if jsd is None else {"confidence_gain": -0.25, "jsd": jsd}
    fields: dict[str, Any] = {"context_weight": 1.0, "memory_weight": 0.0} | given
    return TokenTrace(text, number, scores, **fields)


LONDON = token(
    " London",
    5,
    0.6123,
    context_weight=1.61,
    memory_weight=-0.61,
    context_top=top((" London", 5, 0.86), (" Warsaw", 6, 0.1)),
    memory_top=top((" Warsaw", 6, 0.93), (" London", 5, 0.004)),
)
STOP = token(".", 9, 0.0112, context_top=top((".", 9, 0.995)), memory_top=top((".", 9, 0.97)))
END = token("", 1, 0.0, kind="end", context_top=top(("<end>", 1, 1.0)))


def poland(**given: Any) -> Trace:
    """A trace where the method followed the context against memory."""
    fields: dict[str, Any] = {
        "question": "What is the capital of Poland?",
        "contexts": ("The capital of Poland is London.",),
        "method": "adacad",
        "params": {"threshold": 0.0},
        "answer": "London.",
        "tokens": (LONDON, STOP, END),
        "model": "atlas",
        "plain_answer": "Lodz.",
        "memory_answer": "Warsaw.",
    }
    return Trace(**fields | given)


HOSTILE = (
    "<script>alert(1)</script>",
    "</script>",
    "</style>",
    "\"><img src=x onerror='alert(1)'>",
    "-->",
    "&lt;b&gt;",
    " שלום",
    "\u202egnp.exe",
    "\ud800",
    "\x1b[2J\x07",
    "\x00",
    "\r\n",
    "javascript:alert(1)",
    "{{ 7 * 7 }} ${x} %s",
)


def hostile() -> Trace:
    """Everything that could break a page or a terminal, in every place that holds text."""
    tokens = tuple(
        TokenTrace(
            text,
            index,
            {text: 0.5, "jsd": (math.nan, math.inf, -math.inf, 0.4)[index % 4]},
            math.nan,
            -math.inf,
            top((text, index, math.nan)),
            top((text + "!", index + 1, 0.5)),
            kind=("text", "special")[index % 2],
            name=text,
        )
        for index, text in enumerate(HOSTILE)
    )
    everything = "".join(HOSTILE)
    return Trace(
        question=everything,
        contexts=(*HOSTILE, everything * 20),
        method=everything,
        params={everything: everything, "nan": math.nan},
        answer=everything,
        tokens=tokens,
        model=everything,
        plain_answer=everything,
        memory_answer=everything,
    )
