"""Probes of every layer: where a conflict shows before a word is written (Zhao et al. 2024).

>>> import conflictkit as ck
>>> from conflictkit.mechanics.probing import fit_probes
>>> model = ck.load("atlas")
>>> cases = [c for s in ("correction", "agreement") for c in ck.atlas.cases("train", s)[:60]]
>>> probed = fit_probes(model, cases, layers=[3, 5], strengths=(10.0,))
>>> [(score.kind, score.layer) for score in probed.scores]
[('residual', 3), ('residual', 5)]
>>> probed.probe.layer in (3, 5)
True

Subjects are split: a probe learns from some, and layer and penalty are chosen on others. Measure
what comes out on cases that it was never shown (`measure`).
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import root_scalar
from scipy.special import expit
from torch import Tensor

from conflictkit import anatomy
from conflictkit.calibration import CONFLICTING, QUIET
from conflictkit.detectors.probe import (
    HEADS,
    KINDS,
    OPTIMISERS,
    PENALTIES,
    TARGETS,
    LayerProbe,
    fit,
)
from conflictkit.errors import EmptyInputError, InvalidParameterError, unknown_name
from conflictkit.evaluation.logistic import numbered
from conflictkit.evaluation.metrics import detection, intervals, judge
from conflictkit.evaluation.runner import evaluate
from conflictkit.mechanics._runs import network
from conflictkit.mechanics.capture import capture, check_places
from conflictkit.mechanics.reading import along, weigh
from conflictkit.scoring.run import Progress
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
HELD = 0.25
"""Share of the subjects on which layer and penalty are chosen."""
FEWEST = 8
"""Cases of either kind that learning, and choosing, need."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class LayerScore:
    """How well a probe tells two kinds of cases apart, with 95 % intervals by subject.

    Attributes:
        kind, layer: what it reads.
        strength: of the penalty; None: as measured elsewhere, and of `heads`, which have none.
        auroc, auprc, accuracy: 0 to 1; accuracy at a probability of 0.5.
        auroc_low, auroc_high, auprc_low, auprc_high, accuracy_low, accuracy_high: their intervals;
            None where there is none.
        positives, negatives: cases.
        note: what an interval lacks.
    """

    kind: str
    layer: int
    strength: float | None
    auroc: float
    auroc_low: float | None
    auroc_high: float | None
    auprc: float
    auprc_low: float | None
    auprc_high: float | None
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    positives: int
    negatives: int
    note: str = ""


@dataclass(frozen=True)
class Probed:
    """Probes of several layers.

    Attributes:
        target: what they tell.
        scores: of every kind and layer at its best strength, on the subjects held out.
        probe: the best of them.
        dropped: why cases were left out -> how many.
    """

    target: str
    scores: tuple[LayerScore, ...]
    probe: LayerProbe
    dropped: Mapping[str, int]


def fit_probes(
    model: Model,
    cases: Sequence[Case],
    *,
    target: str = "conflict",
    kinds: Sequence[str] = ("residual",),
    layers: Sequence[int] | None = None,
    penalty: str = "l2",
    strengths: Sequence[float] = STRENGTHS,
    optimiser: str = "scikit-learn",
    keep: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Probed:
    """Fit a probe for every kind and layer, and take the best.

    Args:
        model: as `conflictkit.load` returns it.
        cases: for `conflict` those in which context and memory disagree (correction, resistance)
            and those in which they agree; for `source` those in which they disagree.
        target: `conflict`, or `source`: whether the plain answer follows the context (answers that
            give neither, or both, are left out).
        kinds, layers: what to read; layers None: all. `heads` (of that layer and all behind it)
            reads along memory's answer, and its largest value is the case's; see `reading.weigh`.
        penalty, strengths, optimiser: as in `conflictkit.detectors.probe.fit`; the strength is
            chosen for each layer. `heads` have none of them.
        keep: folder for activations and answers: the same call then goes on where it was cut
            short, but for `heads`, which are read anew. None: nothing is kept.
        seed: of the split, of the paper's optimiser and of the intervals.
        progress: called while cases are read.
        options: `chat`, `template`, `truncate`, `max_new_tokens`, as in `Model.ask`.

    Raises:
        UnknownNameError, InvalidParameterError: a target, kind, layer or penalty.
        EmptyInputError: too few cases of a kind.
        ConflictKitError: what capturing and answering raise.
    """
    asked = {"target": [target], "kind": kinds, "penalty": [penalty], "optimiser": [optimiser]}
    known = {
        "target": TARGETS,
        "kind": (*KINDS, HEADS),
        "penalty": PENALTIES,
        "optimiser": OPTIMISERS,
    }
    for what, name in ((what, name) for what, names in asked.items() for name in names):
        if name not in known[what]:
            raise unknown_name(f"{what} of a probe", str(name), known[what])
    if not strengths:
        raise InvalidParameterError("name at least one strength")
    if HEADS in kinds and target != "conflict":
        raise InvalidParameterError("heads tell of a conflict, not of the source: leave them out")
    plain = [kind for kind in kinds if kind != HEADS]
    given = (penalty, tuple(strengths), optimiser)
    if not plain and given != (PENALTIES[0], STRENGTHS, OPTIMISERS[0]):
        raise InvalidParameterError(
            "penalty, strengths and optimiser are of linear probes: heads have none of them"
        )
    if layers is not None and plain:  # before the long part
        check_places(plain, layers, anatomy.find(network(model)))
    with ExitStack() as stack:
        folder = Path(keep or stack.enter_context(tempfile.TemporaryDirectory()))
        chosen, labels, dropped = labelled(model, cases, target, folder, options, progress)
        wording = {k: v for k, v in options.items() if k in ("chat", "template", "truncate")}
        found: list[tuple[LayerProbe, LayerScore]] = []
        if plain:
            kept = capture(
                model, chosen, folder / "activations", kinds=plain, layers=layers,
                progress=progress, **wording,
            )  # fmt: skip
            rows = kept.places()[0].tolist()
            split = _split([chosen[row] for row in rows], labels[rows], seed)
            for kind in kept.kinds:
                for layer in kept.layers:
                    found.append(_layer(
                        model, (target, kind, layer), kept.values(kind, layer), split,
                        (penalty, strengths, optimiser, seed),
                    ))  # fmt: skip
        if HEADS in kinds:
            several, unread = _heads(model, (chosen, labels, layers), seed, progress, wording)
            found += several
            dropped |= {"not read along memory's answer": unread} if unread else {}
    best = max(found, key=lambda one: one[1].auroc)
    return Probed(target, tuple(score for _, score in found), best[0], dropped)


def labelled(
    model: Model,
    cases: Sequence[Case],
    target: str,
    folder: Path,
    options: Mapping[str, Any],
    progress: Callable[[Progress], None] | None = None,
) -> tuple[list[Case], Tensor, dict[str, int]]:
    """The cases that a target can be learned from, `[cases]` bool labels, and what was left out."""
    if target == "conflict":
        chosen = [one for one in cases if one.state in (*CONFLICTING, *QUIET)]
        labels = torch.tensor([one.state in CONFLICTING for one in chosen])
        left = len(cases) - len(chosen)
        return chosen, labels, {"neither conflict nor agreement": left} if left else {}
    asked = [one for one in cases if one.state in CONFLICTING]
    dropped = {"no conflict": len(cases) - len(asked)}
    if not asked:
        raise EmptyInputError("no case has a context that contradicts memory")
    run = evaluate(model, asked, ["plain"], folder / "answers", progress=progress, **options)
    said = {one.case: one.answer for one in run.results}
    sources = [judge(one, said[one.id]).source if one.id in said else "none" for one in asked]
    pairs = [
        (one, source == "context")
        for one, source in zip(asked, sources, strict=True)
        if source in ("context", "memory")
    ]
    dropped["neither source, or both"] = len(asked) - len(pairs)
    labels = torch.tensor([label for _, label in pairs], dtype=torch.bool)
    return [one for one, _ in pairs], labels, {k: v for k, v in dropped.items() if v}


def measure(
    probe: LayerProbe, values: Tensor, labels: Tensor, subjects: Sequence[str], seed: int = 0
) -> LayerScore:
    """How well a probe does on activations that it was not fitted on.

    Args:
        probe: what is measured.
        values: `[rows, width]`; of `heads` `[rows]` in nats, as `reading.along` returns them.
        labels: `[rows]` bool, of both kinds.
        subjects: of every row.
        seed: of the resamples.
    """
    said = (values + probe.bias).sigmoid() if probe.kind == HEADS else probe(values)
    return _scored((probe.kind, probe.layer, None), said, labels, subjects, seed)


def _layer(
    model: Model,
    what: tuple[str, str, int],
    values: Tensor,
    split: tuple[Tensor, Tensor, Sequence[str]],
    how: tuple[str, Sequence[float], str, int],
) -> tuple[LayerProbe, LayerScore]:
    """A layer's probe at its best strength, and how it does on the subjects held out."""
    (target, kind, layer), (labels, held, subjects) = what, split
    penalty, strengths, optimiser, seed = how
    theirs = [one for one, out in zip(subjects, held.tolist(), strict=True) if out]
    found: list[tuple[float, float, Tensor, float]] = []
    for strength in strengths:
        weights, bias = fit(
            values[~held], labels[~held], penalty=penalty, strength=strength,
            optimiser=optimiser, seed=seed,
        )  # fmt: skip
        area = _auroc((values[held] @ weights + bias).numpy(), labels[held].numpy())
        found.append((area, strength, weights, bias))
    _, strength, weights, bias = max(found, key=lambda one: one[0])
    probe = LayerProbe(target, kind, layer, weights, bias, model.name, model.fingerprint)
    score = _scored((kind, layer, strength), probe(values[held]), labels[held], theirs, seed)
    about = {
        "penalty": penalty, "optimiser": optimiser, "seed": seed,
        "rows": int((~held).sum()), "validation": asdict(score),
    }  # fmt: skip
    return replace(probe, about=about), score


def _auroc(scores: Any, labels: Any) -> float:
    subjects = np.zeros(len(scores), np.int64)
    scored = detection.Scored(scores.astype(float), labels.astype(bool), subjects)
    return float(detection.ranked(scored, np.ones((1, 1)))[0][0])


def _scored(
    what: tuple[str, int, float | None],
    said: Tensor,
    labels: Tensor,
    subjects: Sequence[str],
    seed: int,
) -> LayerScore:
    whose = numbered(subjects)
    every = int(whose.max()) + 1
    weights = intervals.draw_subjects(every, _RESAMPLES, np.random.default_rng(seed))
    right = labels.numpy().astype(bool)
    told = detection.measure(detection.Scored(said.double().numpy(), right, whose), ">", weights)
    hit = ((said >= 0.5) == labels).double().numpy()
    sums = np.bincount(whose, hit, every), np.bincount(whose, minlength=every)
    shares = (weights @ sums[0]) / (weights @ sums[1])
    low, high, _ = intervals.percentiles(shares[:, None], np.array([float(every)]))
    names = ("auroc", "auroc_low", "auroc_high", "auprc", "auprc_low", "auprc_high")
    kind, layer, strength = what
    return LayerScore(
        kind=kind, layer=layer, strength=strength, **{name: told[name] for name in names},
        accuracy=float(hit.mean()), accuracy_low=float(low[0]), accuracy_high=float(high[0]),
        positives=told["n_conflict"], negatives=told["n_agreement"], note=told["note"],
    )  # fmt: skip


def _heads(
    model: Model,
    what: tuple[Sequence[Case], Tensor, Sequence[int] | None],
    seed: int,
    progress: Callable[[Progress], None] | None,
    wording: Mapping[str, Any],
) -> tuple[list[tuple[LayerProbe, LayerScore]], int]:
    """Probes of heads from every layer on, and how they do on the subjects held out; and how many
    of the cases cannot be read along memory's answer."""
    cases, labels, layers = what
    _, held, subjects = _split(cases, labels, seed)
    learnt = [case for case, out in zip(cases, held.tolist(), strict=True) if not out]
    weights = weigh(model, learnt, layers=layers, seed=seed, progress=progress, **wording)
    said = along(model, cases, weights, progress=progress, **wording)
    there = ~next(iter(said.values())).isnan()
    _check_sides(labels[there], held[there])
    chosen = there & held
    theirs = [one for one, out in zip(subjects, chosen.tolist(), strict=True) if out]
    found = []
    for layer, own in said.items():
        # The weights know the subjects that they were learnt from too well to set the bias by.
        bias = even_odds(own[chosen], labels[chosen])
        chance = (own[chosen] + bias).sigmoid()
        score = _scored((HEADS, layer, None), chance, labels[chosen], theirs, seed)
        about = {"seed": seed, "rows": int((~held).sum()), "validation": asdict(score)}
        probe = LayerProbe(
            "conflict", HEADS, layer, weights[layer], bias, model.name, model.fingerprint, about
        )
        found.append((probe, score))
    return found, int((~there).sum())


def even_odds(said: Tensor, labels: Tensor) -> float:
    """The bias at which `sigmoid(said + bias)` is on the mean what the labels are.

    Args:
        said: `[rows]` in nats.
        labels: `[rows]` bool, of both kinds.
    """
    scores, wanted = said.double().numpy(), float(labels.double().mean())
    found = root_scalar(
        lambda bias: expit(scores + bias).mean() - wanted, bracket=(-1e4, 1e4), method="brentq"
    )
    return float(found.root)


def _split(
    cases: Sequence[Case], labels: Tensor, seed: int
) -> tuple[Tensor, Tensor, Sequence[str]]:
    """Labels, whose subject is held out, and the subjects; both sides must have enough of both."""
    subjects = [one.subject or one.id for one in cases]
    held = _held(subjects, seed)
    _check_sides(labels, held)
    return labels, held, subjects


def _held(subjects: Sequence[str], seed: int) -> Tensor:
    """`[rows]` bool: whose subject is held out."""
    every = sorted(set(subjects))
    random.Random(seed).shuffle(every)
    out = set(every[: max(1, round(HELD * len(every)))])
    return torch.tensor([one in out for one in subjects])


def _check_sides(labels: Tensor, held: Tensor) -> None:
    for part, what in ((~held, "learn from"), (held, "choose on")):
        sides = [int((labels[part] == side).sum()) for side in (True, False)]
        if min(sides) < FEWEST:
            raise EmptyInputError(
                f"too few cases to {what}: {sides[0]} of one kind and {sides[1]} of the other, "
                f"{FEWEST} are needed"
            )
