"""Runs side by side and runs after each other: nothing leaks from one into another."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from transformers import pipeline

import conflictkit as ck
import conflictkit.pipeline
from conflictkit import prefixes
from tests.contract import zoo
from tests.contract.test_matrix import (
    CONTEXTS,
    QUESTIONS,
    answers_of,
    generated,
    loaded,
    memory_of,
)
from tests.tiny import byte_tokenizer

POLICIES = [
    ck.Policy.of("plain"),
    ck.Policy.of("memory"),
    ck.Policy.of("cad?alpha=2", when="jsd > 0.3 until 0.1"),
    ck.Policy.of("adacad", strength=1.5),
    ck.Policy.of("grd?gate=confidence"),
    ck.Policy.of("ck-plug?alpha=0.9"),
    ck.Policy.of("coiecd", when="jsd > 0.2 at prompt"),
    ck.Policy.of("interpolate?weight=0.3"),
]


def by_engine(policy: Any) -> list[list[int]]:
    answers = loaded("llama").ask_batch(QUESTIONS, CONTEXTS, policy=policy, max_new_tokens=10)
    return [[token.id for token in answer.trace.tokens] for answer in answers]


def by_processor(policy: Any) -> list[list[int]]:
    processor = ck.ConflictProcessor(zoo.model("llama"), memory_of("llama"), policy=policy)
    return answers_of("llama", generated("llama", logits_processor=[processor], max_new_tokens=10))


def by_decode(policy: Any) -> list[list[int]]:
    mine = {"custom_generate": ck.decode, "memory_ids": memory_of("llama"), "policy": policy}
    return answers_of("llama", generated("llama", max_new_tokens=10, **mine))


@cache
def shared_pipe() -> Any:
    task: Any = conflictkit.pipeline.TASK
    return pipeline(task, model=zoo.model("llama"), tokenizer=byte_tokenizer(), device="cpu")


def by_pipeline(policy: Any) -> list[list[int]]:
    asked = [{"question": q, "context": c} for q, c in zip(QUESTIONS, CONTEXTS, strict=True)]
    made = shared_pipe()(asked, policy=policy, max_new_tokens=10, batch_size=3, trace=True)
    return [[token.id for token in row[0]["trace"].tokens] for row in made]


@pytest.mark.slow
@pytest.mark.parametrize("run", [by_engine, by_processor, by_decode, by_pipeline])
def test_eight_threads_with_eight_policies_answer_as_one_after_the_other(run: Any) -> None:
    alone = [run(policy) for policy in POLICIES]
    assert len({str(answers) for answers in alone}) >= 6
    together = threading.Barrier(8)

    def one(policy: Any) -> list[list[int]]:
        together.wait()
        return run(policy)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert list(pool.map(one, POLICIES)) == alone


def test_streams_of_text_may_be_read_in_turns() -> None:
    model = loaded("llama")
    alone = [model.ask(QUESTIONS[0], CONTEXTS[0], policy=p, max_new_tokens=8) for p in POLICIES]
    streams = [
        model.stream(QUESTIONS[0], CONTEXTS[0], policy=p, max_new_tokens=8) for p in POLICIES
    ]
    texts = ["" for _ in streams]
    open_ = list(range(len(streams)))
    while open_:
        for place in tuple(open_):
            piece = next(iter(streams[place]), None)
            if piece is None:
                open_.remove(place)
            else:
                texts[place] += piece
    assert texts == [answer.text for answer in alone]


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["engine", "processor", "reused processor", "decode", "stopped"])
def test_two_hundred_generations_leave_no_tensor_behind(form: str) -> None:
    model, memory = zoo.model("llama"), memory_of("llama")
    reused = ck.ConflictProcessor(model, memory, "grd")

    def once() -> None:
        if form == "engine":
            loaded("llama").ask_batch(QUESTIONS, CONTEXTS, "grd", max_new_tokens=2)
        elif form == "stopped":
            pieces = loaded("llama").stream(QUESTIONS[0], CONTEXTS[0], "grd", max_new_tokens=3)
            next(iter(pieces))
        elif form == "decode":
            generated(
                "llama",
                custom_generate=ck.decode,
                memory_ids=memory,
                method="grd",
                max_new_tokens=2,
            )
        else:
            mine = ck.ConflictProcessor(model, memory, "grd") if form == "processor" else reused
            generated("llama", logits_processor=[mine], max_new_tokens=2)

    for _ in range(3):
        once()
    before = live_tensors()
    for _ in range(200):
        once()
    assert live_tensors() <= before


@pytest.mark.slow
def test_a_reused_processor_holds_no_more_for_every_new_prompt() -> None:
    model = zoo.model("llama")
    reused = ck.ConflictProcessor(model, [[0, 6, 7]], "grd")

    def ask(first: int, second: int) -> None:
        ids = torch.tensor([[0, 5, 6, first, second]])
        model.generate(ids, logits_processor=[reused], max_new_tokens=2, pad_token_id=2)

    for number in range(prefixes._MOST_GENERATIONS):
        ask(9, 20 + number)
    before = live_tensors()
    for number in range(60):
        ask(10, 20 + number)
    assert live_tensors() <= before
