"""Probes of heads: fitted on the train split, layer chosen on validation, measured on test."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from seed import Seed

from conflictkit import anatomy
from conflictkit.detectors.probe import HEADS, LayerProbe
from conflictkit.mechanics.probing import even_odds
from conflictkit.mechanics.reading import along, weigh
from conflictkit.scoring import Row, Scorer
from conflictkit.types import Case

ASKED = ("probe", "first", "text", "jsd", "jsd_first", "named", "weights", "online")
"""The largest along memory's answer, and at the prompt's end; a classifier of the text; JSD in both
ways; whether the passage has memory's answer in it, letter by letter; the probe without its
correction; and the largest along the plain answer while it is written."""


def diverged(seed: Seed, cases: Sequence[Case]) -> dict[str, list[float]]:
    """JSD of the streams along memory's answer: `max` and `first`."""
    scorer = Scorer(seed.model, scores=["jsd"])
    rows = [Row(one.question, one.contexts, one.memory_answers[0]) for one in cases]
    told: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda row: sum(map(len, rows[row].contexts)))
    for start in range(0, len(order), 32):
        several = order[start : start + 32]
        for row, score in zip(several, scorer.score([rows[one] for one in several]), strict=True):
            told[row] = score.scores["jsd"]
    return {name: [one[name] for one in told] for name in ("max", "first")}


def named(cases: Sequence[Case]) -> list[float]:
    """1 where memory's answer is nowhere in the passages."""
    return [
        float(not any(one.memory_answers[0] in passage for passage in one.contexts))
        for one in cases
    ]


def retold(cases: Sequence[Case], times: int = 3) -> list[Case]:
    """The cases, and every conflict again, giving other objects of its relation: neither its own
    nor memory's."""
    draw = random.Random(0)
    known: dict[str, set[str]] = {}
    for one in cases:
        known.setdefault(one.relation, set()).update(one.memory_answers + one.context_answers)
    found = list(cases)
    for one in cases:
        if one.state == "agreement":
            continue
        word = re.compile(rf"(?<!\w){re.escape(one.context_answers[0])}(?!\w)")
        others = sorted(known[one.relation] - {*one.context_answers, *one.memory_answers})
        for said in draw.sample(others, min(times, len(others))):
            told = tuple(word.sub(lambda _, own=said: own, text) for text in one.contexts)
            found.append(
                replace(one, id=f"{one.id}-{said}", contexts=told, context_answers=(said,))
            )
    return found


def online(seed: Seed, probe: LayerProbe, cases: Sequence[Case]) -> list[float]:
    """The largest probability that a gate asked at every token of the plain answer sees."""
    told = [0.0] * len(cases)
    order = sorted(range(len(cases)), key=lambda row: sum(map(len, cases[row].contexts)))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        answers = seed.model.ask_batch(
            [cases[row].question for row in rows], [cases[row].contexts for row in rows], "plain",
            when="probe > 0.5", probe=probe, max_new_tokens=16,
        )  # fmt: skip
        for row, answer in zip(rows, answers, strict=True):
            told[row] = max(token.scores["probe"] for token in answer.trace.tokens)
    return told


def measured(
    seed: Seed,
    splits: Sequence[Any],
    text: Any,
    area: Callable[..., float],
    areas: Callable[..., list[dict[str, float]]],
) -> tuple[dict[str, Any], LayerProbe]:
    """All figures, and the probe."""
    train, held, test = splits
    learnt = retold(train.cases)
    weights = weigh(seed.model, learnt)
    said = along(seed.model, held.cases, weights)
    validation = {layer: area(own, held.labels) for layer, own in said.items()}
    layer = max(validation, key=lambda one: validation[one])
    bias = even_odds(said[layer], held.labels)
    told = along(seed.model, test.cases, weights)
    first = along(seed.model, test.cases, {layer: weights[layer]}, first=True)[layer]
    jsd = diverged(seed, test.cases)
    body = anatomy.find(seed.model.model)
    gains = weights[layer][: (len(body.layers) - layer) * body.heads]
    alone = along(seed.model, test.cases, {layer: gains})[layer]
    probe = LayerProbe(
        "conflict", HEADS, layer, weights[layer], bias, seed.name, seed.model.fingerprint
    )
    seen = torch.tensor(online(seed, probe, test.cases))
    scores = (
        told[layer], first, text, jsd["max"], jsd["first"], named(test.cases), alone, seen.tolist()
    )  # fmt: skip
    cells = areas(test.labels, test.subjects, *scores)
    figures = {
        "layer": layer,
        "validation": validation,
        "curve": {one: area(own, test.labels) for one, own in told.items()},
        "accuracy": float((((told[layer] + bias) > 0) == test.labels).double().mean()),
        "fires": {
            side: float((seen[test.labels == (side == "conflict")] > 0.5).double().mean())
            for side in ("conflict", "agreement")
        },
        "test": dict(zip(ASKED, cells, strict=True)),
        "transfer": moved(seed, learnt, test, layer, area),
    }
    return figures, replace(probe, about={"test": cells[0]})


def moved(
    seed: Seed, learnt: Sequence[Case], test: Any, layer: int, area: Callable[..., float]
) -> Any:
    """A relation left out of training: AUROC on it."""
    found = {}
    for relation in sorted({one.relation for one in test.cases}):
        rest = [one for one in learnt if one.relation != relation]
        there = [row for row, one in enumerate(test.cases) if one.relation == relation]
        if len(learnt) - len(rest) < 40 or len(there) < 40:
            continue
        weights = weigh(seed.model, rest, layers=[layer])
        said = along(seed.model, [test.cases[row] for row in there], weights)[layer]
        auroc = area(said, test.labels[torch.tensor(there)])
        found[relation] = {"auroc": auroc, "n": len(there)}
    return found


def says(seeds: dict[str, Any], asked: float) -> list[str]:
    """What the numbers say."""
    rows = [one["heads"] for one in seeds.values()]

    def cells(name: str) -> str:
        several = [one["test"][name] for one in rows]
        return "; ".join(f"{x['auroc']:.3f} ({x['low']:.3f} to {x['high']:.3f})" for x in several)

    def above(name: str) -> int:
        return sum(one["test"][name]["minus_low"] > 0 for one in rows)

    reach = sum(one["test"]["probe"]["auroc"] >= asked for one in rows)
    froms = ", ".join(str(one["layer"]) for one in rows)
    return [
        f"- **Heads, weighed and corrected** (from layer {froms} on, chosen on validation), "
        f"against memory's next token, the largest along memory's answer: AUROC {cells('probe')}. "
        f"At least {asked}: "
        f"{reach} of {len(rows)} seeds. Accuracy at even odds "
        + ", ".join(f"{one['accuracy']:.3f}" for one in rows)
        + ".",
        f"- The same at the prompt's last position alone: {cells('first')}. Along the answer, with "
        f"a weight for each head and no correction: {cells('weights')}.",
        f"- While the plain answer is written, the largest value at its tokens: {cells('online')}. "
        "Above even odds at some token: "
        + "; ".join(
            f"{100 * one['fires']['conflict']:.0f} % of conflicts, "
            f"{100 * one['fires']['agreement']:.0f} % of agreements"
            for one in rows
        )
        + ".",
        f"- Beside it, with the interval of the paired difference above zero: a classifier of the "
        f"text ({cells('text')}) on {above('text')} seeds, JSD along memory's answer "
        f"({cells('jsd')}) on {above('jsd')}, JSD at the first token ({cells('jsd_first')}) on "
        f"{above('jsd_first')}.",
        f"- Looking for memory's answer in the passage, letter by letter: {cells('named')}. Here "
        "the passage always has the words of one of the answers; elsewhere it need not.",
        "- A relation left out of training, AUROC on it: "
        + "; ".join(
            ", ".join(f"{name} {one['auroc']:.2f}" for name, one in row["transfer"].items())
            for row in rows
        )
        + ".",
    ]
