"""Fitting `auto` to a model, from answers whose truth is known.

Every case is answered under `auto` with its judgement held at each of a few weights. As the rule
leaves the context alone before it judges, these are exactly the answers that a judgement rounded to
that weight would give, so that a setting can be tried on the cases without asking the model again.

A logistic regression then learns, from the signals at the first disagreement, whether the context
was right: yes in cases of correction and of quoting, no in cases of resistance and of irrelevant
context. How its
log odds g become weights is chosen by those answers: `tau = reach sigmoid(sharpness (g + shift))`
with the largest sum of the minimum (of correction and resistance) and the harmonic mean (of the
four states), among the settings that lose at most a point of agreement and of quoting against
`plain`. For that choice a case is judged by lines fitted without its subject, or it would
believe in more sharpness than fresh cases bear out.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conflictkit.calibration import OPTIONS
from conflictkit.controller import Controller
from conflictkit.errors import InvalidParameterError, unknown_name
from conflictkit.evaluation.folder import Run, check_folder
from conflictkit.evaluation.logistic import (
    FOLDS,
    Flags,
    Line,
    Numbers,
    held_out,
    numbered,
    regress,
)
from conflictkit.evaluation.metrics import intervals, text
from conflictkit.evaluation.metrics.detection import Scored, ranked
from conflictkit.evaluation.metrics.intervals import Array
from conflictkit.evaluation.metrics.rates import HARMONIC, MINIMUM, harmonic_mean
from conflictkit.evaluation.metrics.source import judge
from conflictkit.evaluation.runner import evaluate
from conflictkit.interventions.contrast.auto import SIGNALS, Auto
from conflictkit.policy import ModelTie, Policy
from conflictkit.scoring.run import Progress
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

FEWEST = 20
"""Cases of correction and of resistance whose streams disagree that a fit needs."""
REACHES = (1.0, 1.1, 1.25, 1.5, 2.0)
SHARPNESS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Nearest to nothing first: of equally good settings the first is taken. The last one trusts the
# context everywhere: to do nothing is always among the choices.
SHIFTS = (*sorted((n / 10 for n in range(-40, 41)), key=abs), 100.0)
ALLOWED = 0.01
"""Share of agreement and quoting that a setting may lose against `plain`."""
KEPT = ("agreement", "quoting")
_WEIGHTS = tuple(n / 10 for n in range(11))
_PLAIN = 1.0
RIGHT, WRONG = ("correction", "quoting"), ("resistance", "irrelevant")
"""States in which the context is to be trusted, and in which it is not."""
_USED = (*HARMONIC, "quoting")
_RESAMPLES = 2000
_DIGITS = 6


@dataclass(frozen=True)
class Fitted:
    """A policy and what it was made from.

    Attributes:
        policy: `auto` for this model.
        cases: state -> cases used.
        judged: state -> those of them whose streams disagree at some token.
        coefficients: signal -> change of the log odds per standard deviation, before `sharpness`.
        auroc, auroc_low, auroc_high: of judgements by lines fitted without the case's subject, the
            context being right or not; with a 95 % interval over subjects.
        sharpness, shift, reach: what was chosen.
        plain, chosen: state -> share of true answers of `plain` and of the setting chosen, by the
            same judgements on the fitting cases; also `minimum` and `harmonic`. The choice was
            made on them: measure on other cases.
    """

    policy: Policy
    cases: Mapping[str, int]
    judged: Mapping[str, int]
    coefficients: Mapping[str, float]
    auroc: float
    auroc_low: float
    auroc_high: float
    sharpness: float
    shift: float
    reach: float
    plain: Mapping[str, float]
    chosen: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {**asdict(self), "policy": self.policy.to_dict()}


@dataclass(frozen=True)
class Answered:
    """Cases as a fit needs them.

    Attributes:
        states: `[cases]` names.
        subjects: `[cases]` numbers.
        signals: `[cases, 7]` at the first disagreement, in the order of `SIGNALS`; 0 without one.
        differ: `[cases]`, whether there is one.
        weights: weights that a judgement was held at, ascending.
        right: `[cases, weights]`, whether the answer was true.
    """

    states: np.ndarray[Any, np.dtype[np.str_]]
    subjects: Numbers
    signals: Array
    differ: Flags
    weights: tuple[float, ...]
    right: Flags


def fit(
    model: Model,
    cases: Sequence[Case],
    *,
    reaches: Sequence[float] = REACHES,
    seed: int = 0,
    batch_size: int = 32,
    match: str = text.DEFAULT,
    answers: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Fitted:
    """Fit `auto` to a model.

    Args:
        model: who is asked, and whom the policy will be tied to.
        cases: of known state; others than the four states and quoting, and those without a
            context or a true answer, are left aside.
        reaches: weights of a context surely right to choose from; 1 is always one of them.
        seed: of the folds and of the interval.
        batch_size: most cases in a batch.
        match: how an answer is recognised, a name in
            `conflictkit.evaluation.metrics.text.MATCHES`.
        answers: folder to keep the answers in, so that a fit that was cut short goes on; None: a
            temporary one.
        progress: called before the first batch and after each.
        options: `max_new_tokens`, `stop`, `chat`, `template` and `truncate`, as in `Model.ask`.

    Raises:
        InvalidParameterError: too few cases, or an option or reach that does not do.
        ConflictKitError: as `conflictkit.evaluation.evaluate`.
    """
    for name in options:
        if name not in OPTIONS:
            raise InvalidParameterError(
                f"a fit does not take {name}=: it judges greedy answers, with {', '.join(OPTIONS)}"
            )
    used = check_request(cases, reaches=reaches, match=match, answers=answers)
    reaches = sorted({_PLAIN, *(Auto(reach=reach).reach for reach in reaches)})
    with contextlib.ExitStack() as stack:
        if answers is None:
            answers = stack.enter_context(tempfile.TemporaryDirectory(prefix="conflictkit-"))
        run = evaluate(
            model, used, _held(reaches), answers, spec="fit-auto", seed=seed,
            batch_size=batch_size, top=1, match=match, progress=progress, **options,
        )  # fmt: skip
        answered = read(run, match)
    return learn(answered, ModelTie(model.name, model.fingerprint), reaches=reaches, seed=seed)


def check_request(
    cases: Sequence[Case],
    *,
    reaches: Sequence[float] = REACHES,
    match: str = text.DEFAULT,
    answers: str | os.PathLike[str] | None = None,
) -> list[Case]:
    """What can be found wrong with a request before a model is loaded; arguments as `fit`.

    Returns:
        The cases that a fit reads.

    Raises:
        ConflictKitError: as `fit`.
    """
    if match not in text.MATCHES:
        raise unknown_name("match", match, text.MATCHES)
    for reach in reaches:
        Auto(reach=reach)
    if answers is not None:
        check_folder(answers)
    used = [
        case
        for case in cases
        if case.state in _USED and case.gold_answers and (case.contexts or case.prompt is not None)
    ]
    for state in MINIMUM:
        _enough(sum(case.state == state for case in used), FEWEST, f"cases of {state}")
    return used


def read(run: Run, match: str = text.DEFAULT) -> Answered:
    """What a finished run of `auto` with nothing but a reach says, 2 (a weight of 1) among them."""
    cases = {case.id: case for case in run.cases}
    at = held_weights(run)
    labels = sorted(at, key=lambda label: at[label])
    plain = next(label for label in labels if at[label] == _PLAIN)
    right: dict[str, list[bool]] = {}
    seen: dict[str, list[float] | None] = {}
    for result in run.results:
        row = right.setdefault(result.case, [False] * len(labels))
        verdict = judge(cases[result.case], result.answer, match=match)
        row[labels.index(result.method)] = verdict.gold
        if result.method == plain:
            scores = (token["scores"] for token in result.tokens)
            first = next((one for one in scores if one["differ"]), None)
            seen[result.case] = None if first is None else [first[name] for name in SIGNALS]
    ids = list(right)
    nothing = [0.0] * len(SIGNALS)
    return Answered(
        states=np.array([cases[id].state for id in ids]),
        subjects=numbered([cases[id].subject or (id,) for id in ids]),
        signals=np.array([seen[id] or nothing for id in ids]),
        differ=np.array([seen[id] is not None for id in ids]),
        weights=tuple(at[label] for label in labels),
        right=np.array([right[id] for id in ids]),
    )


def held_weights(run: Run) -> dict[str, float]:
    """Method of such a run -> the weight of the context that its judgement was held at."""
    policies = run.info["policies"]
    return {label: policies[label]["params"]["reach"] / 2 for label in run.info["methods"]}


def learn(
    answered: Answered,
    tie: ModelTie | None,
    *,
    reaches: Sequence[float] = REACHES,
    seed: int = 0,
) -> Fitted:
    """The policy that follows from the answers; deterministic.

    Raises:
        InvalidParameterError: too few cases of correction or resistance whose streams disagree, or
            of too few subjects.
    """
    yes, no = np.isin(answered.states, RIGHT), np.isin(answered.states, WRONG)
    known = answered.differ & (yes | no)
    for state in MINIMUM:
        mine = answered.differ & (answered.states == state)
        what = f"cases of {state} whose streams disagree at some token"
        _enough(int(mine.sum()), FEWEST, what)
        _enough(len(set(answered.subjects[mine].tolist())), FOLDS, f"subjects with {what}")
    judged = held_out(answered.signals, yes, known, answered.subjects, seed)
    line = regress(answered.signals[known], yes[known])
    setting, shares = _choose(answered, judged, reaches)
    sharpness, shift, reach = setting
    area, low, high = auroc(judged[known], yes[known], answered.subjects[known], seed)
    return Fitted(
        policy=Policy(Controller(_rule(line, *setting)), tie),
        cases=_counts(answered.states),
        judged=_counts(answered.states[answered.differ]),
        coefficients=dict(zip(SIGNALS, (line.weights * line.spread).tolist(), strict=True)),
        auroc=area,
        auroc_low=low,
        auroc_high=high,
        sharpness=sharpness,
        shift=shift,
        reach=reach,
        plain=_shares(answered, answered.right[:, answered.weights.index(_PLAIN)]),
        chosen=shares,
    )


def _held(reaches: Sequence[float]) -> list[str]:
    """`auto` whose every judgement is the same weight, tenths and reaches: sigmoid(0) is a half."""
    others = [weight for weight in reaches if weight not in _WEIGHTS]
    # A sweep is decoded in one batch.
    return ["auto?reach=0:2:0.2", *(f"auto?reach={2 * weight!r}" for weight in others)]


def _rule(line: Line, sharpness: float, shift: float, reach: float) -> Auto:
    values = {"bias": sharpness * (line.bias + shift)}
    values |= zip(SIGNALS, (sharpness * line.weights).tolist(), strict=True)
    return Auto(**{name: float(f"{v:.{_DIGITS}g}") for name, v in values.items()}, reach=reach)


def _choose(
    answered: Answered, judged: Array, reaches: Sequence[float]
) -> tuple[tuple[float, float, float], dict[str, float]]:
    """Sharpness, shift and reach, and what they give."""
    weights = np.array(answered.weights)
    middles = (weights[1:] + weights[:-1]) / 2
    rows = np.arange(len(judged))
    before = _shares(answered, answered.right[:, answered.weights.index(_PLAIN)])
    best: tuple[float, tuple[float, float, float], dict[str, float]] | None = None
    for sharpness, shift, reach in itertools.product(SHARPNESS, SHIFTS, sorted(reaches)):
        tau = reach / (1 + np.exp(-np.clip(sharpness * (judged + shift), -500, 500)))
        place = np.searchsorted(middles, tau)
        shares = _shares(answered, answered.right[rows, place])
        if any(shares[name] < before[name] - ALLOWED for name in KEPT if name in shares):
            continue
        value = (shares["minimum"] + shares["harmonic"]) / 2
        if best is None or value > best[0] + 1e-12:
            best = value, (sharpness, shift, reach), shares
    if best is None:
        raise InvalidParameterError(
            "no setting keeps agreement within a point of plain's: 1 must be among the reaches"
        )
    return best[1], best[2]


def _shares(answered: Answered, right: Flags) -> dict[str, float]:
    """State -> share of true answers, and what they come to."""
    found = {
        state: float(right[answered.states == state].mean())
        for state in _USED
        if (answered.states == state).any()
    }
    found["minimum"] = min(found[state] for state in MINIMUM)
    found["harmonic"] = harmonic_mean([found[state] for state in HARMONIC if state in found])
    return found


def auroc(judged: Array, right: Flags, subjects: Numbers, seed: int) -> tuple[float, float, float]:
    """AUROC with its interval by subject."""
    groups = numbered(subjects.tolist())
    count = int(groups.max()) + 1
    drawn = intervals.draw_subjects(count, _RESAMPLES, np.random.default_rng(seed))
    areas, _ = ranked(Scored(judged, right, groups), np.vstack([np.ones((1, count)), drawn]))
    lows, highs, _ = intervals.percentiles(areas[1:, None], np.array([count]))
    return float(areas[0]), float(lows[0]), float(highs[0])


def _counts(states: np.ndarray[Any, np.dtype[np.str_]]) -> dict[str, int]:
    return {state: n for state in _USED if (n := int((states == state).sum()))}


def _enough(there: int, fewest: int, what: str) -> None:
    if there < fewest:
        raise InvalidParameterError(
            f"a fit of auto needs at least {fewest} {what}, and there are {there}"
        )
