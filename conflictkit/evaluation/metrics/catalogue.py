"""The metrics by name, in the order in which tables show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Metric(NamedTuple):
    """What a metric is called and how it reads.

    Attributes:
        title: what tables call it.
        unit: `%`: the value is a share from 0 to 1, shown times 100; else the value's unit.
        better: `higher`, `lower`, or "" where neither is better by itself.
        explanation: what it measures, and over which cases.
    """

    title: str
    unit: str
    better: str
    explanation: str


_CONFLICTS = "correction and resistance cases whose context and memory say different things"

METRICS: Mapping[str, Metric] = {
    "correction": Metric(
        "Correction", "%", "higher", "true answers where the context is right and memory wrong"
    ),
    "resistance": Metric(
        "Resistance", "%", "higher", "true answers where the context is wrong and memory right"
    ),
    "agreement": Metric("Agreement", "%", "higher", "true answers where both are right"),
    "irrelevant": Metric(
        "Irrelevant context",
        "%",
        "higher",
        "true answers where the context does not answer the question; memory may be wrong there",
    ),
    "minimum": Metric("Minimum", "%", "higher", "the smaller one of correction and resistance"),
    "harmonic": Metric(
        "Harmonic mean",
        "%",
        "higher",
        "n / sum(1 / x) of correction, resistance, agreement and irrelevant context, those of "
        "them that the cases have",
    ),
    "context_rate": Metric(
        "From context", "%", "", f"answers that give the context's answer alone; {_CONFLICTS}"
    ),
    "memory_rate": Metric(
        "From memory", "%", "", f"answers that give memory's answer alone; {_CONFLICTS}"
    ),
    "other_rate": Metric(
        "Other", "%", "lower", f"answers that give neither, empty ones included; {_CONFLICTS}"
    ),
    "memorisation_ratio": Metric(
        "Memorisation ratio",
        "%",
        "",
        "m / (m + c), m the answers that give memory's answer, c those that give the context's "
        f"(Longpre et al. 2021, ConflictQA, CK-PLUG, SpARE); {_CONFLICTS}",
    ),
    "conr": Metric(
        "ConR",
        "%",
        "",
        f"answers that give the context's answer, with or without memory's (CK-PLUG); {_CONFLICTS}",
    ),
    "parr": Metric(
        "ParR",
        "%",
        "",
        f"answers that give memory's answer, with or without the context's (CK-PLUG); {_CONFLICTS}",
    ),
    "controllability": Metric(
        "Controllability",
        "%",
        "",
        "answers that give the context's answer where it is wrong and memory right (KAFT): the "
        "opposite of resistance",
    ),
    "robustness": Metric(
        "Robustness",
        "%",
        "higher",
        "answers that give memory's answer, right or wrong, where the context does not answer the "
        "question (KAFT)",
    ),
    "exact_match": Metric(
        "Exact match",
        "%",
        "higher",
        "answers equal to a true one after SQuAD's normalisation; all cases but the guards",
    ),
    "token_f1": Metric(
        "Token F1",
        "%",
        "higher",
        "F1 of the answer's words against the nearest true answer's, after SQuAD's normalisation; "
        "all cases but the guards",
    ),
    "choice_accuracy": Metric(
        "Multiple choice",
        "%",
        "higher",
        "cases whose most probable choice (sum of token log-probabilities) is a true answer",
    ),
    "recall": Metric(
        "Recall", "%", "higher", "true answers to questions without a context, method on"
    ),
    "reading": Metric(
        "Reading",
        "%",
        "higher",
        "true answers about what the model cannot know but the passage says",
    ),
    "quoting": Metric(
        "Quoting", "%", "higher", "long answers that repeat the asked one of several passages"
    ),
    "context_logprob_per_token": Metric(
        "Log-probability",
        "nats/token",
        "higher",
        "of the answer under the plain context stream: mean over its tokens, then over answers",
    ),
    "length": Metric("Length", "tokens", "", "tokens of an answer, the end token not counted"),
    "repetition": Metric(
        "Repetition",
        "%",
        "lower",
        "4-grams of tokens that the answer has said before (Welleck et al. 2020)",
    ),
    "forwards_per_token": Metric(
        "Forwards per token",
        "forwards/token",
        "lower",
        "forwards of its streams, prefills included, per token made, the end token included",
    ),
    "context_tokens": Metric(
        "Context stream", "tokens", "lower", "tokens that the context stream read per answer"
    ),
    "memory_tokens": Metric(
        "Memory stream", "tokens", "lower", "tokens that the memory stream read per answer"
    ),
    "seconds": Metric("Seconds", "s", "lower", "time of passes and rule per answer"),
    "relative_seconds": Metric(
        "Relative time", "x", "lower", "seconds divided by the baseline's for the same cases"
    ),
    "cache_bytes": Metric(
        "Extra cache", "bytes", "lower", "key-value cache beyond the context stream's, per answer"
    ),
}
"""Name -> what it is, in the order of tables."""
