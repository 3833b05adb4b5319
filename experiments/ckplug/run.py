"""How far CK-PLUG's alpha moves the source on Atlas: python experiments/ckplug/run.py

The paper moves memory recall (ParR) from 9.9 to 71.9 % on its model with alpha (Bi et al. 2025).
Here the same sweep, eleven values, on Atlas's test split, with what the paper leaves out beside it:
agreement, and answers that are neither source's. Writes `results.json`, `tables.md`, `plot.png`
and what the numbers say into README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import claims  # noqa: E402

from conflictkit.evaluation import Run  # noqa: E402

LEAST_AGREEMENT, MOST_OTHER = 95.0, 5.0
PAPER = (9.9, 71.9)


def alphas(run: Run) -> list[tuple[float, str]]:
    """Alpha and label of every setting of the sweep, ascending."""
    found = [(float(m.partition("alpha=")[2]), m) for m in claims.shares(run) if "alpha=" in m]
    return sorted(found)


def says(run: Run) -> list[str]:
    """How far memory recall moves, over all settings and over those that spoil nothing."""
    share, sweep = claims.shares(run), alphas(run)
    clean = [
        (a, m)
        for a, m in sweep
        if share[m]["agreement"] >= LEAST_AGREEMENT and share[m]["other_rate"] <= MOST_OTHER
    ]
    agreeing = [(a, m) for a, m in sweep if share[m]["agreement"] >= LEAST_AGREEMENT]
    others = [share[m]["other_rate"] for _, m in sweep]
    return [
        f"- All {len(sweep)} values of alpha: {_range(run, sweep)}.",
        f"- Those that keep agreement at {LEAST_AGREEMENT:g} % or more and answers of neither "
        f"source at {MOST_OTHER:g} % or less: {_range(run, clean)}.",
        f"- Those that keep agreement alone: {_range(run, agreeing)}.",
        f"- Answers of neither source: {share['plain']['other_rate']:.1f} % under `plain`, over "
        f"alpha {min(others):.1f} to {max(others):.1f} %.",
        f"- The paper, on its model: {PAPER[0]:g} to {PAPER[1]:g} %.",
        f"- Memory recall rises with alpha at every step: "
        f"{'yes' if _rises([share[m]['parr'] for _, m in sweep]) else 'no'}.",
        "- Adaptive (`ck-plug` without alpha): memory recall "
        f"{claims.shown(run, 'ck-plug', 'parr')}, agreement "
        f"{claims.shown(run, 'ck-plug', 'agreement')}.",
    ]


def _range(run: Run, settings: list[tuple[float, str]]) -> str:
    if not settings:
        return "none"
    share = claims.shares(run)
    low = min(settings, key=lambda one: share[one[1]]["parr"])
    high = max(settings, key=lambda one: share[one[1]]["parr"])
    told = [f"{claims.shown(run, m, 'parr')} at alpha {a:g}" for a, m in (low, high)]
    return f"memory recall from {told[0]} to {told[1]} ({len(settings)} values)"


def _rises(values: list[float]) -> bool:
    return all(a <= b for a, b in zip(values, values[1:], strict=False))


def plot(run: Run, file: Path) -> None:
    """Memory and context recall, agreement and other answers against alpha."""
    made, axes = claims.figure()
    sweep = alphas(run)
    x = [a for a, _ in sweep]
    for metric, title in (
        ("parr", "memory recall (ParR)"),
        ("conr", "context recall (ConR)"),
        ("agreement", "agreement"),
        ("other_rate", "neither source"),
    ):
        cells = [claims.cell(run, m, metric) for _, m in sweep]
        axes.plot(x, [100 * c.value for c in cells], marker="o", ms=3, label=title)
        axes.fill_between(
            x, [100 * (c.low or 0) for c in cells], [100 * (c.high or 1) for c in cells], alpha=0.15
        )
    axes.set_xlabel("alpha")
    axes.set_ylabel("% of answers, 95 % intervals")
    axes.legend(fontsize=8)
    made.savefig(file, dpi=120)


if __name__ == "__main__":
    methods = ("plain", "ck-plug", "ck-plug?alpha=0:1:0.1")
    claims.main(claims.Experiment(HERE, methods, says, plot), __doc__)
