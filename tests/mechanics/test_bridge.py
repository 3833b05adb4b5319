"""The same model in TransformerLens: equal head outputs, the original untouched."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.errors import InvalidParameterError, UnsupportedError
from conflictkit.interventions import HeadTap
from conflictkit.mechanics.bridge import bridge
from tests.anatomy import families
from tests.tiny import byte_tokenizer

FAMILIES = ("llama", "gpt2", "gpt-neox", "gemma2", "qwen3")


def _state(model: Any) -> tuple[list[str], list[str]]:
    return list(model.state_dict()), [type(one).__name__ for one in model.modules()]


def _compare(model: Any, tokenizer: Any, ids: torch.Tensor) -> None:
    """Head outputs within 1e-5 of the largest one; the model as it was, bit for bit."""
    before, kernel = _state(model), model.config._attn_implementation
    read = dict(vars(tokenizer).get("init_kwargs", {}))
    logits = model(ids).logits
    booted = bridge(model, tokenizer=tokenizer)
    tap = HeadTap()
    with tap.attach(model):
        model(ids)
    body = anatomy.find(model)
    own, cached = booted.run_with_cache(ids)
    for layer, output in enumerate(body.outputs):
        assert output is not None
        mine = tap.values[output].unflatten(-1, (body.heads, body.head_dim))
        theirs = cached[f"blocks.{layer}.attn.hook_z"]
        most = max(1.0, float(mine.abs().max()))  # float32: two kernels differ by their rounding
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5 * most)
    torch.testing.assert_close(own, logits, rtol=0, atol=1e-4)
    assert _state(model) == before
    assert model.config._attn_implementation == kernel
    assert torch.equal(model(ids).logits, logits)
    assert dict(vars(tokenizer).get("init_kwargs", {})) == read


@pytest.mark.parametrize("family", FAMILIES)
def test_head_outputs_are_the_same(family: str) -> None:
    pytest.importorskip("transformer_lens", reason="needs the extra lens")
    _compare(families.model(family), byte_tokenizer(), families.tokens())


def test_atlas_crosses_the_bridge() -> None:
    pytest.importorskip("transformer_lens", reason="needs the extra lens")
    model = ck.load("atlas")
    prompt = model.prompts("What is the capital of Poland?", "The capital of Poland is London.")
    _compare(model.model, model.tokenizer, torch.tensor([prompt["context"].ids]))
    booted = bridge(model)
    folded = next(booted.parameters())
    assert folded.data_ptr() != next(model.model.parameters()).data_ptr()
    assert not booted.training


def test_what_transformer_lens_does_not_know_is_said() -> None:
    pytest.importorskip("transformer_lens", reason="needs the extra lens")
    with pytest.raises(UnsupportedError, match="cannot bridge FalconForCausalLM: split_with_sizes"):
        bridge(families.model("falcon-40b"), tokenizer=byte_tokenizer())


def test_a_bare_model_needs_its_tokenizer() -> None:
    with pytest.raises(InvalidParameterError, match="pass tokenizer="):
        bridge(families.model("llama"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **named: Any) -> Any:
        if name.startswith("transformer_lens"):
            raise ImportError(name)
        return real(name, *args, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r'pip install "conflictkit\[lens\]"'):
        bridge(families.model("llama"), tokenizer=byte_tokenizer())
