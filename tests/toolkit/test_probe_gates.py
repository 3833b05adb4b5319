"""Gates on a probe through the face: `ask(..., when="probe > 0.5", probe=...)`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit.detectors.probe import LayerProbe
from conflictkit.errors import (
    InvalidParameterError,
    PolicyError,
    ProbeError,
    UnknownNameError,
)
from conflictkit.gates import Gate
from conflictkit.mechanics.capture import capture
from conflictkit.policy import ModelTie, Policy
from tests.engine.reference import next_logits
from tests.evaluation.runner.conftest import case
from tests.probed import KINDS, Passes, decisions, hooks, probe_of, score
from tests.tiny import byte_tokenizer, llama

QUESTION, CONTEXT = "What is it that they said?", "Because. For no reason at all."
TOKENS = 10
FEW: dict[str, Any] = {"max_new_tokens": TOKENS}


@pytest.fixture(scope="module")
def model() -> Any:
    return ck.load(llama(300), tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def probe(model: Any) -> LayerProbe:
    """Says yes about as often as no behind the prompt of these tests."""
    prompt = model.prompts(QUESTION, CONTEXT)["context"].ids
    return probe_of(model.model, "residual", 1, seed=2, prompt=prompt)


def tokens(answer: Any) -> list[int]:
    return [token.id for token in answer.trace.tokens]


def scores(answer: Any, name: str) -> list[float]:
    return [token.scores[name] for token in answer.trace.tokens]


def check(
    model: Any,
    answer: Any,
    probe: LayerProbe,
    gate: str,
    asked: Sequence[Any] = (QUESTION, CONTEXT),
) -> set[float]:
    """An answer of `cad?alpha=2` against plain passes over prompt and answer so far: what the probe
    said before each token, whether the method acted, and so how likely the answer was.

    Returns:
        Whether it acted, over all tokens.
    """
    hf, prompts, ids = model.model, model.prompts(*asked), tokens(answer)
    rule = ck.methods.build("cad", alpha=2.0)
    said = [score(hf, probe, [*prompts["context"].ids, *ids[:n]]) for n in range(len(ids))]
    assert scores(answer, "probe") == pytest.approx([value for value, _ in said], abs=1e-5)
    actives = decisions([value for value, _ in said], Gate.parse(gate))
    assert scores(answer, "active") == [float(one) for one in actives]
    total = 0.0
    for place, (acts, (_, context)) in enumerate(zip(actives, said, strict=True)):
        memory = next_logits(hf, [*prompts["memory"].ids, *ids[:place]])
        logits = rule.combine(context[None], memory).logits[0] if acts else context
        total += float(logits.log_softmax(-1)[ids[place]])
    assert answer.score == pytest.approx(total, abs=1e-3)
    assert answer.params["when"] == str(Gate.parse(gate))
    return set(map(float, actives))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_score_is_the_probe_of_the_captured_activation(
    model: Any, kind: str, tmp_path: Path
) -> None:
    cases = [case(n, contexts=(f"{n} is what it is. " * (1 + n % 3),)) for n in range(4)]
    kept = capture(model, cases, tmp_path / "kept", kinds=[kind], layers=[0, 1])
    for layer in (0, 1):
        values = kept.values(kind, layer)
        made = replace(probe_of(model.model, kind, layer), target="source")
        wanted = made(values).tolist()
        assert len({round(one, 3) for one in wanted}) == 4
        questions, contexts = [one.question for one in cases], [one.contexts for one in cases]
        options: dict[str, Any] = {"when": "probe > 0.5", "probe": made, "max_new_tokens": 1}
        batch = model.ask_batch(questions, contexts, "cad", **options)
        assert [scores(one, "probe")[0] for one in batch] == pytest.approx(wanted, abs=1e-5)
        alone = model.ask(questions[1], contexts[1], "plain", **options)
        assert scores(alone, "probe") == pytest.approx(wanted[1:2], abs=1e-5)


@pytest.mark.parametrize(
    "when", ["probe > 0.5", "probe < 0.5", "probe > 0.7 until 0.3", "probe < 0.2 until 0.8"]
)
def test_every_score_is_that_of_a_plain_pass(model: Any, probe: LayerProbe, when: str) -> None:
    answer = model.ask(QUESTION, CONTEXT, "cad?alpha=2", when=when, probe=probe, max_new_tokens=24)
    assert check(model, answer, probe, when) == {0.0, 1.0}
    if "until" in when:
        held = when.split(" until")[0]
        assert decisions(scores(answer, "probe"), Gate.parse(held)) != scores(answer, "active")


def test_a_gate_at_the_prompt_asks_once(model: Any, probe: LayerProbe) -> None:
    first = score(model.model, probe, model.prompts(QUESTION, CONTEXT)["context"].ids)[0]
    for bound, wanted in ((first - 0.01, 1.0), (first + 0.01, 0.0)):
        when = f"probe > {bound:.6f} at prompt"
        answer = model.ask(QUESTION, CONTEXT, "cad?alpha=2", when=when, probe=probe, **FEW)
        assert check(model, answer, probe, when) == {wanted}
        beyond = {one > bound for one in scores(answer, "probe")}
        assert beyond == {True, False}  # asked at every step it would have changed


def test_rows_do_not_touch_each_other(model: Any, probe: LayerProbe) -> None:
    asked: list[Any] = [
        (QUESTION, CONTEXT), ("Who?", None), ("Who?", "Nobody knows. " * 6),
        ("Why so?", ["A.", "B."]),
    ]  # fmt: skip
    options = {"when": "probe > 0.5", "probe": probe, **FEW}
    batch = model.ask_batch(*map(list, zip(*asked, strict=True)), "cad?alpha=2", **options)
    met = set()
    for one, answer in zip(asked, batch, strict=True):
        alone = model.ask(*one, "cad?alpha=2", **options)
        assert tokens(answer) == tokens(alone)
        assert "probe" in answer.trace.tokens[0].scores if one[1] else answer.method == "memory"
        for ours, theirs in zip(answer.trace.tokens, alone.trace.tokens, strict=True):
            assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        if one[1]:
            met |= check(model, answer, probe, "probe > 0.5", one)
    assert met == {0.0, 1.0}


@pytest.mark.parametrize(
    "decoding",
    [{"n": 3, "temperature": 1.0, "seed": 4}, {"num_beams": 2, "n": 2}, {"num_beams": 4, "n": 3}],
    ids=str,
)
def test_several_answers_are_each_read_by_themselves(
    model: Any, probe: LayerProbe, decoding: dict[str, Any]
) -> None:
    options = {"when": "probe > 0.55 until 0.45", "probe": probe, **FEW, **decoding}
    asked: list[Any] = [(QUESTION, CONTEXT), ("Who?", "Nobody knows.")]
    batch = model.ask_batch(*map(list, zip(*asked, strict=True)), "cad?alpha=2", **options)
    met = set()
    for row, (one, answer) in enumerate(zip(asked, batch, strict=True)):
        several = [answer, *answer.alternatives]
        assert len({tuple(tokens(each)) for each in several}) == decoding["n"]
        for each in several:
            met |= check(model, each, probe, str(options["when"]), one)
        if "seed" in decoding:
            options |= {"seed": decoding["seed"] + row * decoding["n"]}
        alone = model.ask(*one, "cad?alpha=2", **options)
        assert tokens(alone) == tokens(answer)
        assert list(map(tokens, alone.alternatives)) == list(map(tokens, answer.alternatives))
    assert met == {0.0, 1.0}


@pytest.mark.parametrize("spec", ["cad?alpha=2", "ph3?k=2"])
def test_open_is_the_method_and_closed_is_plain(spec: str, tmp_path: Path) -> None:
    atlas = ck.load("atlas")
    question, context = "What is the capital of Sweden?", "The capital of Sweden is Oslo."
    probe_of(atlas.model, "residual", 3).save(tmp_path / "probe.safetensors")
    options: dict[str, Any] = {"probe": tmp_path / "probe.safetensors", "max_new_tokens": 5}
    always = atlas.ask(question, context, spec, max_new_tokens=5)
    plain = atlas.ask(question, context, "plain", max_new_tokens=5)
    opened = atlas.ask(question, context, spec, when="probe > -1", **options)
    closed = atlas.ask(question, context, spec, when="probe > 2", **options)
    assert (tokens(opened), tokens(closed)) == (tokens(always), tokens(plain))
    assert opened.score == pytest.approx(always.score, abs=1e-4)
    assert closed.score == pytest.approx(plain.score, abs=1e-4)
    assert set(scores(opened, "active")) == {1.0}
    assert set(scores(closed, "active")) == {0.0}
    assert opened.stats.edits == always.stats.edits
    wanted = score(atlas.model, LayerProbe.load(options["probe"]),
                   atlas.prompts(question, context)["context"].ids)[0]  # fmt: skip
    assert scores(opened, "probe")[0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "streams"), [("cad", 2), ("plain", 1), ("ph3?heads=1.2", 2), ("memory", 2)]
)
def test_a_probe_costs_no_pass(model: Any, probe: LayerProbe, spec: str, streams: int) -> None:
    with Passes(model.model) as passes:
        answer = model.ask(QUESTION, CONTEXT, spec, when="probe > 0.5", probe=probe, **FEW,
                           scores=("context-entropy",))  # fmt: skip
    assert answer.stats.forwards == streams * len(tokens(answer))
    assert passes.count == answer.stats.passes == streams + len(tokens(answer)) - 1
    if spec == "cad":
        ungated = model.ask(QUESTION, CONTEXT, spec, **FEW)
        assert len(tokens(ungated)) == len(tokens(answer))
        assert answer.stats == ungated.stats


def test_policies_of_one_batch_may_hold_different_probes(model: Any, probe: LayerProbe) -> None:
    other = probe_of(model.model, "mlp", 0, seed=1)
    gates = [Gate("probe", ">", 0.5, probe=probe), Gate("probe", "<", 0.5, 0.6, probe=other)]
    each = [Policy.of("cad?alpha=2", when=one) for one in gates] + [Policy.of("cad?alpha=2")]
    batch = model.ask_batch([QUESTION, "Who?", QUESTION], [CONTEXT] * 3, policy=each, **FEW)
    assert check(model, batch[0], probe, "probe > 0.5") == {0.0, 1.0}
    check(model, batch[1], other, "probe < 0.5 until 0.6", ("Who?", CONTEXT))
    assert "probe" not in batch[2].trace.tokens[0].scores
    # What a gate holds goes before what is passed beside it.
    again = model.ask(QUESTION, CONTEXT, policy=each[0], probe=other, **FEW)
    assert again.to_dict() == model.ask(QUESTION, CONTEXT, policy=each[0], **FEW).to_dict()
    check(model, again, probe, "probe > 0.5")


def test_a_policy_brings_its_probe_along(model: Any, probe: LayerProbe, tmp_path: Path) -> None:
    gate = Gate.parse("probe > 0.5").reading(probe)
    tie = ModelTie(model.name, model.fingerprint)
    replace(Policy.of("cad?alpha=2", when=gate), model=tie).save(tmp_path / "p.json")
    answer = model.ask(QUESTION, CONTEXT, policy=tmp_path / "p.json", **FEW)
    passed = model.ask(QUESTION, CONTEXT, "cad?alpha=2", when="probe > 0.5", probe=probe, **FEW)
    assert answer.to_dict() == passed.to_dict()
    assert check(model, answer, probe, "probe > 0.5") == {0.0, 1.0}


def test_a_stream_and_a_comparison_are_the_same_answer(model: Any, probe: LayerProbe) -> None:
    options = {"when": "probe > 0.5", "probe": probe, **FEW}
    answer = model.ask(QUESTION, CONTEXT, "cad?alpha=2", compare=True, **options)
    pieces = model.stream(QUESTION, CONTEXT, "cad?alpha=2", **options)
    assert "".join(pieces).strip() == answer.text
    assert pieces.answer.trace.to_dict()["tokens"] == answer.trace.to_dict()["tokens"]
    assert answer.plain_answer == model.ask(QUESTION, CONTEXT, "plain", **FEW).text
    assert "probe" in answer.trace.to_html()


def test_no_hook_is_left(model: Any, probe: LayerProbe) -> None:
    options = {"when": "probe > 0.5", "probe": probe, **FEW}
    model.ask(QUESTION, CONTEXT, "ph3?heads=1.2", **options)
    assert hooks(model.model) == 0
    begun = model.stream(QUESTION, CONTEXT, "cad", **options)
    next(iter(begun))
    assert hooks(model.model) > 0
    del begun
    gc.collect()
    assert hooks(model.model) == 0
    narrow = replace(probe, weights=torch.ones(7))
    with pytest.raises(InvalidParameterError, match="activations of width 7"):
        model.ask(QUESTION, CONTEXT, "cad", **options | {"probe": narrow})
    with pytest.raises(InvalidParameterError, match="reads attention of layer 2: there is none"):
        model.ask(QUESTION, CONTEXT, "cad",
                  **options | {"probe": replace(probe, kind="attention", layer=2)})  # fmt: skip
    gc.collect()
    assert hooks(model.model) == 0


GATED = {"when": "probe > 0.7", "method": "cad"}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (GATED, InvalidParameterError, "'probe > 0.7' needs a probe of this model.*fit-probe"),
        (GATED | {"probe": "other"}, ProbeError, "fitted on the model 'another', not on"),
        ({"policy": "held"}, ProbeError, "fitted on the model 'another'"),
        ({"policy": "held", "probe": "own"}, ProbeError, "fitted on the model 'another'"),
        (GATED | {"probe": 3}, InvalidParameterError, "probe must be one, or its file, not int"),
        (GATED | {"probe": "none.safetensors"}, ProbeError, "none.safetensors.*no such file"),
        (GATED | {"probe": "deep"}, InvalidParameterError, "residual of layer 5: there is none"),
        (
            {"method": "cad", "when": "gini@residual.2 > 0"},
            InvalidParameterError,
            "reads residual of layer 2: there is none",
        ),
        ({"method": "cad", "probe": "own"}, InvalidParameterError, "a gate on it alone"),
        (
            {"method": "cad", "when": "jsd > 0.1", "probe": "own"},
            InvalidParameterError,
            "a gate on it alone",
        ),
        ({"method": "cad", "strength": "probe"}, UnknownNameError, "unknown detector 'probe'"),
        ({"method": "cad", "scores": ["probe"]}, UnknownNameError, "unknown detector 'probe'"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is(
    model: Any, probe: LayerProbe, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    other = replace(probe, fingerprint="f" * 64, model="another")
    held = Policy.of("cad", when=Gate("probe", ">", 0.5, probe=other))
    made = {"own": probe, "other": other, "deep": replace(probe, layer=5), "held": held}
    given = {
        name: made.get(value, value) if name in ("probe", "policy") else value
        for name, value in options.items()
    }
    with Passes(model.model) as passes, pytest.raises(error, match=said):
        model.ask(QUESTION, CONTEXT, **given)
    assert passes.count == 0


@pytest.mark.parametrize("answer", ["Because.", None])
@pytest.mark.parametrize("known", [True, False])
def test_a_score_has_no_gate_on_a_probe(
    model: Any, probe: LayerProbe, answer: str | None, known: bool
) -> None:
    gate = Gate("probe", ">", 0.5, probe=probe if known else None)
    policy = Policy.of("cad", when=gate)
    with (
        Passes(model.model) as passes,
        pytest.raises(InvalidParameterError, match="'probe > 0.5' reads activations.*jsd > 0.3"),
    ):
        model.score(QUESTION, CONTEXT, answer, policy=policy)
    with pytest.raises(InvalidParameterError, match="reads activations"):
        model.score(QUESTION, CONTEXT, method="cad", when="probe > 0.5", probe=probe)
    with pytest.raises(InvalidParameterError, match="'gini@mlp.1 > 0.5' reads activations"):
        model.score(QUESTION, CONTEXT, method="cad", when="gini@mlp.1 > 0.5")
    assert passes.count == 0


@pytest.mark.parametrize("detector", ["probe", "kurtosis@residual.1"])
def test_what_reads_activations_is_not_calibrated(model: Any, detector: str) -> None:
    cases = [case(n, state="agreement") for n in range(20)]
    with (
        Passes(model.model) as passes,
        pytest.raises(InvalidParameterError, match="is not calibrated: set it by hand, as in"),
    ):
        model.calibrate(cases, detector=detector)
    assert passes.count == 0


def test_a_policy_of_another_model_is_refused_whatever_its_probe(
    model: Any, probe: LayerProbe
) -> None:
    gated = Policy.of("cad", when=Gate("probe", ">", 0.5, probe=probe))
    with pytest.raises(PolicyError, match="made for the model 'x'"):
        model.ask(QUESTION, CONTEXT, policy=replace(gated, model=ModelTie("x", "f" * 64)))
