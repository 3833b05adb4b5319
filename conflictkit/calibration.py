"""Setting a gate's threshold from answers whose state is known.

An answer's score is the detector's largest value over its tokens (its smallest, where a low value
means conflict): an alarm at any token is an alarm. The end token counts for nothing, nor does what
stands before the marker that control starts after.

The threshold is a split-conformal one: among n quiet answers and a fresh one, all equally likely to
come in any order, the fresh one is beyond the k-th most extreme with probability at most
k / (n + 1) (Vovk, Gammerman & Shafer, 2005, Algorithmic Learning in a Random World).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conflictkit import detectors
from conflictkit.controller import Controller
from conflictkit.errors import InvalidParameterError
from conflictkit.gates import Gate, reads_activations
from conflictkit.policy import Calibration, ModelTie, Policy
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.answers import Answer
    from conflictkit.toolkit import Model

OPTIONS = ("chat", "template", "truncate", "max_new_tokens", "stop")
"""What may be said about the answers beside the method."""
_ROUNDING = 1e-9
# 0.05 * 20 must not count as less than 1.

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
    """`policy` with a gate that opens on a fresh quiet case with probability `false_alarm` at most.

    Answers are plain greedy ones. Cases without a token that the gate would be asked at (the
    answer is empty, or never writes the marker) cannot raise an alarm.

    Args:
        model: the model that the policy will be tied to.
        cases: those of `QUIET` states set the threshold, those of `CONFLICTING` ones only show how
            much the gate detects; others are left aside.
        policy: rule, strength and marker to gate.
        detector: name of the detector; its own side of conflict decides between `>` and `<`.
        false_alarm: from 0 to 1.
        at: `step` or `prompt`, where only the first token counts.
        batch: cases per batch.
        options: of `Model.ask_batch`, those of `OPTIONS`.

    Raises:
        UnknownNameError: no such detector.
        InvalidParameterError: a value out of range, or fewer quiet cases than the share needs.
    """
    if type(false_alarm) not in (int, float) or not 0 < false_alarm < 1:
        raise InvalidParameterError(
            f"false_alarm must be a number between 0 and 1, not {false_alarm!r}"
        )
    for name in options:
        if name not in OPTIONS:
            raise InvalidParameterError(
                f"calibration does not take {name}=: it sets the gate, from plain greedy answers"
            )
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InvalidParameterError(f"batch must be a whole number of at least 1, not {batch!r}")
    if reads_activations(detector):
        raise InvalidParameterError(
            "a gate that reads activations is not calibrated: set it by hand, as in "
            "when='probe > 0.7', probe=FILE"
        )
    sign = detectors.get(detector).sign
    Gate(detector, sign, 0.0, at=at)  # refuses a bad `at` before anything is read
    quiet = [case for case in cases if case.state in QUIET]
    conflicting = [case for case in cases if case.state in CONFLICTING]
    fewest = math.ceil(1 / false_alarm - _ROUNDING) - 1
    if len(quiet) < fewest:
        raise InvalidParameterError(
            f"a false alarm rate of {false_alarm:g} needs at least {fewest} cases of agreement, "
            f"not {len(quiet)}"
        )
    control = policy.controller.bound(model.tokenizer)
    scored = [
        _score(answer, detector, sign, at, control)
        for answer in _answers(model, [*quiet, *conflicting], detector, batch, options)
    ]
    negatives, positives = scored[: len(quiet)], scored[len(quiet) :]
    bound = threshold(negatives, sign, false_alarm)
    if not math.isfinite(bound):
        raise InvalidParameterError(
            "too many answers to cases of agreement have no token that the gate would be asked at: "
            "they are empty, or never write the start_after marker"
        )
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
    """The bound beyond which a fresh score lies with probability `false_alarm` at most.

    >>> threshold([0.1, 0.2, 0.3, 0.4], ">", 0.2)
    0.4
    >>> threshold([0.1, 0.2, 0.3, 0.4], ">", 0.4)
    0.3
    >>> threshold([0.1, 0.2, 0.3, 0.4], "<", 0.4)
    0.2
    """
    order = sorted(scores, reverse=sign == ">")
    return order[math.floor(false_alarm * (len(order) + 1) + _ROUNDING) - 1]


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


def _score(answer: Answer, detector: str, sign: str, at: str, control: Controller) -> float:
    """The most alarming score that the gate would see; one that never alarms if there is none."""
    if answer.trace is None:
        raise InvalidParameterError("calibration reads the trace: leave trace=True")
    tokens = answer.trace.tokens
    start = control.uncontrolled([token.id for token in tokens])
    name = detector.replace("-", "_")
    values = [token.scores[name] for token in tokens[start:] if token.kind not in ("end", "stop")]
    if not values:
        return -math.inf if sign == ">" else math.inf
    if at == "prompt":
        return values[0]
    return max(values) if sign == ">" else min(values)


def _share(gate: Gate, scores: Sequence[float]) -> float:
    import torch

    return float(gate.fires(torch.tensor(scores, dtype=torch.float64)).double().mean())
