"""Every method on Atlas's test split: python experiments/tristate/run.py

Answers all cases (resumes in runs/test), and writes from that run alone `results.json`, the tables
`tables.md`, what the numbers say into README.md, and the page `runs/test/report.html`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

import conflictkit as ck  # noqa: E402
from conflictkit.evaluation import Run, evaluate  # noqa: E402
from conflictkit.evaluation.report import markdown, page, read  # noqa: E402

MARK = "<!-- says -->"
STATES = ("correction", "resistance", "agreement", "irrelevant")


def main(argv: list[str] | None = None) -> None:
    """Answer, sum up, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    parser.add_argument("--limit", type=int, help="fewer cases, for trying; writes no results")
    args = parser.parse_args(argv)
    tried = args.limit is not None
    folder = HERE / "runs" / (f"try{args.limit}" if tried else "test")
    run = evaluate(
        ck.load("atlas"),
        "atlas",
        [name for name in ck.methods.names() if name != "auto"],
        folder,
        policies=[ck.atlas.auto()],
        seed=args.seed,
        limit=args.limit,
        max_new_tokens=48,
        progress=lambda now: print(f"{now.done:.0%}", file=sys.stderr),
    )
    lines = says(run)
    print("\n".join(lines))
    if tried:
        return
    cells = {
        label: {name: vars(cell) for name, cell in row.items()}
        for label, row in run.summary.cells.items()
    }
    about = {"run": run.info, "cells": cells, "detection": run.summary.detection}
    (HERE / "results.json").write_text(json.dumps(about, indent=1, default=str) + "\n")
    sources = read([folder])
    (HERE / "tables.md").write_text(markdown(sources), encoding="utf-8")
    (folder / "report.html").write_text(page(sources), encoding="utf-8")
    readme = HERE / "README.md"
    before, _, after = readme.read_text().split(MARK)
    readme.write_text(MARK.join([before, "\n" + "\n".join(lines) + "\n", after]))


def says(run: Run) -> list[str]:
    """What the numbers say, each sentence made from them."""
    cells = run.summary.cells
    share = {
        m: {k: 100 * c.value for k, c in row.items() if c.value is not None}
        for m, row in cells.items()
    }

    def best(metric: str, methods: list[str]) -> str:
        label = max(methods, key=lambda m: share[m].get(metric, -1.0))
        cell = cells[label][metric]
        return f"`{label}` {100 * cell.value:.1f} % ({100 * cell.low:.1f}–{100 * cell.high:.1f})"

    published = [m for m in share if m != "auto"]
    lines = [f"- Best at {state}: {best(state, published)}." for state in STATES]
    lines += [
        f"- Best minimum of correction and resistance: {best('minimum', published)}; `plain` "
        f"{share['plain']['minimum']:.1f} %.",
        f"- Best harmonic mean of the four states: {best('harmonic', published)}; `plain` "
        f"{share['plain']['harmonic']:.1f} %.",
    ]
    traded = [
        m
        for m in published
        if m != "plain"
        and (share[m]["correction"] - share["plain"]["correction"])
        * (share[m]["resistance"] - share["plain"]["resistance"])
        < 0
    ]
    lines.append(
        f"- {len(traded)} of {len(published) - 1} methods other than `plain` buy one of correction "
        f"and resistance with the other: {', '.join(f'`{m}`' for m in traded)}."
    )
    spoiled = [
        m
        for m in published
        if (cell := cells[m]["agreement"]).p is not None
        and cell.p < 0.05
        and cell.value < cells["plain"]["agreement"].value
    ]
    lines.append(
        "- Agreement is lower than under `plain` (p < 0.05) under "
        + (", ".join(f"`{m}`" for m in spoiled) or "no method")
        + "."
    )
    if "auto" in share:
        lines.append(
            f"- `auto`, fitted on the validation split: minimum {best('minimum', ['auto'])}, "
            f"harmonic mean {best('harmonic', ['auto'])}."
        )
    slowest = max(published, key=lambda m: share[m]["relative_seconds"])
    lines.append(
        f"- The dearest takes {share[slowest]['relative_seconds'] / 100:.2f} times as long as "
        f"`plain` (`{slowest}`)."
    )
    return lines


if __name__ == "__main__":
    main()
