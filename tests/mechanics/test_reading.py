"""Heads that read: against sums over heads written out in double precision, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

import conflictkit as ck
from conflictkit import engine
from conflictkit.detectors.probe import HEADS, LayerProbe
from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    ProbeError,
    UnknownNameError,
    UnsupportedError,
)
from conflictkit.gates import Gate
from conflictkit.mechanics import probing
from conflictkit.mechanics.probing import even_odds, fit_probes
from conflictkit.mechanics.reading import along, weigh
from conflictkit.models import fingerprint
from conflictkit.plan import open_streams
from conflictkit.policy import Policy
from conflictkit.prompt_cache import PromptCache
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from tests.anatomy.families import model as family
from tests.evaluation.runner.conftest import case
from tests.probed import hooks
from tests.tiny import byte_tokenizer, gpt2, llama

QUESTION, CONTEXT = "What is it that they said?", "Because. For no reason at all."


@pytest.fixture(scope="module")
def model() -> Any:
    return ck.load(llama(300), tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def atlas() -> Any:
    return ck.load("atlas")


def parts(hf: Any) -> tuple[list[Any], int, Any, Tensor]:
    """Output projections, heads, the final norm, and the unembedding, by their names."""
    if type(hf).__name__ == "GPT2LMHeadModel":
        layers = [one.attn.c_proj for one in hf.transformer.h]
        return layers, hf.config.n_head, hf.transformer.ln_f, hf.lm_head.weight
    layers = [one.self_attn.o_proj for one in hf.model.layers]
    return layers, hf.config.num_attention_heads, hf.model.norm, hf.lm_head.weight


def normed(norm: Any, x: Tensor) -> Tensor:
    weight = norm.weight.double()
    if hasattr(norm, "eps"):  # LayerNorm
        x = x - x.mean()
        return x / (x.square().mean() + norm.eps).sqrt() * weight + norm.bias.double()
    return x / (x.square().mean() + norm.variance_epsilon).sqrt() * weight


@torch.no_grad()
def said(hf: Any, ids: Sequence[int], first: int, weights: Tensor) -> Tensor:
    """`[vocab]` log-probabilities of what weighed heads, corrected, write behind these tokens."""
    outputs, heads, norm, unembed = parts(hf)
    caught: dict[int, Tensor] = {}
    handles = [
        one.register_forward_pre_hook(lambda _, a, n=n: caught.update({n: a[0][0, -1].double()}))
        for n, one in enumerate(outputs)
    ]
    hf(torch.tensor([list(ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    width, count = unembed.shape[1], (len(outputs) - first) * heads
    z = torch.cat([caught[layer] for layer in range(first, len(outputs))])
    size = len(z) // count
    gains, rest = weights[:count].double(), weights[count:].double()
    rank = len(rest) // (len(z) + width)
    down, up = rest[: len(z) * rank].view(len(z), rank), rest[len(z) * rank :].view(rank, width)
    x = z @ down @ up
    for layer in range(first, len(outputs)):
        matrix = outputs[layer].weight.double()
        matrix = matrix if type(outputs[layer]).__name__ == "Conv1D" else matrix.T
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            x += gains[(layer - first) * heads + head] * caught[layer][own] @ matrix[own]
    logits = float(gains.abs().mean()) * (unembed.double() @ normed(norm, x))
    return logits.log_softmax(-1)


def memory(hf: Any, ids: Sequence[int]) -> int:
    with torch.no_grad():
        return int(hf(torch.tensor([list(ids)]), use_cache=False).logits[0, -1].argmax())


def probe_of(hf: Any, first: int, seed: int = 0, bias: float = -5.0, rank: int = 2) -> LayerProbe:
    outputs, heads, _, unembed = parts(hf)
    draw, width, layers = (
        torch.Generator().manual_seed(seed),
        unembed.shape[1],
        len(outputs) - first,
    )
    wide = width  # in these models all heads of a layer together are as wide as the stream
    weights = torch.randn(layers * heads + rank * (layers * wide + width), generator=draw)
    weights[layers * heads :] *= 0.1
    return LayerProbe("conflict", HEADS, first, weights, bias, "tiny", fingerprint(hf))


def wanted(hf: Any, probe: LayerProbe, prompts: Any, ids: Sequence[int]) -> list[float]:
    """The probability before every token of an answer."""
    found = []
    for n in range(len(ids)):
        token = memory(hf, [*prompts["memory"].ids, *ids[:n]])
        p = said(hf, [*prompts["context"].ids, *ids[:n]], probe.layer, probe.weights)
        found.append(1 / (1 + math.exp(float(p[token]) - probe.bias)))
    return found


def scores(answer: Any, name: str = "probe") -> list[float]:
    return [token.scores[name] for token in answer.trace.tokens]


def ids(answer: Any) -> list[int]:
    return [token.id for token in answer.trace.tokens]


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(("first", "rank"), [(0, 0), (0, 3), (1, 2)])
def test_every_step_is_a_sum_over_heads(make: Any, first: int, rank: int) -> None:
    hf, draw = deepcopy(make(300)), torch.Generator().manual_seed(1)  # the model is everybody's
    for one in hf.parameters():
        if one.dim() == 1:  # biases that a new model has at 0
            one.data += 0.3 * torch.randn(one.shape, generator=draw)
    model = ck.load(hf, tokenizer=byte_tokenizer())
    before = hooks(hf)
    probe = probe_of(hf, first, rank=rank)
    when = f"probe > {sum(wanted(hf, probe, model.prompts(QUESTION, CONTEXT), [5])):.4f}"
    answer = model.ask(QUESTION, CONTEXT, "cad?alpha=2", when=when, probe=probe, max_new_tokens=8)
    told = wanted(hf, probe, model.prompts(QUESTION, CONTEXT), ids(answer))
    assert scores(answer) == pytest.approx(told, abs=1e-5)
    assert max(told) - min(told) > 0.01
    assert hooks(hf) == before


@pytest.mark.parametrize(
    "options",
    [
        {"road": "sequential"}, {"drafts": "auto"}, {"num_beams": 3, "n": 2},
        {"n": 2, "temperature": 1.0, "seed": 3}, {"cache": PromptCache()},
    ],
    ids=["sequential", "drafts", "beams", "several", "cache"],
)  # fmt: skip
def test_every_road_reads_the_same(model: Any, options: dict[str, Any]) -> None:
    probe = probe_of(model.model, 0)
    given = {"when": "probe > 0.5", "probe": probe, "max_new_tokens": 12} | options
    asked = [(QUESTION, CONTEXT), ("Who?", "Nobody knows. " * 6)]
    batch = model.ask_batch(*map(list, zip(*asked, strict=True)), "cad?alpha=2", **given)
    for one, answer in zip(asked, batch, strict=True):
        for each in (answer, *answer.alternatives):
            told = wanted(model.model, probe, model.prompts(*one), ids(each))
            assert scores(each) == pytest.approx(told, abs=1e-5)


def test_rows_may_have_probes_that_begin_at_the_same_layer(model: Any) -> None:
    probes = [probe_of(model.model, 1, seed) for seed in (1, 2)]
    gates = [Policy.of("cad", when="probe > 0.5").reading(one) for one in probes]
    batch = model.ask_batch([QUESTION] * 2, [CONTEXT] * 2, policy=gates, max_new_tokens=6)
    for probe, answer in zip(probes, batch, strict=True):
        told = wanted(model.model, probe, model.prompts(QUESTION, CONTEXT), ids(answer))
        assert scores(answer) == pytest.approx(told, abs=1e-5)


def test_nothing_is_said_against_an_end(model: Any) -> None:
    probe = probe_of(model.model, 0)
    given: dict[str, Any] = {"when": "probe > 0.5", "probe": probe, "max_new_tokens": 8}
    plain = model.ask(QUESTION, CONTEXT, "plain", **given)
    prompt = model.prompts(QUESTION, CONTEXT)["memory"].ids
    told = [memory(model.model, [*prompt, *ids(plain)[:n]]) for n in range(len(ids(plain)))]
    end = next(token for token in told if token not in ids(plain))
    hf = deepcopy(model.model)
    hf.generation_config.eos_token_id = [1, end]
    again = ck.load(hf, tokenizer=byte_tokenizer()).ask(QUESTION, CONTEXT, "plain", **given)
    assert ids(again) == ids(plain)
    least = 1 / (1 + math.exp(-probe.bias))
    expected = [
        least if token == end else score for token, score in zip(told, scores(plain), strict=True)
    ]
    assert scores(again) == pytest.approx(expected, abs=1e-6)
    assert scores(again) != pytest.approx(scores(plain), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "drafts"),
    [({}, 0), ({}, None), ({"n": 2, "num_beams": 2}, 0)],
    ids=["plain", "drafts", "beams"],
)
def test_nothing_is_said_against_memory_without_a_passage(
    model: Any, options: Any, drafts: int | None
) -> None:
    """As in evaluations, where both streams of a method read the question alone."""
    probe = probe_of(model.model, 0)
    asked = [model.prompts(QUESTION, None), model.prompts(QUESTION, CONTEXT)]
    rows = {
        name: [one.get(name, one["memory"]).ids for one in asked] for name in ("context", "memory")
    }
    gate = ck.Controller(ck.methods.build("cad"), Gate.parse("probe > 0.5").reading(probe))
    streams = open_streams(model.model, gate, rows, pad_id=2, end_ids=(1,))
    decoding = Decoding(max_new_tokens=6, **options)
    run = Stepper(streams, gate, decoding, end_ids=(1,), decode=str, drafts=drafts)
    least = 1 / (1 + math.exp(-probe.bias))
    for row, answers in enumerate(engine.generate(run)):
        for one in answers:
            told = [record.scores["probe"] for record in one.records]
            assert (told == pytest.approx([least] * len(told))) is (row == 0)


@pytest.mark.parametrize(("spec", "streams"), [("cad", 2), ("plain", 2), ("ph3?heads=1.2", 3)])
def test_it_costs_no_pass_beside_memory(model: Any, spec: str, streams: int) -> None:
    given: dict[str, Any] = {"when": "probe > 0.5", "probe": probe_of(model.model, 0)}
    answer = model.ask(QUESTION, CONTEXT, spec, max_new_tokens=6, **given)
    assert answer.stats.forwards == streams * len(ids(answer))
    assert answer.stats.edits == 0 or spec.startswith("ph3")


def test_a_file_and_a_policy_hold_it(model: Any, tmp_path: Path) -> None:
    probe = probe_of(model.model, 1)
    probe.save(tmp_path / "probe.safetensors")
    assert LayerProbe.load(tmp_path / "probe.safetensors") == probe
    Policy.of("cad", when="probe > 0.5").reading(probe).save(tmp_path / "policy.json")
    read = Policy.load(tmp_path / "policy.json").controller.gate
    assert read is not None
    assert read.probe == probe
    assert read.needs == ("context", "memory")
    with pytest.raises(ProbeError, match="of a conflict, not of the source"):
        replace(probe, target="source")
    with pytest.raises(InvalidParameterError, match="compares two streams"):
        probe(torch.zeros(300))


def test_heads_that_cannot_be_read_are_refused(model: Any) -> None:
    probe = probe_of(model.model, 1)
    for wrong, why in (
        (replace(probe, weights=torch.ones(3)), "3 weights from layer 1"),
        (replace(probe, layer=2), "layers 0 to 1"),
        (replace(probe, layer=3), "layers 0 to 1"),
    ):
        with pytest.raises(InvalidParameterError, match=why):
            model.ask(QUESTION, CONTEXT, "cad", when="probe > 0.5", probe=wrong, max_new_tokens=2)
    several: Any = ([], "at least one layer"), ([3], "0 to 1"), (["a"], "'a'"), ([True], "T")
    for layers, why in several:
        with pytest.raises(InvalidParameterError, match=why):
            weigh(model, [case(0)], layers=layers)
    with pytest.raises(InvalidParameterError, match="pass what weigh returned"):
        along(model, [case(0)], {})
    for name in ("gemma2", "glm4"):
        normed = ck.load(family(name), tokenizer=byte_tokenizer())
        with pytest.raises(UnsupportedError, match="a norm stands between"):
            weigh(normed, [case(0)])
    narrow = OPTConfig(
        vocab_size=300, hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=2, ffn_dim=32,
        num_attention_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="projects its stream before"):
        weigh(ck.load(OPTForCausalLM(narrow), tokenizer=byte_tokenizer()), [case(0)])
    with pytest.raises(InvalidParameterError, match="heads have none of them"):
        fit_probes(model, [case(0)], kinds=["heads"], strengths=(2.0,))
    with pytest.raises(InvalidParameterError, match="rank must be a whole number from 0"):
        weigh(model, [case(0)], rank=-1)
    with pytest.raises(EmptyInputError, match="no case has a passage"):
        weigh(model, [replace(case(0), contexts=())])
    with pytest.raises(InvalidParameterError, match="not of the source"):
        fit_probes(model, [case(0)], target="source", kinds=["heads"])
    with pytest.raises(UnknownNameError, match="heads"):
        fit_probes(model, [case(0)], kinds=["head"])


def test_along_an_answer_it_is_the_largest(atlas: Any) -> None:
    cases = [*ck.atlas.cases("test", "resistance")[:3], *ck.atlas.cases("test", "agreement")[:3]]
    cases.insert(2, replace(cases[0], id="none", contexts=()))
    draw = torch.Generator().manual_seed(0)
    weights = {
        layer: torch.rand((6 - layer) * 8 + rank * 192 * (7 - layer), generator=draw)
        for layer, rank in ((2, 0), (4, 2))
    }
    weights[4][16:] *= 0.1
    most, begin = along(atlas, cases, weights), along(atlas, cases, weights, first=True)
    for layer, own in weights.items():
        assert most[layer].isnan().tolist() == [one.id == "none" for one in cases]
        for row, one in enumerate(cases):
            if one.id == "none":
                continue
            prompt = atlas.prompts(one.question, one.contexts)["context"].ids
            answer = ck.prompts.answer_ids(atlas.tokenizer, one.question, one.memory_answers[0])
            each = [
                -float(said(atlas.model, [*prompt, *answer[:n]], layer, own)[token])
                for n, token in enumerate(answer)
            ]
            assert float(most[layer][row]) == pytest.approx(max(each), abs=0.05)  # bfloat16
            assert float(begin[layer][row]) == pytest.approx(each[0], abs=0.05)


def test_weights_know_nothing_of_the_subjects_that_measure_them(
    atlas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where a subject cannot be read at all either."""
    cases = [one for s in ("correction", "agreement") for one in ck.atlas.cases("train", s)[:60]]
    gone = sorted({one.subject for one in cases})[0]
    cases = [replace(x, memory_answers=()) if x.subject == gone else x for x in cases]
    learnt: set[str] = set()
    shown: set[str] = set()
    real = probing._scored

    def fake(_: Any, several: Any, **__: Any) -> dict[int, Tensor]:
        learnt.update(one.subject for one in several)
        return {4: torch.ones(16)}

    def scored(what: Any, said: Any, labels: Any, subjects: Any, seed: int) -> Any:
        shown.update(subjects)
        return real(what, said, labels, subjects, seed)

    monkeypatch.setattr(probing, "weigh", fake)
    monkeypatch.setattr(probing, "_scored", scored)
    probed = fit_probes(atlas, cases, kinds=["heads"])
    assert learnt | shown | {gone} == {one.subject for one in cases}
    assert not learnt & shown
    unread = sum(one.subject == gone for one in cases)
    assert probed.dropped == {"not read along memory's answer": unread}


def test_a_correction_leaves_the_weights_as_they_are(model: Any) -> None:
    cases = [case(number) for number in range(6)]
    alone, mended = (weigh(model, cases, layers=[1], rank=rank)[1] for rank in (0, 2))
    assert alone.shape == (4,)
    assert mended.shape == (4 + 2 * (32 + 32),)
    assert torch.equal(mended[:4], alone)


def test_the_bias_makes_the_mean_right() -> None:
    draw = torch.Generator().manual_seed(0)
    said, labels = 8 * torch.rand(50, generator=draw), torch.rand(50, generator=draw) < 0.3
    bias = even_odds(said, labels)
    mean = sum(1 / (1 + math.exp(-one - bias)) for one in said.tolist()) / 50
    assert mean == pytest.approx(float(labels.double().mean()), abs=1e-6)


@pytest.mark.slow
def test_heads_see_what_a_line_does_not(atlas: Any, tmp_path: Path) -> None:
    """Wrong passages and right ones of the same words: see `pairs`."""
    learnt, others = pairs("train", 100), pairs("test", 40)
    probed = fit_probes(atlas, learnt, kinds=["residual", "heads"], layers=[4], strengths=(10.0,))
    assert [one.kind for one in probed.scores] == ["residual", "heads"]
    assert probed.probe.kind == HEADS
    assert probed.scores[1].auroc > 0.9 > probed.scores[0].auroc
    assert probed.scores[1].accuracy > 0.8
    wrong = torch.tensor([one.state != "agreement" for one in others])
    told, even = (
        along(atlas, others, {4: own})[4] for own in (probed.probe.weights, torch.ones(16))
    )
    assert area(told[wrong], told[~wrong]) > max(0.9, area(even[wrong], even[~wrong]))
    read = [replace(one, memory_answers=one.context_answers) for one in others]
    mended = probed.probe.weights
    before, behind = (along(atlas, read, {4: own})[4].mean() for own in (mended[:16], mended))
    assert behind < 0.7 * before  # of subjects that the correction was not learnt from
    probed.probe.save(tmp_path / "probe.safetensors")
    gate: Any = {"when": "probe > 0.5", "probe": tmp_path / "probe.safetensors"}
    answers = atlas.ask_batch(
        [one.question for one in others], [one.contexts for one in others], "plain", **gate
    )
    fired = torch.tensor([max(scores(one)) > 0.5 for one in answers]).double()
    assert fired[wrong].mean() > 0.7
    assert fired[~wrong].mean() < 0.2


def pairs(split: str, count: int) -> list[Any]:
    """Conflicts, each beside the same passage with memory's answer in it."""
    found = []
    for one in ck.atlas.cases(split, "correction"):
        wrong, right = one.context_answers[0], one.memory_answers[0]
        if len(found) < 2 * count and all(text.count(wrong) == 1 for text in one.contexts):
            told = tuple(text.replace(wrong, right) for text in one.contexts)
            twin = replace(one, id=f"{one.id}-twin", contexts=told, context_answers=(right,))
            found += [one, replace(twin, state="agreement")]
    return found


def area(high: Tensor, low: Tensor) -> float:
    """AUROC: how often a conflict scores above an agreement."""
    above = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
    return float(above.mean())
