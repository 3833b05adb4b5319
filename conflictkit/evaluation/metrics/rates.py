"""The metrics that are quotients of sums over cases, and those made of several of them.

Every entry of `TERMS` gives one case's numerator and denominator under one method, or None where
the case does not count. The metric is the quotient of the sums, so that resampling subjects only
needs sums (`intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from conflictkit.calibration import CONFLICTING
from conflictkit.evaluation.metrics import guards, text
from conflictkit.evaluation.metrics.source import Verdict, disagree, judge
from conflictkit.evaluation.record import Result
from conflictkit.states import GUARDS, STATES
from conflictkit.types import Case

Terms = tuple[float, float] | None


def memorisation_ratio(memory: float, context: float) -> float:
    """`f_m / (f_m + f_c)`, 0 to 1: answers from memory among those from either source.

    Longpre et al. 2021, ConflictQA (Xie et al. 2024), CK-PLUG, SpARE. NaN without any.

    Args:
        memory: number of answers that give an answer of memory.
        context: number of answers that give an answer of the context.

    >>> memorisation_ratio(3, 1)
    0.75
    """
    return memory / (memory + context) if memory + context else math.nan


def harmonic_mean(shares: Sequence[float]) -> float:
    """`n / sum(1 / x)`; 0 if one of them is 0.

    >>> round(harmonic_mean([1.0, 1.0, 0.5, 0.5]), 4), harmonic_mean([1.0, 0.0])
    (0.6667, 0.0)
    """
    if min(shares) <= 0:
        return 0.0
    return len(shares) / sum(1 / share for share in shares)


def choice_of(result: Result) -> str | None:
    """The most probable of the answers to choose from, the first of equal ones; None: there are
    none, or the method rules all of them out."""
    best = max(result.choices, key=lambda choice: result.choices[choice], default=None)
    return None if best is None or result.choices[best] == -math.inf else best


@dataclass(frozen=True, slots=True)
class Seen:
    """One case under one method, with what every metric needs of it.

    Attributes:
        case, result: the two records.
        verdict: what the answer gives.
        conflict: whether context and memory say different things there.
        plain: the baseline's result of the same case, if there is one.
    """

    case: Case
    result: Result
    verdict: Verdict
    conflict: bool
    plain: Result | None

    @classmethod
    def of(cls, case: Case, result: Result, plain: Result | None, match: str) -> Seen:
        """Judge an answer."""
        conflict = case.state in CONFLICTING and disagree(case)
        return cls(case, result, judge(case, result.answer, match=match), conflict, plain)

    @property
    def short(self) -> bool:
        """Whether there is a true answer to compare with, and no long text to be quoted."""
        return bool(self.case.gold_answers) and self.case.state not in GUARDS


def _gold_in(state: str) -> Callable[[Seen], Terms]:
    def terms(seen: Seen) -> Terms:
        if seen.case.state != state or not seen.case.gold_answers:
            return None
        return float(seen.verdict.right), 1.0

    return terms


def _among_conflicts(says: Callable[[Verdict], bool]) -> Callable[[Seen], Terms]:
    return lambda seen: (float(says(seen.verdict)), 1.0) if seen.conflict else None


def _memorisation(seen: Seen) -> Terms:
    if not seen.conflict:
        return None
    return float(seen.verdict.memory), float(seen.verdict.memory + seen.verdict.context)


def _controllability(seen: Seen) -> Terms:
    if not seen.conflict or seen.case.state != "resistance":
        return None
    return float(seen.verdict.context), 1.0


def _robustness(seen: Seen) -> Terms:
    if seen.case.state != "irrelevant" or not seen.case.memory_answers:
        return None
    return float(seen.verdict.memory), 1.0


def _exact_match(seen: Seen) -> Terms:
    if not seen.short:
        return None
    return float(text.exact_match(seen.result.answer, seen.case.gold_answers)), 1.0


def _token_f1(seen: Seen) -> Terms:
    if not seen.short:
        return None
    return text.token_f1(seen.result.answer, seen.case.gold_answers), 1.0


def _choice(seen: Seen) -> Terms:
    if not seen.result.choices or not seen.case.gold_answers:
        return None
    choice = choice_of(seen.result)
    if choice is None:  # nothing was chosen, and that is not right
        return 0.0, 1.0
    return float(text.exact_match(choice, seen.case.gold_answers, "atlas")), 1.0


def _per_answer(value: Callable[[Result], float]) -> Callable[[Seen], Terms]:
    return lambda seen: (float(value(seen.result)), 1.0)


TERMS: Mapping[str, Callable[[Seen], Terms]] = {
    **{state: _gold_in(state) for state in (*STATES, *GUARDS)},
    "context_rate": _among_conflicts(lambda verdict: verdict.source == "context"),
    "memory_rate": _among_conflicts(lambda verdict: verdict.source == "memory"),
    "other_rate": _among_conflicts(lambda verdict: verdict.source in ("other", "none")),
    "memorisation_ratio": _memorisation,
    "conr": _among_conflicts(lambda verdict: verdict.context),
    "parr": _among_conflicts(lambda verdict: verdict.memory),
    "controllability": _controllability,
    "robustness": _robustness,
    "exact_match": _exact_match,
    "token_f1": _token_f1,
    "choice_accuracy": _choice,
    "context_logprob_per_token": lambda seen: guards.logprob_per_token(seen.result),
    "length": _per_answer(lambda result: len(result.ids)),
    "repetition": _per_answer(lambda result: guards.repetition(result.ids)),
    "forwards_per_token": lambda seen: guards.forwards_per_token(seen.result),
    "context_tokens": _per_answer(lambda result: result.cost.context_tokens),
    "memory_tokens": _per_answer(lambda result: result.cost.memory_tokens),
    "seconds": _per_answer(lambda result: result.cost.seconds),
    "relative_seconds": lambda seen: guards.relative_seconds(seen.result, seen.plain),
    "cache_bytes": _per_answer(lambda result: result.cost.cache_bytes),
}
"""Metric -> one case's numerator and denominator."""

MINIMUM = ("correction", "resistance")
"""What `minimum` is the minimum of."""
HARMONIC = STATES
"""What `harmonic` is the mean of, those of them that the cases have."""
