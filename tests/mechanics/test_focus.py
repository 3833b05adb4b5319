"""Focus directions against the same training written out, and what they do to attention."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.errors import EmptyInputError, InvalidParameterError, UnsupportedError
from conflictkit.interventions import FocusDirections
from conflictkit.mechanics.attention import attention_mass
from conflictkit.mechanics.focus import focus_directions
from conflictkit.mechanics.ranking import rank
from tests.anatomy import families
from tests.mechanics.worlds import atlas, items, logits, world

ANSWERS = [(5, 6), (7,), (8, 9, 10)]


def told() -> list[Any]:
    return [replace(one, answer=ids) for one, ids in zip(items(), ANSWERS, strict=True)]


@contextmanager
def watched(hf: Any, seen: dict[int, Any]) -> Iterator[None]:
    """`hf` while every layer leaves its queries, keys, mask and scale in `seen`."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **named: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
        scale = named.get("scaling") or query.shape[-1] ** -0.5
        seen[module.layer_idx] = (query, key, mask, scale, named.get("softcap"))
        weights = weigh(*seen[module.layer_idx])
        return (weights @ value).transpose(1, 2).contiguous(), weights

    AttentionInterface.register("watched", attend)
    AttentionMaskInterface.register("watched", eager_mask)
    before = hf.config._attn_implementation
    hf.set_attn_implementation("watched")
    yield
    hf.set_attn_implementation(before)


def weigh(query: Any, key: Any, mask: Any, scale: float, cap: float | None) -> Any:
    scores = query @ key.transpose(-1, -2) * scale
    return ((scores if cap is None else (scores / cap).tanh() * cap) + mask).softmax(-1)


def by_definition(hf: Any, some: list[Any], epochs: int, rate: float, seed: int) -> Any:
    """Each layer's directions, trained on the states of the untouched model in float64."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, Any] = {}
    ways: dict[int, Any] = {}
    for _ in range(epochs):
        for place in torch.randperm(len(some), generator=generator).tolist():
            item, states = some[place], {}
            with watched(hf, states), torch.no_grad():
                hf(torch.tensor([[*item.ids, *item.answer]]))
            for layer, (query, key, mask, scale, cap) in sorted(states.items()):
                if layer not in made:
                    start = 0.01 * torch.randn(query.shape[1], query.shape[3], generator=generator)
                    made[layer] = start.double().requires_grad_()
                    ways[layer] = torch.optim.AdamW([made[layer]], lr=rate)
                turned = query.double() + made[layer][None, :, None]
                weights = weigh(turned, key.double(), mask.double(), scale, cap)
                mass = weights[0, :, len(item.ids) :, slice(*item.span)].sum(-1)
                ways[layer].zero_grad()
                (-mass.mean()).backward()
                ways[layer].step()
    return torch.stack([made[layer].detach().float() for layer in sorted(made)])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3", "mistral"])
def test_training_is_the_papers_written_out(name: str) -> None:
    hf, counted = copy.deepcopy(world(name)), []
    way, before = hf.config._attn_implementation, logits(hf, items()[0].ids)
    options: Any = {"epochs": 4, "rate": 0.02, "seed": 3}
    found = focus_directions(hf, told(), **options, progress=lambda *pair: counted.append(pair))
    body = anatomy.find(hf)
    assert found.shape == (len(body.layers), body.heads, body.head_dim)
    torch.testing.assert_close(found, by_definition(hf, told(), **options), atol=2e-3, rtol=0)
    assert found.abs().max() > 0.05
    assert counted == [(number, 12) for number in range(1, 13)]
    assert hf.config._attn_implementation == way
    assert torch.equal(logits(hf, items()[0].ids), before)
    assert all(one.grad is None for one in hf.parameters())
    assert torch.equal(found, focus_directions(hf, told(), **options))


@pytest.mark.slow
def test_a_trained_direction_raises_the_attention_on_other_prompts() -> None:
    model, some = atlas()
    hf = copy.deepcopy(model.model)
    hf.set_attn_implementation("eager")
    found = focus_directions(hf, some[:2], epochs=40, rate=0.02)
    item = some[2]
    ids = torch.tensor([[*item.ids, *item.answer]])
    rows = slice(len(item.ids), None)
    plain = attention_mass(hf, [item], answers=[item.answer])[0]
    for layer in range(found.shape[0]):
        turned = {(layer, head): found[layer, head] for head in range(found.shape[1])}
        with FocusDirections(turned, 1.0).attach(hf), torch.no_grad():
            weights = hf(ids, output_attentions=True).attentions[layer][0]
        mass = weights[:, rows, slice(*item.span)].sum(-1).mean(-1)
        assert mass.mean() > plain[layer].mean() + 0.02, layer


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(EmptyInputError):
        focus_directions(world("llama"), [])
    with pytest.raises(InvalidParameterError, match="'item-0': no answer"):
        focus_directions(world("llama"), items())
    with pytest.raises(UnsupportedError, match="attention interface"):
        focus_directions(families.model(families.UNDISPATCHED[0]), told())
    hf = copy.deepcopy(world("llama"))
    with (
        pytest.warns(UserWarning, match="changed nothing"),
        FocusDirections({(0, 0): torch.ones(8)}).attach(hf),
        pytest.raises(UnsupportedError, match="attached: detach it first"),
    ):
        focus_directions(hf, told())


@pytest.mark.slow
def test_a_ranking_holds_directions_and_the_method_takes_them(tmp_path: Any) -> None:
    model = ck.load("atlas")
    cases = ck.atlas.cases("train", "resistance")[:12]
    steps: list[tuple[int, int]] = []
    out = tmp_path / "heads.json"
    ranking = rank(model, cases, by="focus", limit=3, out=out,
                   progress=lambda *pair: steps.append(pair))  # fmt: skip
    assert steps[0] == (0, 33)
    assert steps[-1] == (33, 33)
    assert ranking.directions is not None
    rule: Any = ck.methods.build("focus", k=2).settled(ranking)  # pyright: ignore
    heads = ranking.top("context", 2)
    assert rule.heads == "+".join(f"{layer}.{head}" for layer, head in heads)
    (edit,) = rule.edits(None)["edited"]
    assert set(edit.directions) == set(heads)
    assert edit.strength == (0.2,)
    assert rule.edits(None, 0.5)["edited"][0].strength == (0.1,)
    for head, direction in edit.directions.items():
        expected = torch.tensor(ranking.direction(head), dtype=torch.float32)
        assert torch.equal(direction, expected)
    question, context = "What is the capital of Sweden?", "The capital of Sweden is Oslo."
    named = model.ask(question, context, "focus?heads=2.3&alpha=3", heads=out, trace=False)
    assert named.params["heads"] == "2.3"
    assert named.stats.edits > 0


@pytest.mark.parametrize(
    "text", ["3.5", "3.5:", "3.5:A", "3.5:AAAA", "3.5:AADAfw", "x:AAAAAA", "3.5:AAAAAA+3.5:AAAAAA"]
)
def test_directions_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="focus: cannot read"):
        ck.methods.build("focus", directions=text)
    with pytest.raises(InvalidParameterError, match="different heads"):
        ck.methods.build("focus", heads="1.1", directions="3.5:AACAPw")
