"""Every method on every architecture in every form: one answer, token for token in float32.

The answer comes from reading every row alone, from its beginning, without a cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import pipeline

import conflictkit as ck
import conflictkit.pipeline
from conflictkit import methods
from tests.contract import zoo
from tests.engine.reference import next_logits
from tests.processor.exact import padded
from tests.tiny import byte_tokenizer

QUESTIONS = ["Who?", "What is it that they said?", "Why so?"]
CONTEXTS = ["Nobody knows what they said.", "Because.", "A. B. C."]
N = 7
FORMS = ("engine", "processor", "decode", "pipeline")
# The quick part holds one architecture of each way to count positions.
NAMES = [
    name if name in ("llama", "gpt2") else pytest.param(name, marks=pytest.mark.slow)
    for name in zoo.CONFIGS
]


@cache
def loaded(name: str) -> Any:
    return ck.load(zoo.model(name), tokenizer=byte_tokenizer())


@cache
def prompts(name: str) -> list[dict[str, list[int]]]:
    made = [
        loaded(name).prompts(question, context)
        for question, context in zip(QUESTIONS, CONTEXTS, strict=True)
    ]
    return [{stream: list(prompt.ids) for stream, prompt in row.items()} for row in made]


@cache
def logits(name: str, ids: tuple[int, ...]) -> torch.Tensor:
    return next_logits(zoo.model(name), ids)


@cache
def by_brute_force(name: str, method: str) -> list[list[int]]:
    rule = methods.build(method)
    answers = []
    for row in prompts(name):
        said: list[int] = []
        state = None
        while len(said) < N:
            context, memory = (
                logits(name, (*row[stream], *said)) for stream in ("context", "memory")
            )
            combined = rule.combine(context, memory, state)
            state = combined.state
            said.append(int(combined.logits[0].argmax()))
            if said[-1] == 1:
                break
        answers.append(said)
    return answers


def memory_of(name: str) -> list[list[int]]:
    return [row["memory"] for row in prompts(name)]


def generated(name: str, **options: Any) -> Any:
    inputs = padded([row["context"] for row in prompts(name)])
    options = {"max_new_tokens": N, "do_sample": False, "pad_token_id": 2, **options}
    return zoo.model(name).generate(**inputs, **options)


def answers_of(name: str, sequences: torch.Tensor, repeats: int = 1) -> list[list[int]]:
    width = max(len(row["context"]) for row in prompts(name))
    rows = [row[width:] for row in sequences.tolist()]
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows[::repeats]]


def in_form(form: str, name: str, method: Any, **options: Any) -> list[Any]:
    """The answers' token ids, end token included; the pipeline's texts."""
    if form == "engine":
        made = loaded(name).ask_batch(QUESTIONS, CONTEXTS, method, max_new_tokens=N, **options)
        return [[token.id for token in answer.trace.tokens] for answer in made]
    if form == "processor":
        processor = ck.ConflictProcessor(zoo.model(name), memory_of(name), method)
        return answers_of(name, generated(name, logits_processor=[processor], **options))
    if form == "decode":
        mine = {"custom_generate": ck.decode, "memory_ids": memory_of(name), "method": method}
        return answers_of(name, generated(name, **mine, **options))
    task: Any = conflictkit.pipeline.TASK
    pipe = pipeline(task, model=zoo.model(name), tokenizer=byte_tokenizer())
    asked = [{"question": q, "context": c} for q, c in zip(QUESTIONS, CONTEXTS, strict=True)]
    made: Any = pipe(asked, method=method, max_new_tokens=N, batch_size=3, **options)
    return [row[0]["generated_text"] for row in made]


def as_text(ids: list[int]) -> str:
    return byte_tokenizer().decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", methods.names(edits=False))
@pytest.mark.parametrize("name", NAMES)
def test_every_form_writes_the_brute_force_answer(name: str, method: str, form: str) -> None:
    wanted = by_brute_force(name, method)
    made = in_form(form, name, method)
    assert made == ([as_text(ids) for ids in wanted] if form == "pipeline" else wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_are_told_apart_by_these_answers(name: str) -> None:
    """Else the matrix could pass with a method that does nothing."""
    answers = {method: str(by_brute_force(name, method)) for method in methods.names(edits=False)}
    assert answers["plain"] != answers["memory"]
    assert len(set(answers.values())) >= 4


@pytest.mark.parametrize("method", ["adacad", "grd", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_beams_are_the_same_in_every_form(name: str, method: str) -> None:
    wide = {form: in_form(form, name, method, num_beams=3) for form in FORMS}
    assert wide["processor"] == wide["decode"]
    for form in ("engine", "pipeline"):
        texts = wide[form] if form == "pipeline" else [as_text(ids) for ids in wide[form]]
        assert texts == [as_text(ids) for ids in wide["decode"]]


@pytest.mark.parametrize("name", NAMES)
def test_off_means_off_bit_for_bit(name: str) -> None:
    told = {"return_dict_in_generate": True, "output_scores": True}
    plain = generated(name, **told)
    keys = list(zoo.model(name).state_dict())
    for method in methods.names(edits=False):
        off = ck.Controller(methods.build(method), when="jsd > 1")
        processor = ck.ConflictProcessor(zoo.model(name), memory_of(name), off)
        made = generated(name, logits_processor=[processor], **told)
        assert torch.equal(made.sequences, plain.sequences)
        for mine, theirs in zip(made.scores, plain.scores, strict=True):
            assert torch.equal(mine, theirs)
    assert list(zoo.model(name).state_dict()) == keys
    assert not any(
        hooks
        for module in zoo.model(name).modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    )


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_wherever_something_may_be_chosen(name: str) -> None:
    for method in methods.names(edits=False):
        processor = ck.ConflictProcessor(zoo.model(name), memory_of(name), method)
        made = generated(
            name, logits_processor=[processor], return_dict_in_generate=True, output_scores=True
        )
        for scores in made.scores:
            assert not scores.isnan().any()
            assert not (scores == torch.inf).any()
            assert (scores > -torch.inf).any(-1).all()


@pytest.mark.parametrize("name", NAMES)
def test_batch_mates_and_their_methods_change_no_row(name: str) -> None:
    each = ["adacad", "memory", "grd"]
    mixed = {
        "engine": [
            [token.id for token in answer.trace.tokens]
            for answer in loaded(name).ask_batch(QUESTIONS, CONTEXTS, each, max_new_tokens=N)
        ],
        "processor": answers_of(
            name,
            generated(
                name,
                logits_processor=[ck.ConflictProcessor(zoo.model(name), memory_of(name), each)],
            ),
        ),
        "decode": answers_of(
            name,
            generated(name, custom_generate=ck.decode, memory_ids=memory_of(name), method=each),
        ),
    }
    wanted = [by_brute_force(name, method)[row] for row, method in enumerate(each)]
    assert mixed == dict.fromkeys(mixed, wanted)
