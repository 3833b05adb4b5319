"""The face on a tiny random model: what is asked is what the engine is given."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit import methods
from conflictkit.errors import (
    ContextTooLongError,
    EmptyInputError,
    InvalidParameterError,
    UnknownNameError,
)
from tests.engine import reference
from tests.tiny import byte_tokenizer, llama

VOCAB = 300
QUESTIONS = ["Who?", "What is it that they said?", "Why so?"]
CONTEXTS = ["Nobody knows.", None, ["Because.", "For no reason at all."]]


@pytest.fixture(scope="module")
def model():
    return ck.load(llama(VOCAB), tokenizer=byte_tokenizer())


def by_brute_force(model, question, context, method, n):
    made = model.prompts(question, context)
    memory = made["memory"].ids
    rule = methods.parse(method)
    ids = reference.greedy(
        model.model, rule, made.get("context", made["memory"]).ids, memory, n, {1}
    )
    return model.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("method", ["adacad", "cad?alpha=2", "plain", "memory", "grd"])
def test_ask_is_the_brute_force_answer_alone_and_in_a_batch(model, method):
    expected = [
        by_brute_force(model, question, context, method if context else "plain", 10)
        for question, context in zip(QUESTIONS, CONTEXTS, strict=True)
    ]
    batch = model.ask_batch(QUESTIONS, CONTEXTS, method, max_new_tokens=10)
    alone = [
        model.ask(question, context, method, max_new_tokens=10)
        for question, context in zip(QUESTIONS, CONTEXTS, strict=True)
    ]
    assert [answer.text for answer in batch] == expected
    assert [answer.text for answer in alone] == expected
    assert [answer.method for answer in batch] == [method.split("?")[0], "memory"] + [
        method.split("?")[0]
    ]


def test_compare_adds_both_sources(model):
    answer = model.ask(QUESTIONS[0], CONTEXTS[0], "cad", alpha=3.0, max_new_tokens=8, compare=True)
    assert answer.text == by_brute_force(model, QUESTIONS[0], CONTEXTS[0], "cad?alpha=3", 8)
    assert answer.plain_answer == by_brute_force(model, QUESTIONS[0], CONTEXTS[0], "plain", 8)
    assert answer.memory_answer == by_brute_force(model, QUESTIONS[0], None, "plain", 8)
    assert answer.params == {"alpha": 3.0, "variant": "mended"}
    assert answer.trace.plain_answer == answer.plain_answer
    assert answer.trace.memory_answer == answer.memory_answer
    closed = model.ask(QUESTIONS[0], compare=True, max_new_tokens=8)
    assert closed.text == closed.memory_answer == answer.memory_answer
    assert closed.plain_answer is None
    assert closed.stats.context_tokens == 0


def test_the_dictionary_is_strict_json_with_the_promised_keys(model):
    data = model.ask(QUESTIONS[0], CONTEXTS[0], max_new_tokens=4, compare=True).to_dict()
    again = json.loads(json.dumps(data, allow_nan=False))
    assert {
        "model",
        "method",
        "params",
        "question",
        "context",
        "answer",
        "plain_answer",
        "memory_answer",
        "tokens",
        "stats",
    } <= set(again)
    assert set(again["stats"]) == {
        "forwards", "context_tokens", "memory_tokens", "edits", "passes", "road", "drafted",
        "accepted",
    }  # fmt: skip
    assert {
        "text",
        "id",
        "scores",
        "context_weight",
        "memory_weight",
        "context_top",
        "memory_top",
    } <= set(again["tokens"][0])
    assert again["context"] == [CONTEXTS[0]]
    assert {"jsd", "confidence_gain", "alpha"} <= set(again["tokens"][0]["scores"])


@pytest.mark.parametrize("method", ["plain", "memory"])
def test_what_is_read_for_the_trace_alone_changes_nothing_and_is_not_counted(model, method):
    from transformers import RepetitionPenaltyLogitsProcessor

    reads = []
    hook = model.model.register_forward_pre_hook(lambda *_: reads.append(1))
    options: dict[str, Any] = {"max_new_tokens": 4}
    if method == "plain":
        options["processors"] = [RepetitionPenaltyLogitsProcessor(5.0)]
    try:
        answer = model.ask(QUESTIONS[0], CONTEXTS[0], method, trace=False, **options)
        assert len(reads) == answer.stats.forwards == 4
        assert answer.trace is None
        traced = model.ask(QUESTIONS[0], CONTEXTS[0], method, **options)
        # Another prompt, and no further pass over the weights behind it.
        assert len(reads) == 4 + 1 + 4
    finally:
        hook.remove()
    assert traced.stats == answer.stats
    assert 0 in (answer.stats.memory_tokens, answer.stats.context_tokens)
    assert traced.text == answer.text
    assert "jsd" in traced.trace.tokens[0].scores


def test_a_detector_keeps_its_name_beside_a_rules_own_score(model):
    scores = ["confidence-gain", "context-entropy"]
    options = {"max_new_tokens": 3, "scores": scores}
    plain = model.ask(QUESTIONS[0], CONTEXTS[0], "plain", **options).trace.tokens[0].scores
    plug = model.ask(QUESTIONS[0], CONTEXTS[0], "ck-plug", **options).trace.tokens[0].scores
    assert {name: plug[name] for name in plain} == plain
    assert plug["confidence_gain_kept"] != plug["confidence_gain"]


def test_closed_book_keeps_the_scores_of_memory(model):
    answer = model.ask(QUESTIONS[0], None, scores=["memory-entropy", "jsd"], max_new_tokens=2)
    assert set(answer.trace.tokens[0].scores) == {"memory_entropy"}


def test_a_row_of_a_mixed_batch_draws_from_the_seed_of_its_place(model):
    options = {"max_new_tokens": 6, "temperature": 1.0}
    batch = model.ask_batch(QUESTIONS, CONTEXTS, seed=4, **options)
    for place, answer in enumerate(batch):
        alone = model.ask(QUESTIONS[place], CONTEXTS[place], seed=4 + place, **options)
        assert answer.text == alone.text
    seeds = model.ask_batch(QUESTIONS, CONTEXTS, seed=[4, 5, 6], **options)
    assert [answer.text for answer in seeds] == [answer.text for answer in batch]


def test_the_tokens_of_a_trace_are_the_answer_even_when_a_stop_text_cuts_it(model):
    whole = model.ask(QUESTIONS[0], CONTEXTS[0], "plain", max_new_tokens=30).text
    stop = whole[9:11]
    answer = model.ask(QUESTIONS[0], CONTEXTS[0], "plain", max_new_tokens=30, stop=stop)
    assert "".join(token.text for token in answer.trace.tokens) == answer.trace.answer
    assert answer.trace.answer.strip() == answer.text
    assert answer.trace.tokens[-1].kind == "stop"


def test_a_stream_is_the_answer_in_pieces(model):
    for seed in range(5):
        options = {"max_new_tokens": 30, "temperature": 1.5, "seed": seed}
        whole = model.ask(QUESTIONS[0], CONTEXTS[0], **options)
        stream = model.stream(QUESTIONS[0], CONTEXTS[0], **options)
        pieces = list(stream)
        assert "".join(pieces) == whole.text
        assert len(pieces) > 1
        assert stream.answer == whole


def test_a_stream_never_shows_what_a_stop_text_takes_back(model):
    whole = model.ask(QUESTIONS[0], CONTEXTS[0], "plain", max_new_tokens=40).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 5]
    answer = model.ask(QUESTIONS[0], CONTEXTS[0], "plain", max_new_tokens=40, stop=stop)
    assert answer.text == whole[: whole.index(stop)].strip()
    assert answer.finish_reason == "stop"
    pieces = list(model.stream(QUESTIONS[0], CONTEXTS[0], "plain", max_new_tokens=40, stop=[stop]))
    assert "".join(pieces) == answer.text


def test_errors_of_a_stream_come_before_the_first_piece(model):
    with pytest.raises(UnknownNameError, match="did you mean 'adacad'"):
        model.stream(QUESTIONS[0], CONTEXTS[0], "adcad")
    with pytest.raises(InvalidParameterError, match="n at 1"):
        model.stream(QUESTIONS[0], CONTEXTS[0], temperature=1.0, n=2)


def test_several_answers_of_one_question(model):
    answer = model.ask(QUESTIONS[0], CONTEXTS[0], max_new_tokens=6, temperature=1.0, seed=3, n=3)
    texts = [answer.text, *(other.text for other in answer.alternatives)]
    singles = [
        model.ask(QUESTIONS[0], CONTEXTS[0], max_new_tokens=6, temperature=1.0, seed=3 + i).text
        for i in range(3)
    ]
    assert texts == singles
    beams = model.ask(QUESTIONS[0], CONTEXTS[0], max_new_tokens=6, num_beams=3, n=3)
    scores = [beams.score, *(other.score for other in beams.alternatives)]
    assert len({beams.text, *(other.text for other in beams.alternatives)}) == 3
    assert scores == sorted(scores, reverse=True)


def test_a_context_that_does_not_fit_is_an_error_or_cut(model):
    long = "word " * 100
    with pytest.raises(ContextTooLongError, match="window leaves 246"):
        model.ask(QUESTIONS[0], long, max_new_tokens=10)
    cut = model.ask(QUESTIONS[0], long, max_new_tokens=10, truncate=True)
    assert cut.stats.context_tokens <= 256
    assert cut.to_dict()["truncated"] is True
    assert model.ask(QUESTIONS[0], "word", max_new_tokens=10, truncate=True).truncated is False
    with pytest.raises(InvalidParameterError, match="no room"):
        model.ask(QUESTIONS[0], None, max_new_tokens=256)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "adcad"}, UnknownNameError, "did you mean 'adacad'"),
        ({"method": "cad", "alhpa": 1}, UnknownNameError, "alpha"),
        ({"method": "cad", "alpha": float("nan")}, InvalidParameterError, "alpha"),
        ({"method": "cad?alpha=-1"}, InvalidParameterError, "alpha"),
        ({"scores": ["jds"]}, UnknownNameError, "did you mean 'jsd'"),
        ({"max_new_tokens": 0}, InvalidParameterError, "max_new_tokens"),
        ({"temprature": 0.5}, UnknownNameError, "did you mean 'temperature'"),
        ({"method": "plain", "alpha": 0.5}, UnknownNameError, "alpha"),
        ({"scores": "jsd"}, InvalidParameterError, "scores must be a list"),
        ({"scores": None}, InvalidParameterError, "scores must be a list"),
        ({"top": 0}, InvalidParameterError, "top must be"),
        ({"processors": [3]}, InvalidParameterError, "processors holds int"),
        ({"stop": 5}, InvalidParameterError, "stop must be a list"),
        ({"context": 5}, InvalidParameterError, "context must be a list"),
        ({"context": []}, EmptyInputError, "pass None to ask closed book"),
        ({"template": "x"}, InvalidParameterError, "template must be"),
        ({"method": 3}, InvalidParameterError, "method must be"),
        ({"method": type(methods.build("cad"))}, InvalidParameterError, "method must be"),
        ({"context": " "}, EmptyInputError, "context is empty"),
        ({"question": ""}, EmptyInputError, "question is empty"),
        ({"method": methods.build("cad"), "alpha": 1.0}, InvalidParameterError, "rule itself"),
    ],
)
def test_bad_input_is_a_named_error(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.ask(**{"question": "Who?", "context": "Me.", **arguments})


def test_a_batch_needs_a_context_for_each_question(model):
    with pytest.raises(InvalidParameterError, match="2 questions but 1 contexts"):
        model.ask_batch(["a?", "b?"], ["c"])
    with pytest.raises(InvalidParameterError, match="lists"):
        model.ask_batch("a?", "c")


def test_asking_leaves_the_model_as_it_was(model):
    ids = torch.tensor([[0, 5, 6, 7]])
    keys, before = list(model.model.state_dict()), model.model(ids).logits
    with pytest.raises(UnknownNameError):
        model.ask("Who?", "Me.", "nothing")
    model.ask("Who?", "Me.", max_new_tokens=3)
    assert list(model.model.state_dict()) == keys
    assert torch.equal(model.model(ids).logits, before)
    hooks = [module._forward_hooks or module._forward_pre_hooks for module in model.model.modules()]
    assert not any(hooks)


@pytest.mark.slow
def test_ten_megabytes_of_context_are_refused_by_name():
    context = "The capital of Poland is London. " * 310_000
    assert len(context) > 10_000_000
    with pytest.raises(ContextTooLongError, match="the window leaves"):
        ck.load("atlas").ask("What is the capital of Poland?", context, max_new_tokens=8)
