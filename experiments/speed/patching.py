"""How long it takes to rank every head of Atlas by path patching, on 64 prompts.

Run: python experiments/speed/patching.py [--runs 3]
Writes results/patching.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import conflictkit as ck
from conflictkit.mechanics import items, patching

OUT = Path(__file__).parent / "results" / "patching.json"
PROMPTS = 64
ROADS: dict[str, Any] = {"frozen": "frozen", "exact": "recomputed"}


def main() -> None:
    """Time both roads, one after the other, run by run."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--runs", type=int, default=3)
    arguments = options.parse_args()
    model = ck.load("atlas")
    found, _ = items.build(model, ck.atlas.cases("train"), require_corrupted=True)
    some = found[:: len(found) // PROMPTS][:PROMPTS]
    patching.path_patching(model, some[:2], mlps="recomputed")  # the first passes are slow
    seconds: dict[str, list[float]] = {name: [] for name in ROADS}
    for _ in range(arguments.runs):
        for name, mlps in ROADS.items():
            start = time.perf_counter()
            patching.path_patching(model, some, mlps=mlps)
            seconds[name].append(time.perf_counter() - start)
    told = {
        "command": f"python experiments/speed/patching.py --runs {arguments.runs}",
        "prompts": len(some),
        "tokens": sum(len(one.ids) for one in some),
        "median": {name: statistics.median(every) for name, every in seconds.items()},
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": str(torch.__version__),
    }
    OUT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told["median"]))


if __name__ == "__main__":
    main()
