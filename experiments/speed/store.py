"""What the speed experiments share: files of finished cells, spreads, clocks, the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import conflictkit as ck

OUT = Path(__file__).resolve().parent / "results"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and number of some values."""
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    else:
        low = high = values[0]
    return {"median": statistics.median(values), "low": low, "high": high, "of": len(values)}


def ratios(ones: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """The spread of what each of `ones` is relative to its partner in `others`."""
    return spread([one / other for one, other in zip(ones, others, strict=True)])


def now(device: str = "cpu") -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """Of one call."""
    start = now(device)
    call()
    return now(device) - start


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cuda = torch.cuda.is_available()
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "accelerator": torch.cuda.get_device_name() if cuda else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "conflictkit": ck.__version__,
    }


class Store:
    """A JSON file of cells, written anew after each, so that a run that was cut short goes on.

    Args:
        file: where the cells lie.
        settings: what a cell must have been measured with; others are measured again.
    """

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self.file, self.settings = file, settings
        there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.cells: dict[str, Any] = there.get("cells", {})

    def has(self, name: str) -> bool:
        """Whether a cell is finished."""
        return name in self.cells and self.cells[name]["settings"] == self.settings

    def put(self, name: str, cell: dict[str, Any]) -> None:
        """Keep a finished cell."""
        self.cells[name] = {**cell, "settings": self.settings, "machine": machine()}
        write(self.file, {"cells": self.cells})


def write(file: Path, data: dict[str, Any]) -> None:
    """Put JSON into a file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".partial")
    draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def copy_speed(device: str, elements: int = 2**26) -> float:
    """GB/s of copying a large tensor, read and written bytes both counted; the median of five."""
    one = torch.ones(elements, device=device)
    other = torch.empty_like(one)
    other.copy_(one)
    times = [seconds(lambda: other.copy_(one), device) for _ in range(5)]
    return 2 * one.nbytes / statistics.median(times) / 1e9
