"""What conflictkit takes for granted about transformers' attention interface, one test each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionMaskInterface, DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from conflictkit import _hf, _hf_attention, anatomy
from tests.anatomy import families

DISPATCHED = [name for name in families.CONFIGS if name not in families.UNDISPATCHED]


@pytest.mark.parametrize("name", families.CONFIGS)
def test_a_class_shows_whether_it_asks_the_interface(name: str) -> None:
    model = families.model(name)
    expected = None if name in families.UNDISPATCHED else model.config._attn_implementation
    for attention in anatomy.find(model).attentions:
        assert attention is not None
        assert _hf_attention.attention_name(attention) == expected


@pytest.mark.parametrize("name", DISPATCHED)
def test_what_the_config_names_is_looked_up_at_every_call(name: str) -> None:
    """By the attention modules and by the makers of masks, from one and the same config."""
    model = families.model(name)
    body = anatomy.find(model)
    ids = families.tokens()
    named = dict(vars(model.config))
    seen: list[tuple[Any, ...]] = []

    def noting(
        module: Any, query: Tensor, keys: int, mask: Any, causal: bool, attend: _hf_attention.Attend
    ) -> Any:
        seen.append((module, tuple(query.shape), keys, mask, causal))
        return attend(query, mask)

    with torch.no_grad():
        plain = model(ids).logits
        _hf_attention.lead_attention(model.config, noting)
        led = model(ids).logits
        _hf_attention.lead_attention(model.config, None)
        count = len(seen)
        after = model(ids).logits
    assert torch.equal(led, plain)
    assert torch.equal(after, plain)
    assert len(seen) == count
    assert [one[0] for one in seen] == list(body.attentions)
    assert all(one[1:3] == ((2, 4, 9, body.head_dim), 9) for one in seen)
    eager = model.config._attn_implementation == "eager"
    # Sliding windows narrower than the prompt always have a mask.
    assert all((one[3] is not None) == (eager or name in ("mistral",)) for one in seen)
    assert all(one[4] == (not eager) for one in seen)
    assert dict(vars(model.config)) == named


def test_without_a_mask_sdpa_hides_what_is_to_come_counted_from_the_first_token() -> None:
    module = torch.nn.Module()
    query, key, value = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    seen = torch.arange(4)[:, None] >= torch.arange(7)[None]
    for mask, new in ((seen, 4), (torch.ones(1, 7, dtype=torch.bool), 1)):
        short = query[:, :, :new]
        found, _ = sdpa_attention_forward(module, short, key, value, None, scaling=0.5)
        expected, _ = sdpa_attention_forward(module, short, key, value, mask, scaling=0.5)
        torch.testing.assert_close(found, expected)


def test_sdpa_masks_are_bool_and_eager_masks_are_numbers() -> None:
    given = {"batch_size": 1, "q_length": 3, "kv_length": 3, "dtype": torch.float16}
    masks = AttentionMaskInterface()
    assert masks["sdpa"](**given) is None
    assert masks["sdpa"](**given, allow_is_causal_skip=False).dtype == torch.bool
    eager = masks["eager"](**given)
    assert eager.dtype == torch.float16
    assert eager.min() == torch.finfo(torch.float16).min


def test_a_window_keeps_the_last_keys_and_counts_all() -> None:
    model = families.model("mistral")
    cache: Any = DynamicCache(config=model.config)
    with torch.no_grad():
        model(families.tokens(), past_key_values=cache)
    whole: Any = DynamicCache()
    with torch.no_grad():
        model(families.tokens(), past_key_values=whole)
    keys, everything = cache.layers[0].keys, whole.layers[0].keys
    assert keys.shape[-2] == 5 < everything.shape[-2] == 9
    assert torch.equal(keys, everything[:, :, -5:])
    assert _hf.seen_tokens(cache) == _hf.seen_tokens(whole) == 9


def test_a_static_cache_has_room_behind_and_counts_on_its_device() -> None:
    model = families.model("llama")
    cache: Any = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        model(families.tokens(), past_key_values=cache)
    keys, seen = cache.layers[0].keys, _hf.seen_tokens(cache)
    assert keys.shape[-2] == 12
    assert keys[:, :, :9].abs().amin(-1).gt(0).all()
    assert not keys[:, :, 9:].any()
    assert isinstance(seen, Tensor)
    assert int(seen) == 9
    before = seen + 0
    with torch.no_grad():
        model(families.tokens()[:, :1], past_key_values=cache)
    assert int(seen) == 10  # changed in place: whoever wants to keep it has to copy it
    assert int(before) == 9


def test_gpt2_has_a_road_of_its_own() -> None:
    attention = copy.deepcopy(families.model("gpt2").transformer.h[0].attn)
    attention.config._attn_implementation = "eager"
    assert _hf_attention.attention_name(attention) == "eager"
    attention.reorder_and_upcast_attn = True
    assert _hf_attention.attention_name(attention) == "eager with reorder_and_upcast_attn"
