"""Which source an answer comes from: the context, memory, both, or neither.

>>> from conflictkit.evaluation.metrics.source import judge
>>> from conflictkit.types import Case
>>> case = Case("1", "test", "capital", "Poland", "What is the capital of Poland?",
...             ("The capital of Poland is London.",), "bare", ("Warsaw",), ("London",),
...             ("Warsaw",), "resistance")
>>> judge(case, "London.")
Verdict(context=True, memory=False, gold=False, source='context')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conflictkit.evaluation.metrics import text
from conflictkit.types import Case

SOURCES = ("context", "memory", "both", "other", "none")
"""What a verdict's source can be; `none` is an empty answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer gives.

    Attributes:
        context: an answer of the passages.
        memory: an answer of memory.
        gold: a true answer.
        source: `context`, `memory`, `both`, `other` (neither) or `none` (empty answer).
    """

    context: bool
    memory: bool
    gold: bool
    source: str

    @property
    def right(self) -> bool:
        """Whether a true answer is given."""
        return self.gold


def judge(case: Case, answer: str, *, match: str = text.DEFAULT) -> Verdict:
    """Tell an answer's source.

    With `atlas-default` an answer is given if its words follow each other in what was said. A
    mention inside a longer one of another answer does not count: who says `Papua New Guinea` has
    not said `Guinea`. The other matches look at each answer by itself, as published.

    Args:
        case: whose answers are looked for.
        answer: what was said.
        match: a name in `text.MATCHES`.

    Raises:
        UnknownNameError: no such match.
    """
    sides = (case.context_answers, case.memory_answers, case.gold_answers)
    if not answer.strip():
        return Verdict(False, False, False, "none")
    if match == text.DEFAULT:
        context, memory, gold = _mentioned(answer, sides)
    else:
        context, memory, gold = (
            any(text.matches(answer, target, match) for target in side) for side in sides
        )
    source = {
        (True, False): "context",
        (False, True): "memory",
        (True, True): "both",
        (False, False): "other",
    }[context, memory]
    return Verdict(context, memory, gold, source)


def _mentioned(answer: str, sides: Sequence[Sequence[str]]) -> list[bool]:
    """For each side whether one of its answers is mentioned, not merely inside a longer one."""
    said = text.words(answer)
    places = [[span for t in side for span in text.spans(said, text.words(t))] for side in sides]
    everywhere = {span for side in places for span in side}
    longest = {
        (start, end)
        for start, end in everywhere
        if not any(a <= start and end <= b and (a, b) != (start, end) for a, b in everywhere)
    }
    return [any(span in longest for span in side) for side in places]


def disagree(case: Case) -> bool:
    """Whether context and memory have an answer each and share none."""
    context = {text.words(target) for target in case.context_answers}
    memory = {text.words(target) for target in case.memory_answers}
    return bool(context) and bool(memory) and not context & memory
