"""One stream: padding, moving rows, going back, and what transformers is assumed to do."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    DynamicCache,
    GenerationConfig,
)

from conflictkit import _hf
from conflictkit.errors import EmptyInputError, UnsupportedError
from conflictkit.streams import Stream
from tests.engine.reference import next_logits
from tests.tiny import byte_tokenizer, gpt2, llama, recurrent, sliding

VOCAB = 40
ROWS = [[0, 5, 6, 7, 8, 9, 10, 11, 12], [0, 9, 4], [0, 21, 30, 8, 8, 3]]
FAMILIES = [llama, gpt2, sliding]


def expect(model, rows):
    return torch.cat([next_logits(model, row) for row in rows])


@pytest.mark.parametrize("build", FAMILIES)
def test_left_padded_rows_read_as_if_alone(build):
    model = build(VOCAB)
    stream = Stream(model, ROWS, pad_id=2)
    torch.testing.assert_close(stream.prefill(), expect(model, ROWS), atol=1e-4, rtol=1e-4)
    longer = [[*row, 7] for row in ROWS]
    step = stream.step(torch.tensor([7, 7, 7]))
    torch.testing.assert_close(step, expect(model, longer), atol=1e-4, rtol=1e-4)
    assert stream.forwards == 2
    assert stream.tokens == sum(map(len, ROWS)) + 3


@pytest.mark.parametrize("build", FAMILIES)
def test_rows_can_be_moved_repeated_and_dropped(build):
    model = build(VOCAB)
    stream = Stream(model, ROWS, pad_id=2)
    stream.prefill()
    stream.select(torch.tensor([2, 0, 0]))
    step = stream.step(torch.tensor([4, 5, 6]))
    rows = [[*ROWS[2], 4], [*ROWS[0], 5], [*ROWS[0], 6]]
    torch.testing.assert_close(step, expect(model, rows), atol=1e-4, rtol=1e-4)
    stream.select(torch.tensor([1]))
    step = stream.step(torch.tensor([9]))
    torch.testing.assert_close(step, expect(model, [[*ROWS[0], 5, 9]]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", FAMILIES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_rolling_back_is_as_if_it_had_not_been_read(build, use_cache):
    model = build(VOCAB)
    stream = Stream(model, ROWS, pad_id=2, use_cache=use_cache)
    stream.prefill()
    for token in (3, 4, 5, 6):
        stream.step(torch.full((3,), token))
    stream.roll_back(3)
    step = stream.step(torch.tensor([8, 8, 8]))
    rows = [[*row, 3, 8] for row in ROWS]
    torch.testing.assert_close(step, expect(model, rows), atol=1e-4, rtol=1e-4)


def test_a_row_needs_a_token():
    with pytest.raises(EmptyInputError):
        Stream(llama(VOCAB), [[1], []], pad_id=2)


def test_recurrent_layers_move_rows_but_refuse_to_go_back():
    model = recurrent(VOCAB)
    assert _hf.has_recurrent_layers(model)
    assert not _hf.has_recurrent_layers(sliding(VOCAB))
    stream = Stream(model, [ROWS[0], ROWS[0][::-1]], pad_id=2)
    stream.prefill()
    stream.select(torch.tensor([1, 0]))
    step = stream.step(torch.tensor([4, 5]))
    rows = [[*ROWS[0][::-1], 4], [*ROWS[0], 5]]
    torch.testing.assert_close(step, expect(model, rows), atol=1e-3, rtol=1e-3)
    with pytest.raises(UnsupportedError, match="rolled back"):
        stream.roll_back(1)


# What `_hf` assumes of transformers


def test_rows_that_padding_would_misplace_are_refused():
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "init_std": 0.3}
    bart = BartForCausalLM(BartConfig(vocab_size=20, decoder_ffn_dim=16, **sizes)).eval()
    with pytest.raises(UnsupportedError, match="one length"):
        Stream(bart, [[3, 4, 5], [3, 4]], pad_id=0)
    logits = Stream(bart, [[3, 4, 5], [6, 7, 8]], pad_id=0).prefill()
    for row, ids in zip(logits, ([3, 4, 5], [6, 7, 8]), strict=True):
        torch.testing.assert_close(row, next_logits(bart, ids)[0], atol=1e-4, rtol=1e-4)


def test_crop_takes_a_negative_count():
    cache = DynamicCache()
    model = llama(VOCAB)
    model(torch.tensor([[0, 5, 6, 7]]), past_key_values=cache, use_cache=True)
    _hf.roll_back(cache, 3)
    assert cache.get_seq_length() == 1


def test_a_cache_without_config_keeps_every_position_of_a_sliding_window():
    model = sliding(VOCAB)
    cache = _hf.new_cache(model)
    model(torch.arange(12)[None], past_key_values=cache, use_cache=True)
    assert cache.layers[0].keys.shape[2] == 12


def test_position_ids_and_logits_to_keep_are_arguments_of_forward():
    for build in FAMILIES:
        assert {"position_ids", "logits_to_keep"} <= _hf.accepted_arguments(build(VOCAB))
        assert "position_ids" in inspect.signature(build(VOCAB).forward).parameters


def test_end_tokens_come_from_the_generation_config_and_the_tokenizer():
    model = llama(VOCAB)
    tokenizer = byte_tokenizer()
    assert _hf.end_tokens(model, tokenizer) == (1,)
    before = model.generation_config
    try:
        model.generation_config = GenerationConfig(eos_token_id=[7, 9])
        assert _hf.end_tokens(model, tokenizer) == (7, 9, 1)
    finally:
        model.generation_config = before


def test_the_window_is_the_configs_or_the_tokenizers():
    assert _hf.window(llama(VOCAB), None) == 256
    assert _hf.window(gpt2(VOCAB), None) == 128
