"""Patching against whole forwards, one for each head, in which everything else is held."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from conflictkit import anatomy
from conflictkit.errors import EmptyInputError, InvalidParameterError, UnsupportedError
from conflictkit.mechanics.items import Item
from conflictkit.mechanics.patching import activation_patching, path_patching
from tests.anatomy.families import CONFIGS
from tests.mechanics.worlds import (
    atlas,
    frozen_world,
    head_changed,
    items,
    logits,
    replaced,
    seen,
    world,
)

KINDS = ("no_memory", "no_context")


def score(before: torch.Tensor, after: torch.Tensor, item: Item, kind: str, measure: str) -> float:
    """S of one head, from the logits before and after."""
    change = after - before
    if measure == "probability":
        was, now = before.softmax(-1), after.softmax(-1)
        change = (now - was) / was
    towards = change[item.context_id] - change[item.memory_id]
    return float(towards if kind == "no_memory" else -towards)


def brute(model: Any, item: Item, mlps: str, measure: str) -> torch.Tensor:
    """`[2, layers, heads]`: S_memory and S_context by one forward for each head."""
    body = anatomy.find(model)
    clean = seen(model, item.ids)
    before = logits(model, item.ids)
    found = torch.zeros(2, len(body.layers), body.heads)
    for place, kind in enumerate(KINDS):
        other = seen(model, getattr(item, kind))
        for layer, head in body.names():
            value = other[body.outputs[layer]][0][:, -1, body.slice_of(head)]
            if mlps == "frozen":
                world_of = frozen_world(model, clean, (layer, head), value)
            else:
                world_of = replaced(head_changed(model, clean, (layer, head), value), {})
            with world_of:
                after = logits(model, item.ids)
            found[place, layer, head] = score(before, after, item, kind, measure)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, "opt-350m"])
def test_recomputed_is_a_forward_for_each_head(name: str) -> None:
    model = world(name)
    chosen = items(2)
    ours = torch.stack(path_patching(model, chosen, mlps="recomputed", measure="logit"), 1)
    for row, item in enumerate(chosen):
        expected = brute(model, item, "recomputed", "logit")
        torch.testing.assert_close(ours[row], expected, atol=5e-4, rtol=1e-3)
        assert (expected.abs() > 1e-3).float().mean() > 0.7


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_recomputed_in_probability(name: str) -> None:
    item = items(1)[0]
    ours = torch.stack(path_patching(world(name), [item], mlps="recomputed"), 1)[0]
    expected = brute(world(name), item, "recomputed", "probability")
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=2e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "gemma2", "olmo2", "granite", "opt"])
@pytest.mark.parametrize("measure", ["probability", "logit"])
def test_frozen_is_a_forward_with_all_else_held(name: str, measure: Any) -> None:
    model = world(name)
    item = items(1)[0]
    ours = torch.stack(path_patching(model, [item], mlps="frozen", measure=measure), 1)[0]
    expected = brute(model, item, "frozen", measure)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=2e-3)
    assert (expected.abs() > 1e-3).float().mean() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_activation_patching_is_a_forward_for_each_head(name: str) -> None:
    model = world(name)
    chosen = items(2)
    for kind, sign in (("no_context", 1.0), ("no_memory", -1.0)):
        ours = activation_patching(model, chosen, corrupted=kind)  # type: ignore[arg-type]
        check_activations(model, chosen, ours, kind, sign)


def check_activations(
    model: Any, chosen: list[Item], ours: torch.Tensor, kind: str, sign: float
) -> None:
    body = anatomy.find(model)
    for row, item in enumerate(chosen):
        other = seen(model, getattr(item, kind))
        before = logits(model, item.ids)
        for layer, head in body.names():
            output, part = body.outputs[layer], body.slice_of(head)

            def put(x: Any, value: Any = other[output], part: slice = part) -> Any:
                x = x.clone()
                x[:, -1, part] = value[0][:, -1, part]
                return x

            with replaced({output: put}, {}):
                change = logits(model, item.ids) - before
            expected = sign * (change[item.memory_id] - change[item.context_id])
            torch.testing.assert_close(ours[row, layer, head], expected, atol=5e-4, rtol=1e-3)


def everything(model: Any, found: list[Item]) -> torch.Tensor:
    return torch.cat(
        [
            *path_patching(model, found, measure="logit"),
            *path_patching(model, found, mlps="recomputed", measure="logit"),
            activation_patching(model, found),
        ],
        2,
    )


def test_atlas_is_read_alike_alone_and_in_a_batch() -> None:
    model, found = atlas()
    assert len({len(item.ids) for item in found}) > 1
    together = everything(model, found)
    alone = torch.cat([everything(model, [item]) for item in found])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_prompt_that_is_not_corrupted_changes_nothing() -> None:
    item = items(1)[0]
    same = Item(item.ids, 41, 20, item.span, item.ids, item.ids)
    assert everything(world("llama"), [same]).abs().max() < 1e-4


class Stopped(Exception):
    pass


def stop(*_: int) -> None:
    raise Stopped


@pytest.mark.parametrize(
    "analysis",
    [
        lambda model, progress: path_patching(model, items(), progress=progress),
        lambda model, progress: path_patching(model, items(), mlps="recomputed", progress=progress),
        lambda model, progress: activation_patching(model, items(), progress=progress),
    ],
    ids=["frozen", "recomputed", "activation"],
)
def test_the_model_is_left_as_it_was(analysis: Any) -> None:
    model = copy.deepcopy(world("llama"))
    before = logits(model, items()[0].ids)
    # transformers leaves hooks of its own on a model that was once asked for its hidden states.
    there = [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in model.modules()]
    calls: list[tuple[int, int]] = []
    analysis(model, lambda *done: calls.append(done))
    assert calls[-1] == (3, 3)
    with pytest.raises(Stopped):
        analysis(model, stop)

    def fail(*_: Any) -> None:
        raise Stopped

    hook = model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(Stopped):
        analysis(model, None)
    hook.remove()
    left = [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in model.modules()]
    assert left == there
    assert not any("forward" in vars(one) for one in model.modules())
    assert torch.equal(logits(model, items()[0].ids), before)


def test_layers_that_mix_positions_beside_the_attention_are_refused() -> None:
    model = copy.deepcopy(world("llama"))
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _, __, out: out.cumsum(1))
    with pytest.raises(UnsupportedError, match="cannot be computed from one position"):
        path_patching(model, items(), mlps="recomputed")


def test_layers_without_heads_can_only_run_as_a_whole() -> None:
    import transformers as hf

    config = hf.Qwen3NextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4,
        layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4,
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(3)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedError, match="has layers without heads"):
        path_patching(model, items(), mlps="recomputed")
    with pytest.raises(UnsupportedError, match="layer 0 does not add"):
        path_patching(model, items(), mlps="frozen")
    ours = activation_patching(model, items(2))
    assert ours[:, 0].abs().max() == 0
    check_activations(model, items(2), ours, "no_context", 1.0)


def test_wrong_calls() -> None:
    model = world("llama")
    bare = Item((5, 6, 7), 41, 20, (0, 1))
    for call in (path_patching, activation_patching):
        with pytest.raises(EmptyInputError, match="no item"):
            call(model, [])
        with pytest.raises(InvalidParameterError, match="require_corrupted"):
            call(model, [bare])
    with pytest.raises(InvalidParameterError, match="mlps must be"):
        path_patching(model, items(), mlps="gone")  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="measure"):
        path_patching(model, items(), measure="nats")  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="site must be 'head'"):
        activation_patching(model, items(), site="mlp")  # type: ignore[arg-type]
