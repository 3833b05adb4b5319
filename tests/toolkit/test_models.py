"""Loading what works and refusing what cannot, with one line that says what to type."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import conflictkit as ck
from conflictkit.errors import (
    InvalidParameterError,
    ModelLoadError,
    TokenizerError,
    UnknownNameError,
    UnsupportedError,
)
from tests.tiny import byte_tokenizer, llama

VOCAB = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    llama(VOCAB).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_a_folder_loads_through_transformers(folder):
    model = ck.load(folder)
    assert model.name == str(folder)
    assert not model.model.training
    ids = torch.tensor([[0, 5, 6]])
    assert torch.equal(model.model(ids).logits, llama(VOCAB)(ids).logits)
    half = ck.load(str(folder), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16


def test_loaded_objects_are_used_as_they_are():
    hf, tokenizer = llama(VOCAB), byte_tokenizer()
    model = ck.load(hf, tokenizer=tokenizer)
    assert model.model is hf
    assert model.tokenizer is tokenizer
    with pytest.raises(InvalidParameterError, match="pass it alone"):
        ck.load(hf, tokenizer=tokenizer, dtype="float32")
    with pytest.raises(TokenizerError, match="tokenizer="):
        ck.load(hf)


def test_a_misspelt_name_gets_the_nearest_one():
    with pytest.raises(UnknownNameError, match="did you mean 'atlas'"):
        ck.load("atlsa")


def test_a_hub_id_that_cannot_be_reached_is_one_line():
    with pytest.raises(ModelLoadError) as caught:
        ck.load("nobody/nothing")
    assert "could not load model 'nobody/nothing'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(ModelLoadError, match="could not load"):
        ck.load(tmp_path)


def test_a_tokenizer_without_pad_token_says_what_to_type(tmp_path):
    llama(VOCAB).save_pretrained(tmp_path)
    byte_tokenizer(pad=False).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="--pad-token '</s>'"):
        ck.load(tmp_path)
    assert ck.load(tmp_path, pad_token="</s>").tokenizer.pad_token_id == 1
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        ck.load(tmp_path, pad_token="<nope>")


def test_no_code_from_a_repository(folder):
    with pytest.raises(UnsupportedError, match="yourself"):
        ck.load(folder, trust_remote_code=True)


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(InvalidParameterError, match="dtype"):
        ck.load(folder, dtype="int3")


def test_encoder_decoder_models_are_refused():
    config = T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
    )
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        ck.load(T5ForConditionalGeneration(config), tokenizer=byte_tokenizer())
