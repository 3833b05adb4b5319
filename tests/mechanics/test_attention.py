"""Attention mass against models built to write their attention out, and the released score."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from conflictkit.errors import EmptyInputError, InvalidParameterError, UnsupportedError
from conflictkit.mechanics.attention import attention_mass, contextual_score
from conflictkit.mechanics.items import Item
from tests.anatomy.families import CONFIGS
from tests.golden import mechanistic
from tests.mechanics.worlds import atlas, items, logits, world


def eager(name: str) -> Any:
    """The same weights in a model that was eager from the start."""
    config = copy.deepcopy(world(name).config)
    made = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    made.load_state_dict(world(name).state_dict())
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_mass_is_that_of_a_model_that_writes_its_attention_out(name: str) -> None:
    model = world(name)
    way = model.config._attn_implementation
    assert way == ("eager" if name == "gemma2" else "sdpa")
    before = logits(model, items()[0].ids)
    answers = [(5, 6), (7,), (8, 9, 10)]
    at_end, over_answer = (
        attention_mass(model, items()),
        attention_mass(model, items(), answers=answers),
    )
    assert model.config._attn_implementation == way
    assert torch.equal(logits(model, items()[0].ids), before)
    reference = eager(name)
    for row, item in enumerate(items()):
        ids = torch.tensor([[*item.ids, *answers[row]]])
        with torch.no_grad():
            layers = torch.stack(reference(ids, output_attentions=True).attentions)[:, 0]
        mass = layers[..., slice(*item.span)].sum(-1)
        end = len(item.ids)
        torch.testing.assert_close(at_end[row], mass[..., end - 1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(over_answer[row], mass[..., end:].mean(-1), atol=1e-5, rtol=1e-4)


def test_the_released_score(shared: Path) -> None:
    golden = mechanistic(shared, "focus_contextual_score.npz")
    for case in range(int(golden["n_cases"])):
        get = {name: golden[f"c{case}/{name}"] for name in ("attn", "span", "response", "score")}
        span, read_at = (tuple(get[name].tolist()) for name in ("span", "response"))
        ours = contextual_score(torch.from_numpy(get["attn"]), span, read_at)
        np.testing.assert_allclose(ours.numpy(), get["score"], atol=1e-6)


def test_atlas_is_read_alike_alone_and_in_a_batch() -> None:
    model, found = atlas()
    answers = [(30,), (31, 32), (33, 34, 35)]
    together = attention_mass(model, found, answers=answers)
    alone = [attention_mass(model, found[n : n + 1], answers=[answers[n]]) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_of_numbers_are_read_too(dtype: torch.dtype) -> None:
    ours = attention_mass(copy.deepcopy(world("llama")).to(dtype), items())
    assert ours.dtype == torch.float32
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    expected = attention_mass(world("llama"), items())
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0.0)


def test_the_model_is_left_as_it_was_after_a_failure() -> None:
    model = copy.deepcopy(world("llama"))

    def stop(*_: int) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        attention_mass(model, items(), progress=stop)
    assert model.config._attn_implementation == "sdpa"
    assert all(
        layer.self_attn.config._attn_implementation == "sdpa" for layer in model.model.layers
    )
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_that_keeps_its_probabilities_is_refused() -> None:
    model = copy.deepcopy(world("llama"))
    model.model.layers[1].self_attn.register_forward_hook(lambda _, __, out: (out[0], None))
    with pytest.raises(UnsupportedError, match="layer 1 does not return its probabilities"):
        attention_mass(model, items())


def test_wrong_calls() -> None:
    model = world("llama")
    with pytest.raises(EmptyInputError, match="no item"):
        attention_mass(model, [])
    for answers in ([(5,)], [(5,), (), (6,)]):
        with pytest.raises(InvalidParameterError, match="answers must hold"):
            attention_mass(model, items(), answers=answers)
    with pytest.raises(InvalidParameterError, match="span"):
        attention_mass(model, [Item((5, 6, 7), 41, 20, (1, 4))])
    with pytest.raises(InvalidParameterError, match="span"):
        contextual_score(torch.rand(2, 5, 5), (3, 3), (0, 5))
    with pytest.raises(InvalidParameterError, match="read_at"):
        contextual_score(torch.rand(2, 5, 5), (0, 3), (2, 6))
