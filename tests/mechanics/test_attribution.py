"""Shares of heads: they add up, and each is what its head writes towards the answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from conflictkit import anatomy
from conflictkit.errors import EmptyInputError, InvalidParameterError, UnsupportedError
from conflictkit.mechanics.attribution import attribution
from tests.anatomy.families import CONFIGS
from tests.mechanics.worlds import (
    atlas,
    frozen,
    frozen_world,
    items,
    logits,
    seen,
    shaken,
    world,
)


def uncapped(model: Any, values: torch.Tensor) -> torch.Tensor:
    cap = getattr(model.config, "final_logit_softcapping", None)
    return values if cap is None else (values / cap).atanh() * cap


def difference(model: Any, item: Any) -> torch.Tensor:
    values = uncapped(model, logits(model, item.ids))
    return values[item.memory_id] - values[item.context_id]


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_all_shares_add_up_to_the_logit_difference(name: str) -> None:
    """Heads are ours; embedding, MLPs and biases are taken from the model's own modules here."""
    model = world(name)
    body = anatomy.find(model)
    weight: Any = body.unembed.weight
    ours = attribution(model, items()).sum((1, 2))
    for number, item in enumerate(items()):
        clean = seen(model, item.ids)
        rest = embedded(model, item)
        for layer, mlp in enumerate(body.mlps):
            out = clean[mlp][1]
            out = out.reshape(1, -1, body.width)[:, -1:]
            own = "post_mlp" if name == "glm4" else "post_feedforward"
            behind: Any = getattr(body.layers[layer], f"{own}_layernorm", None)
            rest = rest + body.residual_scale * (out if behind is None else behind(out))
            bias: Any = getattr(body.outputs[layer], "bias", None)
            rest = rest if bias is None else rest + body.residual_scale * bias
        norm = frozen(body.norm, clean[body.norm][0][:, -1:])
        toward = weight[item.memory_id] - weight[item.context_id]
        toward = toward / getattr(model.config, "logits_scaling", 1.0)
        total = ours[number] + norm(rest)[0, 0] @ toward
        torch.testing.assert_close(total, difference(model, item), atol=5e-4, rtol=5e-4)
    assert float(ours.abs().max()) > 0.05


def embedded(model: Any, item: Any) -> torch.Tensor:
    """`[1, 1, width]`: what enters the first layer at the last position."""
    kept: list[torch.Tensor] = []
    hook = (
        anatomy.find(model)
        .layers[0]
        .register_forward_pre_hook(
            lambda _, given, named: kept.append(given[0] if given else named["hidden_states"]),
            with_kwargs=True,
        )
    )
    logits(model, item.ids)
    hook.remove()
    return kept[0][:, -1:]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "gemma2", "olmo2", "granite", "opt"])
def test_a_share_is_what_is_lost_without_the_head(name: str) -> None:
    """Against whole forwards in which all else is held, norms' scales included."""
    model = world(name)
    item = items(1)[0]
    clean = seen(model, item.ids)
    ours = attribution(model, [item])[0]
    before = difference(model, item)
    for layer in range(2):
        for head in range(4):
            with frozen_world(model, clean, (layer, head), 0.0):
                lost = before - difference(model, item)
            torch.testing.assert_close(ours[layer, head], lost, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_ignoring_the_norm_is_the_papers_product(name: str) -> None:
    model = world(name)
    body = anatomy.find(model)
    item = items(1)[0]
    clean = seen(model, item.ids)
    ours = attribution(model, [item], norm="ignored")[0]
    weight: Any = body.unembed.weight
    toward = weight[item.memory_id] - weight[item.context_id]
    for layer, output in enumerate(body.outputs):
        matrix: Any = output.weight if name == "gpt2" else output.weight.T  # type: ignore[union-attr]
        for head in range(4):
            part = body.slice_of(head)
            expected = clean[output][0][0, -1, part] @ matrix[part] @ toward
            torch.testing.assert_close(ours[layer, head], expected, atol=1e-4, rtol=1e-4)


def test_atlas_is_read_alike_alone_and_in_a_batch() -> None:
    model, found = atlas()
    assert len({len(item.ids) for item in found}) > 1
    calls: list[tuple[int, int]] = []
    together = attribution(model, found, progress=lambda *done: calls.append(done))
    alone = torch.cat([attribution(model, [item]) for item in found])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert calls[-1] == (len(found), len(found))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_of_numbers_are_read_too(name: str, dtype: torch.dtype) -> None:
    ours = attribution(copy.deepcopy(world(name)).to(dtype), items())
    assert ours.dtype == torch.float32
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(ours, attribution(world(name), items()), atol=tolerance, rtol=0.0)


def test_layers_that_normalise_between_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="does not add its attention and its MLP"):
        attribution(world("opt-350m"), items())


def test_attention_that_hands_on_the_stream_is_refused() -> None:
    import transformers as hf

    config = hf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    model = shaken(hf.AutoModelForCausalLM.from_config(config).eval())
    with pytest.raises(UnsupportedError, match="returns something else than its output projection"):
        attribution(model, items())


def test_a_layer_that_shifts_the_stream_is_refused() -> None:
    model = copy.deepcopy(world("llama"))
    model.model.layers[1].register_forward_hook(lambda _, __, out: out * 1.01)
    with pytest.raises(UnsupportedError, match="layer 1 does not add"):
        attribution(model, items())


def test_logits_that_are_made_in_another_way_are_refused() -> None:
    model = copy.deepcopy(world("llama"))
    model.lm_head.register_forward_hook(lambda _, __, out: out * 1.5)
    with pytest.raises(UnsupportedError, match="not the unembedding of its final norm"):
        attribution(model, items())


def test_wrong_calls() -> None:
    with pytest.raises(EmptyInputError, match="no item"):
        attribution(world("llama"), [])
    with pytest.raises(InvalidParameterError, match="norm must be"):
        attribution(world("llama"), items(), norm="none")  # type: ignore[arg-type]
