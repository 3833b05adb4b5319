"""A table of the size of a real comparison is made in seconds."""

from __future__ import annotations

import random
import time

import pytest

from conflictkit import detectors
from conflictkit.evaluation.metrics import summarise
from conflictkit.evaluation.record import Result
from tests.evaluation.metrics.made import case, result


@pytest.mark.slow
def test_a_large_table_takes_seconds() -> None:
    """10 methods, 1,500 cases, all detectors of the baseline: below 5 s of one core, here with
    room for slower machines."""
    draw = random.Random(0)
    states = ("correction", "resistance", "agreement", "irrelevant")
    names = [name.replace("-", "_") for name in detectors.names()]
    cases = [case(str(n), states[n % 4], subject=str(n // 2)) for n in range(1500)]
    results: list[Result] = []
    for method in ["plain", *(f"m{n}" for n in range(9))]:
        for one in cases:
            ids = tuple(range(draw.randint(2, 6)))
            held = [{"scores": {name: draw.random() for name in names}} for _ in ids]
            answer = draw.choice(["Oslo", "Rome", "Paris"])
            results.append(
                result(one.id, answer, method, ids=ids, tokens=held if method == "plain" else ())
            )
    start = time.process_time()
    summary = summarise(cases, results)
    assert time.process_time() - start < 10
    assert len(summary.detection) == len(names)
