"""What a method must not spoil besides its answers: fluency, length, repetition; and what it costs.

Each function gives one case's numerator and denominator of a metric, or None where the case does
not count; the metric is the quotient of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence

from conflictkit.evaluation.record import Result

NGRAM = 4


def repetition(ids: Sequence[int]) -> float:
    """Share of an answer's 4-grams of tokens that it has said before, 0 to 1.

    `1 - distinct 4-grams / 4-grams`; 0 for answers of fewer than five tokens. Welleck et al.,
    "Neural text generation with unlikelihood training", 2020 (seq-rep-4).

    >>> repetition([1, 2, 3, 4, 5, 6]), repetition([1, 2, 1, 2, 1, 2, 1])
    (0.0, 0.5)
    """
    grams = [tuple(ids[start : start + NGRAM]) for start in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def logprob_per_token(result: Result) -> tuple[float, float] | None:
    """Mean log-probability (nats) of an answer's tokens under the plain context stream."""
    if result.context_logprob is None or not result.ids:
        return None
    return result.context_logprob / len(result.ids), 1.0


def forwards_per_token(result: Result) -> tuple[float, float]:
    """Passes over the weights, and the tokens that they made, the end token included."""
    made = len(result.ids) + (result.finish_reason == "eos")
    return result.cost.forwards, float(made)


def relative_seconds(result: Result, plain: Result | None) -> tuple[float, float] | None:
    """Seconds of an answer, and of the baseline's answer to the same case."""
    if plain is None:
        return None
    return result.cost.seconds, plain.cost.seconds
