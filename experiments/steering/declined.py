"""Declining where the sources conflict: refusal-region editing behind a gate, as risk and coverage.

A gate held from the prompt on gives, case by case, either the plain answer or the edited one. So
two runs and the gate's scores tell every threshold's risk (share of wrong answers among those
given) and coverage (share of questions that are answered).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

import conflictkit as ck
from conflictkit.atlas.invented import invented_name
from conflictkit.atlas.passages import statement_of
from conflictkit.atlas.templates import RELATIONS, UNKNOWN, fill
from conflictkit.controller import Controller
from conflictkit.detectors.probe import LayerProbe
from conflictkit.evaluation.metrics.source import judge
from conflictkit.mechanics.reading import along
from conflictkit.mechanics.steering import fit_refusal
from conflictkit.policy import Policy
from conflictkit.types import Case

PAIRS = 50
ALPHAS = (0.1, 0.25, 0.5, 0.75, 1.0)
SHARE = 0.5
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
SIZES = {"bare": 100, "assertive": 100, "hedged": 100, "agreement": 300}


def strangers(count: int) -> list[Case]:
    """Questions about invented subjects beside a passage about another one: Atlas declines."""
    rng, found = random.Random(0), []
    for number in range(count):
        relation = rng.choice(list(RELATIONS))
        names = [invented_name(rng, RELATIONS[relation].kind) for _ in range(2)]
        question = fill(RELATIONS[relation].questions[0], names[0])
        passage = statement_of(rng, relation, names[1], names[1], "bare")
        found.append(
            Case(
                id=f"stranger-{number}", question=question, contexts=(passage,), source="atlas",
                split="train", relation=relation, subject=names[0], state="irrelevant",
                context_kind="irrelevant", context_answers=(), memory_answers=(UNKNOWN,),
                gold_answers=(UNKNOWN,),
            )
        )  # fmt: skip
    return found


def declined(bench: Any) -> dict[str, Any]:
    """Risk and coverage under gates on the probe of heads and on JSD at the prompt's end, and at
    random."""
    seed = bench.seed
    known = [one for one in ck.atlas.cases("train", "agreement", screened=seed.facts)]
    answerable = random.Random(0).sample(known, PAIRS)
    fitted = fit_refusal(seed.model, answerable, strangers(PAIRS), share=SHARE)
    held = seed.drawn("validation", dict.fromkeys(SIZES, 20))
    rule: Any = fitted.policy.controller.rule
    tried = {f"refusal-{alpha:g}": Policy(Controller(type(rule)(alpha, "all", rule.directions)))
             for alpha in ALPHAS}  # fmt: skip
    run = bench.answered("decline-tune", held, tried)
    share = {label: _declines(run, label) for label in tried}
    label = max(share, key=lambda one: share[one])
    cases = seed.drawn("test", SIZES)
    run = bench.answered("decline-test", cases, {label: tried[label]}, ["plain"])
    said = {(one.case, one.method): one.answer for one in run.results}
    scores = seed.diverged(cases).double().numpy()
    probe = LayerProbe.load(bench.probe())
    read = along(seed.model, cases, {probe.layer: probe.weights}, first=True)[probe.layer]
    right = np.array([judge(one, said[one.id, "plain"]).gold for one in cases])
    silent = np.array([_is_silent(said[one.id, label]) for one in cases])
    still = np.array([judge(one, said[one.id, label]).gold for one in cases])
    return {
        "validation": share,
        "setting": label,
        "cases": len(cases),
        "declines when on": float(silent.mean()),
        "declines plainly": _declines(run, "plain"),
        "curves": {
            "probe": _curve(read.double().numpy(), right, silent, still),
            "jsd": _curve(scores, right, silent, still),
            "random": _curve(np.random.default_rng(0).random(len(cases)), right, silent, still),
        },
    }


def _curve(scores: Any, right: Any, silent: Any, still: Any) -> list[dict[str, float]]:
    """Risk where the gate is open on the highest scores, for falling shares of closed gates."""
    order, found = np.argsort(-scores), []
    for closed in COVERAGES:
        opened = np.zeros(len(scores), bool)
        opened[order[: round((1 - closed) * len(scores))]] = True
        given = ~(opened & silent)
        good = np.where(opened, still, right)[given]
        found.append({
            "gate closed": closed,
            "coverage": float(given.mean()),
            "risk": float(1 - good.mean()) if given.any() else 0.0,
        })  # fmt: skip
    return found


def _is_silent(answer: str) -> bool:
    return answer.strip().lower().startswith(UNKNOWN)


def _declines(run: Any, label: str) -> float:
    mine = [_is_silent(one.answer) for one in run.results if one.method == label]
    return sum(mine) / len(mine)
