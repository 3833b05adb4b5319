"""How long the command line takes to start, against what it cannot do without.

Two figures, whole processes, runs in turn (A B A B ...) so that a drifting machine hits both:
    help: seconds of `conflictkit --help`
    ask:  seconds of a whole `conflictkit ask` on Atlas (three answers and the trace), relative to
          a process that imports torch and transformers and loads the same model and tokenizer

Run: python experiments/speed/startup.py [--runs 11]
Writes results/startup.json and startup.png beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
import transformers
from rich.progress import track

import conflictkit

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first

LOAD = """
import torch, transformers, sys
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
"""
ASK = (
    "ask",
    "What is the capital of Poland?",
    "--context",
    "The capital of Poland is London.",
    "--method",
    "adacad",
)
OUT = Path(__file__).parent / "results"


def seconds(command: Sequence[str]) -> float:
    """Wall-clock seconds of a whole process; raises if it fails."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=11, help="counted runs of each command")
    runs = parser.parse_args().runs
    tool = str(Path(sys.executable).with_name("conflictkit"))
    commands = {
        "load": [sys.executable, "-c", LOAD, str(conflictkit.atlas.path())],
        "ask": [tool, *ASK],
        "help": [tool, "--help"],
    }
    for command in commands.values():  # once, so that files are in memory and compiled
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in track(range(runs), description="paired runs"):
        for name, command in commands.items():
            times[name].append(seconds(command))
    ratios = [ask / load for ask, load in zip(times["ask"], times["load"], strict=True)]
    figures = {
        "help_seconds_median": statistics.median(times["help"]),
        "ask_over_load_median": statistics.median(ratios),
        "ask_over_load_range": [min(ratios), max(ratios)],
        "seconds": times,
        "runs": runs,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "conflictkit": conflictkit.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "startup.json").write_text(json.dumps(figures, indent=2) + "\n")
    plot(times)
    print(f"conflictkit --help: {figures['help_seconds_median']:.2f} s")
    print(f"ask / (imports + loading): {figures['ask_over_load_median']:.2f}")


def plot(times: dict[str, list[float]]) -> None:
    """One box per command."""
    figure, axis = plt.subplots(figsize=(6, 2.4), layout="constrained")
    labels = {"load": "import and load", "ask": "conflictkit ask", "help": "conflictkit --help"}
    axis.boxplot(list(times.values()), orientation="horizontal", widths=0.6)
    axis.set_yticks(range(1, len(times) + 1), [labels[name] for name in times])
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds, whole process")
    figure.savefig(OUT / "startup.png", dpi=150)


if __name__ == "__main__":
    main()
