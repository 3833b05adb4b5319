"""A gate, a strength and a marker in every form, against their definitions in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from torch import Tensor

import conflictkit as ck
from conflictkit import methods
from tests.contract.test_matrix import (
    FORMS,
    NAMES,
    N,
    as_text,
    by_brute_force,
    in_form,
    logits,
    prompts,
)

ALPHA, STRENGTH, THRESHOLD = 2.0, 0.75, 0.25


def divergence(p: Tensor, q: Tensor) -> float:
    middle = (p.exp() + q.exp()) / 2
    return float(sum((one.exp() * (one - middle.log())).sum() for one in (p, q)) / 2)


@cache
def marker(name: str) -> int:
    """What the first row writes first."""
    return by_brute_force(name, "plain")[0][0]


@cache
def gated(name: str) -> tuple[list[list[int]], list[bool]]:
    """The answers, and whether the gate was open at each step behind the marker."""
    answers, decisions = [], []
    for row in prompts(name):
        said: list[int] = []
        while len(said) < N and 1 not in said:
            context, memory = (
                logits(name, (*row[stream], *said))[0].double().log_softmax(-1)
                for stream in ("context", "memory")
            )
            strength = 0.0
            if marker(name) in said:
                decisions.append(divergence(context, memory) > THRESHOLD)
                strength = STRENGTH * decisions[-1]
            weights = (1 + strength * ALPHA, -strength * ALPHA)
            said.append(int((weights[0] * context + weights[1] * memory).argmax()))
        answers.append(said)
    return answers, decisions


def controller(name: str, **parts: Any) -> ck.Controller:
    given = {"strength": STRENGTH, "start_after": (marker(name),)} | parts
    return ck.Controller(methods.build("cad", alpha=ALPHA), **given)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_every_form_writes_what_the_definitions_write(name: str, form: str) -> None:
    wanted, _ = gated(name)
    made = in_form(form, name, controller(name, when=f"jsd > {THRESHOLD}"))
    assert made == ([as_text(ids) for ids in wanted] if form == "pipeline" else wanted)


@pytest.mark.parametrize(
    "without",
    [{"when": None}, {"strength": 0.1}, {"start_after": None}],
    ids=lambda part: [*part][0],
)
def test_every_part_of_it_shows_in_some_of_these_answers(without: dict[str, Any]) -> None:
    names = ("llama", "gpt2")
    for name in names:
        assert set(gated(name)[1]) == {True, False}
    parts = {"when": f"jsd > {THRESHOLD}"} | without
    made = [in_form("decode", name, controller(name, **parts)) for name in names]
    assert made != [gated(name)[0] for name in names]
    assert [gated(name)[0] for name in names] != [by_brute_force(name, "plain") for name in names]
