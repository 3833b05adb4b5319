"""Runs side by side and runs after each other: nothing leaks from one into another."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import conflictkit as ck
from tests.contract import zoo
from tests.contract.test_matrix import (
    CONTEXTS,
    QUESTIONS,
    answers_of,
    generated,
    loaded,
    memory_of,
)

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


@pytest.mark.parametrize("run", [by_engine, by_processor], ids=["engine", "processor"])
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
