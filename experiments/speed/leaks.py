"""Whether answering over and over keeps anything: live tensors and resident memory.

Atlas answers questions of different lengths, in turn with and without drafts; each tenth answer is
a stream that is abandoned after some pieces. Counted every ten answers, and compared with what was
there after the first ten.

Run: python experiments/speed/leaks.py [--answers 200]
Writes results/leaks.json beside this file.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import resource
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from store import OUT, machine, write

import conflictkit as ck

EACH = 10
METHODS = ("adacad", "cad", "plain", "coiecd")
LENGTHS = (8, 48, 24, 16, 32)


def tensors() -> int:
    """How many tensors are alive."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def resident() -> int:
    """Bytes of this process in memory, once what was freed is given back."""
    with suppress(AttributeError, OSError):  # a C library that cannot
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def answer(model: Any, cases: list[Any], number: int) -> None:
    """The answer of this number."""
    case = cases[number % len(cases)]
    options: dict[str, Any] = {
        "max_new_tokens": LENGTHS[number % len(LENGTHS)],
        "drafts": "auto" if number % 2 else 0,
        "trace": number % 3 == 0,
    }
    method = METHODS[number // 2 % len(METHODS)]
    # A request to quote makes long answers, and drafts that are right.
    question = f"Quote the sentence about {case.subject}." if number % 4 > 1 else case.question
    if number % EACH == EACH - 1:
        pieces = model.stream(question, case.contexts, method, **options)
        list(islice(pieces, 2))
    else:
        model.ask(question, case.contexts, method, **options)


def main() -> None:
    """Measure, write, and say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    model = ck.load("atlas")
    cases = ck.atlas.cases("test")
    counted: list[dict[str, int]] = []
    for number in range(options.answers):
        answer(model, cases, number)
        if number % EACH == EACH - 1:
            counted.append({"answers": number + 1, "tensors": tensors(), "bytes": resident()})
            print(f"leaks: {counted[-1]}", flush=True)
    first, last = counted[0], counted[-1]
    figures = {
        "answers": options.answers,
        "tensors_grown": last["tensors"] - first["tensors"],
        "memory_grown": last["bytes"] / first["bytes"] - 1,
        "counted": counted,
        "machine": machine(),
    }
    write(options.out / "leaks.json", figures)
    print(f"tensors: {figures['tensors_grown']:+d}, memory: {figures['memory_grown']:+.2%}")


if __name__ == "__main__":
    main()
