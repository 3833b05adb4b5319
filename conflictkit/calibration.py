"""Setting a gate's threshold from answers whose state is known.

An answer's score is the detector's largest value over its tokens (its smallest, where a low value
means conflict): an alarm at any token is an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conflictkit import detectors
from conflictkit.errors import InvalidParameterError
from conflictkit.gates import Gate
from conflictkit.policy import Calibration, ModelTie, Policy
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.answers import Answer
    from conflictkit.toolkit import Model

QUIET, CONFLICTING = ("agreement",), ("correction", "resistance")
"""States in which context and memory say the same, and in which they do not."""


def calibrate(
    model: Model,
    cases: Sequence[Case],
    policy: Policy,
    *,
    detector: str,
    false_alarm: float,
    at: str = "step",
    batch: int = 16,
    **options: Any,
) -> Policy:
    """`policy` with a gate that opens on at most a share `false_alarm` of the quiet cases.

    Answers are plain greedy ones. The threshold is the smallest score of a quiet case beyond which
    no more than that share of them lies.

    Args:
        model: the model that the policy will be tied to.
        cases: those of `QUIET` states set the threshold, those of `CONFLICTING` ones only show how
            much the gate detects; others are left aside.
        policy: rule, strength and marker to gate.
        detector: name of the detector; its own side of conflict decides between `>` and `<`.
        false_alarm: from 0 to 1.
        at: `step` or `prompt`, where only the first token counts.
        batch: cases per batch.
        options: of `Model.ask_batch` (`chat`, `template`, `max_new_tokens`, ...).

    Raises:
        UnknownNameError: no such detector.
        InvalidParameterError: a value out of range, or fewer quiet cases than the share needs.
    """
    if isinstance(false_alarm, bool) or not 0 < false_alarm < 1:
        raise InvalidParameterError(
            f"false_alarm must be a number between 0 and 1, not {false_alarm!r}"
        )
    sign = detectors.get(detector).sign
    Gate(detector, sign, 0.0, at=at)  # refuses a bad `at` before anything is read
    quiet = [case for case in cases if case.state in QUIET]
    conflicting = [case for case in cases if case.state in CONFLICTING]
    fewest = math.ceil(1 / false_alarm)
    if len(quiet) < fewest:
        raise InvalidParameterError(
            f"a false alarm rate of {false_alarm:g} needs at least {fewest} cases of agreement, "
            f"not {len(quiet)}"
        )
    scored = [
        _score(answer, detector, sign, at)
        for answer in _answers(model, [*quiet, *conflicting], detector, batch, options)
    ]
    negatives, positives = scored[: len(quiet)], scored[len(quiet) :]
    bound = threshold(negatives, sign, false_alarm)
    gate = Gate(detector, sign, bound, at=at)
    return Policy(
        replace(policy.controller, when=gate),
        ModelTie(model.name, model.fingerprint),
        Calibration(
            false_alarm,
            _share(gate, negatives),
            len(negatives),
            _share(gate, positives) if positives else None,
            len(positives),
        ),
    )


def threshold(scores: Sequence[float], sign: str, false_alarm: float) -> float:
    """The bound beyond which at most a share `false_alarm` of `scores` lies.

    >>> threshold([0.1, 0.2, 0.3, 0.4], ">", 0.25)
    0.3
    >>> threshold([0.1, 0.2, 0.3, 0.4], "<", 0.25)
    0.2
    """
    order = sorted(scores, reverse=sign == ">")
    return order[math.floor(false_alarm * len(order))]


def _answers(
    model: Model, cases: Sequence[Case], detector: str, batch: int, options: dict[str, Any]
) -> list[Answer]:
    made: list[Answer] = []
    for start in range(0, len(cases), batch):
        some = cases[start : start + batch]
        made += model.ask_batch(
            [case.question for case in some],
            [case.contexts for case in some],
            "plain",
            scores=(detector,),
            top=1,
            **options,
        )
    return made


def _score(answer: Answer, detector: str, sign: str, at: str) -> float:
    if answer.trace is None:
        raise InvalidParameterError("calibration reads the trace: leave trace=True")
    name = detector.replace("-", "_")
    values = [token.scores[name] for token in answer.trace.tokens]
    if at == "prompt":
        return values[0]
    return max(values) if sign == ">" else min(values)


def _share(gate: Gate, scores: Sequence[float]) -> float:
    import torch

    return float(gate.fires(torch.tensor(scores, dtype=torch.float64)).double().mean())
