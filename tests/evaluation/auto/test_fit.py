"""What a fit finds in made-up answers, what it refuses, and a fit of Atlas."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import conflictkit as ck
from conflictkit.errors import InvalidParameterError, PolicyError, ResumeError, UnknownNameError
from conflictkit.evaluation import auto
from conflictkit.evaluation.logistic import Line
from conflictkit.interventions.contrast.auto import Auto
from conflictkit.policy import ModelTie, Policy
from tests.evaluation.auto.made import PLANTED, SIGNALS, WEIGHTS, answered
from tests.evaluation.runner.conftest import case

TIE = ModelTie("made up", "0" * 64)


def rule_of(fitted: auto.Fitted) -> Auto:
    rule = fitted.policy.controller.rule
    assert isinstance(rule, Auto)
    return rule


def test_a_fit_finds_what_was_planted() -> None:
    made = answered(3000)
    fitted = auto.learn(made, TIE, reaches=(1.0,))
    rule = rule_of(fitted)
    for name, value in PLANTED.items():
        assert getattr(rule, name) / fitted.sharpness == pytest.approx(value, abs=0.4)
    assert fitted.auroc_low < fitted.auroc < fitted.auroc_high
    assert fitted.auroc > 0.85
    assert fitted.judged["correction"] < fitted.cases["correction"]
    assert sum(fitted.cases.values()) == len(made.states)
    assert fitted.plain == pytest.approx(
        {"correction": 1, "resistance": 0, "agreement": 1, "minimum": 0, "harmonic": 0}
    )
    assert fitted.chosen["minimum"] > 0.75


def test_what_is_reported_is_what_the_rule_does() -> None:
    """Simulated by the rule's own tau, with the line of all cases instead of those held out."""
    made = answered(3000)
    fitted = auto.learn(made, TIE, reaches=(1.0, 1.5))
    rule = rule_of(fitted)
    per = np.array([getattr(rule, name) for name in SIGNALS])
    tau = rule.reach / (1 + np.exp(-rule.bias - made.signals @ per))
    nearest = np.abs(tau[:, None] - np.array(WEIGHTS)).argmin(1)
    right = made.right[np.arange(len(tau)), nearest]
    for state in fitted.cases:
        assert fitted.chosen[state] == pytest.approx(right[made.states == state].mean(), abs=0.03)


def test_sharpness_scales_the_shifted_line() -> None:
    line = Line(0.25, np.arange(7.0), np.ones(7))
    rule = auto._rule(line, 4.0, -0.5, 1.5)
    assert (rule.bias, rule.reach) == (-1.0, 1.5)
    assert [getattr(rule, name) for name in SIGNALS] == [4.0 * n for n in range(7)]


@pytest.mark.slow
def test_agreement_is_kept() -> None:
    made = answered(3000, agreement_needs=0.5)
    free = auto.learn(answered(3000), TIE)
    bound = auto.learn(made, TIE)
    assert bound.chosen["agreement"] >= bound.plain["agreement"] - auto.ALLOWED
    assert bound.chosen["minimum"] < free.chosen["minimum"]
    # Where any judgement costs agreement nothing is done.
    off = auto.learn(answered(3000, agreement_needs=1.0), TIE)
    assert off.chosen["agreement"] >= 0.99


@pytest.mark.slow
def test_the_same_answers_give_the_same_fit() -> None:
    assert auto.learn(answered(400), TIE) == auto.learn(answered(400), TIE)
    assert auto.learn(answered(400), TIE) != auto.learn(answered(400), TIE, seed=1)


def test_a_fit_is_json_and_its_policy_a_policy(tmp_path: Path) -> None:
    fitted = auto.learn(answered(400), TIE)
    told = json.loads(json.dumps(fitted.to_dict(), allow_nan=False))
    assert Policy.from_dict(told["policy"]) == fitted.policy
    fitted.policy.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json") == fitted.policy


@pytest.mark.parametrize("state", ["correction", "resistance"])
def test_too_few_cases_are_named(state: str) -> None:
    made = answered(400)
    mine = np.flatnonzero(made.differ & (made.states == state))
    differ = made.differ.copy()
    differ[mine[19:]] = False
    with pytest.raises(InvalidParameterError, match=f"20 cases of {state} whose .* are 19"):
        auto.learn(dataclasses.replace(made, differ=differ), TIE)
    subjects = made.subjects.copy()
    subjects[mine] = mine % 4
    with pytest.raises(InvalidParameterError, match=f"at least 5 subjects with cases of {state}"):
        auto.learn(dataclasses.replace(made, subjects=subjects), TIE)


def test_without_doing_nothing_there_may_be_no_setting() -> None:
    made = answered(400, agreement_needs=1.0)
    with pytest.raises(InvalidParameterError, match="1 must be among the reaches"):
        auto.learn(made, TIE, reaches=(0.5,))


def some(count: int) -> list[Any]:
    """Cases of correction and resistance, and one of everything that a fit leaves aside."""
    states = ("correction", "resistance")
    return [
        *(case(n, state=states[n % 2], subject=f"s{n}") for n in range(count)),
        case(1000, state="recall", contexts=(), context_answers=()),
        case(1001, state="unscreened"),
        case(1002, gold_answers=()),
    ]


def test_what_is_wrong_with_a_request(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="20 cases of correction, and there are 19"):
        auto.fit(model, some(38))
    with pytest.raises(InvalidParameterError, match="does not take temperature="):
        auto.fit(model, some(60), temperature=1.0)
    with pytest.raises(InvalidParameterError, match="parameter 'reach' is -1"):
        auto.fit(model, some(60), reaches=(1, -1))
    with pytest.raises(UnknownNameError, match="unknown match"):
        auto.fit(model, some(60), match="exakt")


def test_doing_nothing_is_always_a_choice(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(auto, "evaluate", lambda *args, **options: None)
    monkeypatch.setattr(auto, "read", lambda run, match: None)
    monkeypatch.setattr(auto, "learn", lambda made, tie, **options: seen.update(options))
    auto.fit(model, some(60), reaches=(1.5, 0.75))
    assert seen["reaches"] == [0.75, 1.0, 1.5]


def test_signals_are_those_of_the_first_disagreement() -> None:
    def token(differ: float, value: float) -> dict[str, Any]:
        return {"scores": {"differ": differ, **dict.fromkeys(SIGNALS, value)}}

    told = {
        "c0": [token(0.0, 1.0), token(1.0, 2.0), token(1.0, 3.0)],
        "c1": [token(0.0, 1.0), token(0.0, 4.0)],
        "c2": [],
    }
    # In no order, as a run that went on may hold them; only the weight of 1 tells signals.
    reach = {"b": 3.0, "a": 2.0, "c": 0.0}
    said = {"a": "no", "b": "red", "c": "blue"}
    made = auto.read(
        SimpleNamespace(  # pyright: ignore[reportArgumentType]
            cases=[case(n, gold_answers=("blue",)) for n in range(3)],
            info={
                "methods": list(reach),
                "policies": {name: {"params": {"reach": value}} for name, value in reach.items()},
            },
            results=[
                SimpleNamespace(
                    case=id, method=name, answer=said[name],
                    tokens=tokens if name == "a" else [token(1.0, 9.0)],
                )
                for name in reach
                for id, tokens in told.items()
            ],
        )
    )  # fmt: skip
    assert made.weights == (0.0, 1.0, 1.5)
    assert made.right.tolist() == [[True, False, False]] * 3
    assert made.differ.tolist() == [True, False, False]
    assert made.signals.tolist() == [[2.0] * 7, [0.0] * 7, [0.0] * 7]


@pytest.mark.slow
def test_a_fit_of_a_model(model: Any, tmp_path: Path) -> None:
    """Answers of noise: what counts is that signals, weights and answers are the model's own."""
    cases, told = some(80), []
    options: dict[str, Any] = {"max_new_tokens": 2, "reaches": (1.5,)}
    folder = tmp_path / "answers"
    fitted = auto.fit(model, cases, answers=folder, progress=told.append, **options)
    assert told[-1].done == 1
    assert sum(fitted.cases.values()) == 80
    assert fitted.policy.model == ModelTie(model.name, model.fingerprint)
    assert fitted.reach in (1.0, 1.5)

    run = ck.evaluation.load_run(folder)
    made = auto.read(run)
    assert made.weights == (*(n / 10 for n in range(11)), 1.5)
    by_method = {(one.case, one.method): one for one in run.results}
    first = run.cases[0]
    answers = model.ask_batch([first.question], [first.contexts], "plain", max_new_tokens=2)
    assert by_method[first.id, "auto?reach=2"].answer == answers[0].text.strip()
    place = list(dict.fromkeys(one.case for one in run.results)).index(first.id)
    traced = model.ask(first.question, first.contexts, method="auto?bias=50", max_new_tokens=2)
    tokens = [token for token in traced.trace.tokens if token.kind != "end"]
    at = next((token.scores for token in tokens if token.scores["differ"]), None)
    assert made.differ[place] == (at is not None)
    if at is not None:
        wanted = [at[name] for name in SIGNALS]
        np.testing.assert_allclose(made.signals[place], wanted, rtol=2e-3)

    # Finished answers are not asked for again; other ones are refused.
    assert auto.fit(model, cases, answers=folder, **options) == fitted
    with pytest.raises(ResumeError):
        auto.fit(model, cases, answers=folder, max_new_tokens=3, reaches=(1.5,))


@pytest.mark.slow
def test_a_fit_of_atlas_beats_plain_on_other_cases(tmp_path: Path) -> None:
    model = ck.load("atlas")
    cases = [
        one
        for state, count in (("correction", 60), ("resistance", 60), ("agreement", 15))
        for one in ck.atlas.cases("validation", state)[:count]
    ]
    fitted = auto.fit(model, cases, max_new_tokens=12, batch_size=64)
    assert fitted.auroc > 0.6
    assert fitted.chosen["minimum"] >= fitted.plain["minimum"]
    path = tmp_path / "policy.json"
    fitted.policy.save(path)
    answer = model.ask(cases[0].question, cases[0].contexts, policy=path)
    assert answer.method == "auto"
    broken = json.loads(path.read_text())
    broken["model"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(broken))
    with pytest.raises(PolicyError, match="was made for the model"):
        model.ask(cases[0].question, policy=path)
