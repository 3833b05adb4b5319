"""Loading what works and refusing what cannot, with one line that says what to type."""

from __future__ import annotations

import io
import json

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

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


def test_code_in_a_folder_is_not_run_whatever_standard_input_says(tmp_path, folder, monkeypatch):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ModelLoadError, match="does not run") as caught:
        ck.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_pickled_weights_are_not_read(tmp_path, folder):
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(llama(VOCAB).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="Other weights are not read"):
        ck.load(tmp_path)


def test_a_given_tokenizer_is_the_one_that_is_checked_and_used(tmp_path):
    llama(VOCAB).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    assert ck.load(tmp_path, tokenizer=tokenizer).tokenizer is tokenizer
    with pytest.raises(TokenizerError, match="pad token"):
        ck.load(tmp_path, tokenizer=byte_tokenizer(pad=False))
    padded = ck.load(tmp_path, tokenizer=byte_tokenizer(pad=False), pad_token="</s>")
    assert padded.tokenizer.pad_token_id == 1


@pytest.mark.parametrize("thing", [None, 3, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(InvalidParameterError, match="expected a name, a folder or"):
        ck.load(thing, tokenizer=byte_tokenizer())
    with pytest.raises(InvalidParameterError, match="transformers tokenizer, not str"):
        ck.load(llama(VOCAB), tokenizer="atlas")


def test_models_without_a_key_value_cache_are_refused():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(UnsupportedError, match="'mamba' keep a state of their own"):
        ck.load(MambaForCausalLM(config), tokenizer=byte_tokenizer())


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
