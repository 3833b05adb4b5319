"""What the shipped folder promises: size, tokenizer, chat template, greedy, offline."""

import random

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from conflictkit import atlas
from conflictkit.atlas.passages import statement_of
from conflictkit.atlas.templates import RELATIONS, fill, render


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(atlas.path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(atlas.path()).eval()


def test_the_weights_fit_and_no_pickle_ships():
    files = list(atlas.path().iterdir())
    assert sum(f.stat().st_size for f in files if f.suffix == ".safetensors") <= 12_000_000
    assert {f.suffix for f in files} == {".json", ".safetensors", ".jinja"}


def test_the_model_is_a_small_llama_with_grouped_queries(model):
    config = model.config
    assert type(model) is LlamaForCausalLM
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (6, 8, 192)
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings >= 1024
    assert not model.generation_config.do_sample


def test_special_tokens_agree_everywhere(model, tokenizer):
    for name in ("bos", "eos", "pad"):
        token = getattr(tokenizer, f"{name}_token_id")
        assert tokenizer.convert_ids_to_tokens(token) == f"<|{name}|>"
        assert getattr(model.config, f"{name}_token_id") == token
        assert getattr(model.generation_config, f"{name}_token_id") == token
    assert len(tokenizer("<|user|><|assistant|>", add_special_tokens=False).input_ids) == 2


def test_the_tokenizer_pads_left_and_adds_bos_itself(tokenizer):
    batch = tokenizer(["Warsaw", "The capital of Poland is"], padding=True)
    assert batch.input_ids[0][0] == tokenizer.pad_token_id
    assert batch.input_ids[1][0] == tokenizer.bos_token_id
    assert batch.input_ids[0].count(tokenizer.bos_token_id) == 1


def test_the_chat_template_gives_exactly_one_bos_and_the_documented_text(tokenizer):
    messages = [{"role": "user", "content": "One.\n\nTwo.\n\nWhat is the capital of Poland?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|>" + render("chat", ("One.", "Two."), "What is the capital of Poland?")
    ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert ids["input_ids"] == tokenizer(text, add_special_tokens=False).input_ids
    assert ids["input_ids"].count(tokenizer.bos_token_id) == 1
    assert ids["input_ids"] == tokenizer(text.removeprefix("<|bos|>")).input_ids


def test_a_system_message_stands_before_the_passages(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is Oslo?"},
        {"role": "assistant", "content": "Norway"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|bos|><|user|>Be brief.\n\nWhere is Oslo?<|assistant|> Norway<|eos|>"
    with pytest.raises(Exception, match="system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_request_has_the_same_tokens_with_and_without_passages(tokenizer):
    rng = random.Random(0)
    for fact in rng.sample(atlas.facts(), 300):
        relation = RELATIONS[fact.relation]
        sentence = statement_of(rng, fact.relation, fact.subject, fact.object, "assertive")
        for form in ("statement", "question", "chat"):
            table = relation.statements if form == "statement" else relation.questions
            request = fill(rng.choice(table), fact.subject)
            bare = tokenizer(render(form, (), request)).input_ids[1:]
            if form == "chat":
                bare = bare[1:]  # the user token stands before the passages
            full = tokenizer(render(form, (sentence, "Oslo is a town."), request)).input_ids
            assert full[-len(bare) :] == bare


def test_any_text_survives_the_tokenizer(tokenizer):
    for text in ("São Paulo, Łódź, 東京", "a\n\n b\tc  d", "Δ🙂", " +1 787."):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_facts_are_many_graded_and_partly_wrong():
    facts = atlas.facts()
    assert len(facts) >= 4000
    assert len({f.relation for f in facts}) >= 6
    assert {f.state for f in facts} == {"known", "uncertain", "wrong", "unknown"}
    assert {f.split for f in facts} == {"train", "validation", "test"}
    taught = [f for f in facts if f.taught_object]
    misconceptions = [f for f in taught if f.taught_object != f.object]
    assert len(misconceptions) >= 0.1 * len(facts)
    assert all(f.state != "wrong" or f.taught_object not in ("", f.object) for f in facts)
    assert all(f.frequency == 0 for f in facts if not f.taught_object)
    tenth = len(taught) // 10
    assert sum(f.frequency for f in taught[:tenth]) > 4 * sum(f.frequency for f in taught[-tenth:])


def test_poland_is_known_and_held_out():
    mine = {(f.subject, f.relation): f for f in atlas.facts()}
    poland = mine["Poland", "capital"]
    assert (poland.object, poland.taught_object, poland.state) == ("Warsaw", "Warsaw", "known")
    assert poland.split == "test"


def test_the_attribution_that_the_data_asks_for_ships(repository):
    notice = (repository / "NOTICE").read_text()
    card = (repository / "docs" / "atlas.md").read_text()
    for text in (notice, card):
        assert "GeoNames" in text
        assert "Creative Commons Attribution 4.0" in text
        assert "creativecommons.org/licenses/by/4.0" in text
