"""Edits of heads in several threads at once."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import torch

from conflictkit.interventions import HeadScale
from tests.interventions.test_heads import OFF, by_hand, logits
from tests.interventions.test_heads import hf as hf


def test_threads_do_not_see_each_others_edits(hf: Any) -> None:
    factors = [0.0, -2.0, 3.0, 1.0, 0.5, -1.0, 7.0, 2.0]
    expected = [by_hand(hf, factor) for factor in factors]
    ready, failed = threading.Barrier(len(factors)), []

    def work(number: int) -> None:
        try:
            with HeadScale({(1, 2): factors[number]}).attach(hf):
                ready.wait(30)
                for _ in range(5):
                    torch.testing.assert_close(logits(hf), expected[number])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(factors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_thread_started_meanwhile_needs_the_context(hf: Any) -> None:
    plain, expected, seen = logits(hf), by_hand(hf), {}
    with OFF.attach(hf):
        context = contextvars.copy_context()
        work = [
            threading.Thread(target=lambda: seen.update(bare=logits(hf))),
            threading.Thread(target=lambda: seen.update(copied=context.run(logits, hf))),
        ]
        for thread in work:
            thread.start()
            thread.join()
        logits(hf)
    assert torch.equal(seen["bare"], plain)
    torch.testing.assert_close(seen["copied"], expected)
