"""Heads are where the anatomy says: against attention recomputed with one head scaled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.interventions import HeadScale
from tests.anatomy.families import CONFIGS, UNDISPATCHED, model, tokens

FACTOR = -1.7


def eager(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **rest: Any):
    """Attention by the definition, `[batch, heads, query, key]` written out in float64."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1).double() for one in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * scaling
    if (cap := rest.get("softcap")) is not None:
        scores = (scores / cap).tanh() * cap
    probabilities = (scores + mask[..., : key.shape[-2]]).softmax(-1)
    out = probabilities @ value
    wanted = module.__dict__.get("scaled_head")
    if wanted is not None:
        out = out.clone()
        out[:, wanted] *= FACTOR
    return out.transpose(1, 2).to(query.dtype).contiguous(), probabilities


@contextmanager
def head_scaled(name: str, layer: int, head: int) -> Iterator[None]:
    """The model with one head's output scaled inside its attention, at the explicit head axis."""
    hf = model(name)
    attention = anatomy.find(hf).attentions[layer]
    assert attention is not None
    if name in UNDISPATCHED:
        plain = functional.scaled_dot_product_attention
        calls = {"n": -1}

        def patched(*arguments: Any, **named: Any) -> Any:
            calls["n"] += 1
            out = plain(*arguments, **named)
            if calls["n"] % len(anatomy.find(hf).layers) == layer:
                out = out.clone()
                out[:, head] *= FACTOR
            return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(functional, "scaled_dot_product_attention", patched)
            yield
        return
    before = hf.config._attn_implementation
    AttentionInterface.register("by-definition", eager)
    AttentionMaskInterface.register("by-definition", eager_mask)
    hf.set_attn_implementation("by-definition")
    attention.__dict__["scaled_head"] = head
    try:
        yield
    finally:
        del attention.__dict__["scaled_head"]
        hf.set_attn_implementation(before)


def logits(name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(name)(tokens()).logits


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layer", [0, 1])
def test_scaling_a_head_is_attention_with_its_output_scaled(name: str, layer: int) -> None:
    plain = logits(name)
    for head in range(4):
        with head_scaled(name, layer, head):
            expected = logits(name)
        with ck.interventions.HeadScale({(layer, head): FACTOR}).attach(model(name)):
            scaled = logits(name)
        assert (scaled - plain).abs().max() > 0.01
        torch.testing.assert_close(scaled, expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(logits(name), plain)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_factor_of_one_is_bit_identical(name: str) -> None:
    plain = logits(name)
    heads = anatomy.find(model(name)).names()
    with ck.interventions.HeadScale(dict.fromkeys(heads, 1.0)).attach(model(name)) as handle:
        idle = logits(name)
    assert torch.equal(idle, plain)
    assert handle.edits == 0
    # One head at 0 beside: all others are multiplied, by exactly 1.
    with ck.interventions.HeadScale({(0, 0): 1.0, (1, 1): [1.0, 0.0]}).attach(model(name)):
        half = logits(name)
    assert torch.equal(half[0], plain[0])
    assert not torch.equal(half[1], plain[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_all_heads_off_leave_the_bias_of_the_projection(name: str) -> None:
    hf = model(name)
    body = anatomy.find(hf)
    seen = []
    assert body.outputs[1] is not None
    hook = body.outputs[1].register_forward_hook(lambda _, __, out: seen.append(out))
    with ck.interventions.HeadScale({(1, head): 0.0 for head in range(4)}).attach(hf):
        logits(name)
    hook.remove()
    bias = getattr(body.outputs[1], "bias", None)
    expected = torch.zeros_like(seen[0]) if bias is None else bias.expand_as(seen[0])
    torch.testing.assert_close(seen[0], expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_parts(name: str) -> None:
    hf = model(name)
    body = anatomy.find(hf)
    assert (len(body.layers), body.heads) == (2, 4)
    wide = name in ("qwen3", "gemma2", "gemma3", "qwen3-moe", "glm4")
    assert body.head_dim == (16 if wide else 8)
    assert body.width == hf.config.hidden_size
    assert body.kv_heads == {"falcon-7b": 1}.get(name, 4 if _alone(name) else 2)
    assert body.residual_scale == (0.5 if name == "granite" else 1.0)
    assert body.parallel == (name in ("gpt-neox", "falcon-7b", "falcon-40b"))
    assert (body.attention_norms[0] is not None) == (name in ("gemma2", "gemma3", "olmo2", "glm4"))
    # The final norm is what the unembedding reads, and the MLP the last to write.
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, word=word: order.append(word))
        for word, module in (
            ("attention", body.outputs[1]), ("mlp", body.mlps[1]), ("layer", body.layers[1]),
            ("norm", body.norm), ("unembed", body.unembed),
        )
        if module is not None
    ]  # fmt: skip
    logits(name)
    for hook in hooks:
        hook.remove()
    assert order == ["attention", "mlp", "layer", "norm", "unembed"]


def _alone(name: str) -> bool:
    return name in ("gpt2", "gpt-neox", "opt")


def test_an_unknown_architecture_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hf = _renamed()
    with pytest.raises(ck.ConflictKitError, match="its output cannot be found") as error:
        anatomy.find(hf)
    typed = "conflictkit.anatomy.LAYOUTS['llama'] = conflictkit.anatomy.Layout(output='mixer_out')"
    assert typed in str(error.value)
    monkeypatch.setitem(anatomy.LAYOUTS, "llama", anatomy.Layout(output="mixer_out"))
    assert anatomy.find(hf).outputs[0] is hf.model.layers[0].self_attn.mixer_out


STRANGE: dict[str, Any] = {
    "xglm": lambda: transformers.XGLMConfig(
        vocab_size=64, d_model=32, num_layers=2, attention_heads=4, ffn_dim=64
    ),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64,
        attention_types=[[["global"], 2]],
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, layer_types=["full_attention"] * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_what_the_error_says_can_be_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(STRANGE[name]()).eval()
    monkeypatch.setattr(anatomy, "LAYOUTS", dict(anatomy.LAYOUTS))
    known: dict[str, Any] = {}
    body = None
    while body is None:
        try:
            body = anatomy.find(hf)
        except ck.ConflictKitError as error:
            said = str(error)
            found = re.search(r"LAYOUTS\['(\w+)'\] = .*?Layout\((\w+)='([^']+)'\)", said)
            if found is None or found[2] in known:
                pytest.fail(f"{known} were typed as it says, and now: {said}")
            known[found[2]] = found[3]
            anatomy.LAYOUTS[found[1]] = anatomy.Layout(**known)
    assert known
    # And what is found there is the head: scaled by its own output projection.
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = hf(ids).logits
    with HeadScale({(1, 2): 0.0}).attach(hf), torch.no_grad():
        assert not torch.equal(hf(ids).logits, plain)
    assert body.heads * body.head_dim == 32


def _renamed() -> Any:
    import copy

    hf = copy.deepcopy(model("llama"))
    for layer in hf.model.layers:
        layer.self_attn.mixer_out = layer.self_attn.o_proj
        del layer.self_attn.o_proj
    return hf


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        (anatomy.Layout(layers="model.nothing"), "layers"),
        (anatomy.Layout(layers="model.norm"), "layers"),
        (anatomy.Layout(attention="nothing"), "attention"),
        (anatomy.Layout(output="nothing"), "output"),
        (anatomy.Layout(output="rotary_emb"), "output"),
        (anatomy.Layout(mlp="nothing"), "mlp"),
        (anatomy.Layout(norm="model.nothing"), "norm"),
        (anatomy.Layout(heads=5), "heads"),
    ],
)
def test_a_wrong_layout_is_refused(
    layout: anatomy.Layout, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(anatomy.LAYOUTS, "llama", layout)
    with pytest.raises(ck.ConflictKitError, match=f"its {part} cannot be found"):
        anatomy.find(model("llama"))
