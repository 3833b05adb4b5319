"""Evaluations of gates on a probe: they say what `ask` says, and the record holds the probe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conflictkit.detectors.probe import LayerProbe
from conflictkit.errors import InvalidParameterError, ProbeError, ResumeError
from conflictkit.evaluation import evaluate
from conflictkit.gates import Gate
from conflictkit.methods import build
from conflictkit.policy import Policy
from conflictkit.types import Case
from tests.engine.reference import next_logits
from tests.evaluation.runner.conftest import case
from tests.probed import decisions, hooks, probe_of, score

GATES = ("probe > 0.5", "probe > 0.6 until 0.4", "probe < 0.5 at prompt")
FEW: dict[str, Any] = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def probe(model: Any) -> LayerProbe:
    prompt = model.prompts(case(0).question, case(0).contexts)["context"].ids
    return probe_of(model.model, "residual", 1, seed=2, prompt=prompt)


def test_an_evaluation_says_what_ask_says(
    model: Any, probe: LayerProbe, mixed: list[Case], tmp_path: Path
) -> None:
    policies = {f"gate{n}": Policy.of("cad?alpha=2", when=one) for n, one in enumerate(GATES)}
    policies["edit"] = Policy.of("ph3?heads=1.2", when=GATES[0])
    cases = mixed[:4] + mixed[-2:-1]
    run = evaluate(
        model, cases, "cad?alpha=2", tmp_path, policies=policies, probe=probe, batch_size=4, **FEW
    )
    assert hooks(model.model) == 0
    said = {(one.case, one.method): one for one in run.results}
    assert len(said) == 5 * len(cases)
    for one in cases[:4]:
        for label, policy in policies.items():
            result = said[one.id, label]
            asked = model.ask(one.question, one.contexts, policy=policy, probe=probe, **FEW)
            tokens = [token.id for token in asked.trace.tokens if token.kind != "end"]
            assert list(result.ids) == tokens
            assert result.cost.forwards == asked.stats.forwards
            assert result.cost.context_tokens == asked.stats.context_tokens
    texts = {label: [said[one.id, label].answer for one in cases] for label in run.info["methods"]}
    assert len({tuple(one) for one in texts.values()}) > 3


@pytest.mark.parametrize("gate", GATES)
def test_choices_are_weighed_as_the_gate_would_have_opened(
    model: Any, probe: LayerProbe, gate: str, tmp_path: Path
) -> None:
    cases = [
        case(0, choices=("red and more", "a gr", "7")),
        case(1, choices=("no", "the old bridge")),
        case(2, choices=("A", "B."), prompt="It is B. A or B? ", memory_prompt="A or B? "),
        case(3),
    ]
    policy = Policy.of("cad?alpha=2", when=gate)
    options = {"policies": {"gated": policy}, "probe": probe, "batch_size": 3}
    run = evaluate(model, cases, (), tmp_path, max_new_tokens=3, **options)
    met = set()
    for one in cases:
        (result,) = (result for result in run.results if result.case == one.id)
        assert list(result.choices) == list(one.choices)
        if one.prompt is not None:
            fixed = (one.prompt, one.memory_prompt)
            context, memory = (model.tokenizer(text)["input_ids"] for text in fixed)
        else:
            built = model.prompts(one.question, one.contexts)
            context, memory = built["context"].ids, built["memory"].ids
        for choice, told in result.choices.items():
            text = choice if one.prompt is not None else f" {choice}"
            ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            wanted, actives = weighed(model.model, (context, memory), probe, gate, ids)
            assert told == pytest.approx(wanted, abs=2e-3)
            met |= set(actives)
    assert met == {True, False}


def weighed(
    hf: Any, prompts: tuple[Any, Any], probe: LayerProbe, gate: str, ids: list[int]
) -> tuple[float, list[bool]]:
    """The log-probability of an answer by plain passes, and where the gate was open."""
    said = [score(hf, probe, [*prompts[0], *ids[:n]]) for n in range(len(ids))]
    actives = decisions([value for value, _ in said], Gate.parse(gate))
    total = 0.0
    for place, (acts, (_, logits)) in enumerate(zip(actives, said, strict=True)):
        if acts:
            memory = next_logits(hf, [*prompts[1], *ids[:place]])
            logits = build("cad", alpha=2.0).combine(logits[None], memory).logits[0]
        total += float(logits.log_softmax(-1)[ids[place]])
    return total, actives


def test_a_run_belongs_to_its_probe(model: Any, probe: LayerProbe, tmp_path: Path) -> None:
    policies = {"gated": Policy.of("cad", when="probe > 0.5")}
    asked: dict[str, Any] = {"policies": policies, **FEW}
    cases = [case(0), case(1)]
    run = evaluate(model, cases, (), tmp_path / "run", probe=probe, **asked)
    told = run.info["policies"]["gated"]
    assert Policy.from_dict(told) == Policy.of("cad", when=Gate("probe", ">", 0.5, probe=probe))
    again = evaluate(model, cases, (), tmp_path / "run", probe=probe, **asked)
    assert again.results == run.results
    other = probe_of(model.model, "residual", 1, seed=3)
    with pytest.raises(ResumeError):
        evaluate(model, cases, (), tmp_path / "run", probe=other, **asked)


def test_a_gate_without_its_probe_writes_nothing(
    model: Any, probe: LayerProbe, tmp_path: Path
) -> None:
    policies = {"gated": Policy.of("cad", when="probe > 0.5")}
    with pytest.raises(InvalidParameterError, match="needs a probe of this model"):
        evaluate(model, [case(0)], (), tmp_path / "run", policies=policies, **FEW)
    other = replace(probe, fingerprint="f" * 64)
    with pytest.raises(ProbeError, match="fitted on the model 'tiny', not on"):
        evaluate(model, [case(0)], (), tmp_path / "run", policies=policies, probe=other, **FEW)
    assert not (tmp_path / "run").exists()
