"""What the experiments on published claims share: one run, its numbers, tables, plot and page.

An experiment names its methods and turns the finished run into sentences and a plot; nothing that
it writes is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import conflictkit as ck
from conflictkit.cli._progress import watching
from conflictkit.evaluation import Run, evaluate
from conflictkit.evaluation.metrics import Cell
from conflictkit.evaluation.report import markdown, page, read
from conflictkit.policy import Policy

MARK = "<!-- says -->"
"""Between two of these in an experiment's README stands what the numbers say."""
STATES = ("correction", "resistance", "agreement", "irrelevant")


@dataclass(frozen=True)
class Experiment:
    """One question put to Atlas's test split.

    Attributes:
        folder: where its README stands.
        methods: as `conflictkit evaluate --methods` takes them.
        says: what the numbers say, as lines of Markdown.
        plot: draws the numbers into a file; None: no plot.
        policies: label -> policy, beside the methods.
        page: file for the whole report without traces; with them it stands beside the answers.
    """

    folder: Path
    methods: Sequence[str]
    says: Callable[[Run], list[str]]
    plot: Callable[[Run, Path], None] | None = None
    policies: Mapping[str, Policy] = field(default_factory=dict)
    page: Path | None = None


def main(experiment: Experiment, text: str | None, argv: Sequence[str] | None = None) -> None:
    """Answer the cases (resumes), and write `results.json`, `tables.md`, `plot.png`, README."""
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    parser.add_argument("--limit", type=int, help="fewer cases, for trying; writes no results")
    parser.add_argument("--threads", type=int, help="threads of torch")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = ck.load("atlas")
    name = f"try{args.limit}" if args.limit else "test"
    # Other weights are another run.
    folder = experiment.folder / "runs" / f"{name}-{model.fingerprint[:12]}"
    with watching("answering", "answers") as watch:
        run = evaluate(
            model,
            "atlas",
            list(experiment.methods),
            folder,
            policies=experiment.policies,
            seed=args.seed,
            limit=args.limit,
            max_new_tokens=48,
            progress=watch,
        )
    lines = experiment.says(run)
    print("\n".join(lines))
    if args.limit:
        return
    write(experiment, run, lines)


def write(experiment: Experiment, run: Run, lines: Sequence[str]) -> None:
    """Everything that a finished run leaves in the experiment's folder."""
    here = experiment.folder
    if run.summary is None:
        raise SystemExit("the run has no summary")
    cells = {
        label: {name: vars(cell) for name, cell in row.items()}
        for label, row in run.summary.cells.items()
    }
    about = {"run": run.info, "cells": cells, "detection": run.summary.detection}
    (here / "results.json").write_text(json.dumps(about, indent=1, default=str) + "\n")
    sources = read([run.folder])
    (here / "tables.md").write_text(markdown(sources), encoding="utf-8")
    if experiment.plot is not None:
        experiment.plot(run, here / "plot.png")
    if experiment.page is not None:
        experiment.page.write_text(page(sources, traces=False), encoding="utf-8")
        (run.folder / "report.html").write_text(page(sources), encoding="utf-8")
    readme = here / "README.md"
    before, _, after = readme.read_text(encoding="utf-8").split(MARK)
    told = MARK.join([before, "\n" + "\n".join(lines) + "\n", after])
    readme.write_text(told, encoding="utf-8")


def shares(run: Run) -> dict[str, dict[str, float]]:
    """Method -> metric -> value times 100."""
    assert run.summary is not None
    return {
        label: {name: 100 * cell.value for name, cell in row.items() if cell.value is not None}
        for label, row in run.summary.cells.items()
    }


def cell(run: Run, label: str, metric: str) -> Cell:
    """One cell of the summary."""
    assert run.summary is not None
    return run.summary.cells[label][metric]


def shown(run: Run, label: str, metric: str) -> str:
    """A share with its interval: `45.5 % (41.4–49.7)`."""
    found = cell(run, label, metric)
    if found.value is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{100 * found.value:.1f} %"
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f}–{100 * found.high:.1f})"


def against(run: Run, label: str, metric: str) -> str:
    """A paired difference from `plain`, in points, with its interval."""
    found = cell(run, label, metric)
    if found.difference is None:
        return "–"
    text = f"{100 * found.difference:+.1f}"
    if found.difference_low is None or found.difference_high is None:
        return text
    return f"{text} ({100 * found.difference_low:+.1f} to {100 * found.difference_high:+.1f})"


def best(run: Run, metric: str, labels: Sequence[str]) -> str:
    """The method with the largest value, and the value."""
    values = shares(run)
    label = max(labels, key=lambda one: values[one].get(metric, -1.0))
    return f"`{label}` {shown(run, label, metric)}"


def gains(run: Run, label: str, metric: str) -> bool:
    """Whether the paired interval of the difference from `plain` lies above 0."""
    low = cell(run, label, metric).difference_low
    return low is not None and low > 0


def loses(run: Run, label: str, metric: str) -> bool:
    """Whether the paired interval of the difference from `plain` lies below 0."""
    high = cell(run, label, metric).difference_high
    return high is not None and high < 0


def figure(width: float = 7.0, height: float = 4.2, count: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure with one pair of axes, or several in a row, drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made, several = pyplot.subplots(
        1, count, figsize=(width, height), layout="constrained", squeeze=False
    )
    for axes in several[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return made, several[0][0] if count == 1 else several[0]
