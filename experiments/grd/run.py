"""GRD's claim on Atlas's test split: python experiments/grd/run.py

Resistance rises (2.1 to 20.8 % exact match in its paper) without losing correction or agreement.
All gates at three depths. Writes `results.json`, `tables.md`, `plot.png` and what the numbers say
into README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import claims  # noqa: E402

from conflictkit.evaluation import Run  # noqa: E402

GATES = ("full", "confidence", "entropy")
STATES = ("resistance", "correction", "agreement")


def says(run: Run) -> list[str]:
    """Whether the claim holds, setting by setting."""
    settings = [m for m in claims.shares(run) if m.startswith("grd")]
    lines = []
    for label in ("grd", *(m for m in settings if "depth=1" in m)):
        told = ", ".join(f"{state} {claims.against(run, label, state)}" for state in STATES)
        lines.append(f"- `{label}` minus `plain`, points: {told}.")
    raised = [m for m in settings if claims.gains(run, m, "resistance")]
    lines.append(
        f"- *Resistance rises*: in {len(raised)} of {len(settings)} settings, interval included; "
        f"most under {claims.best(run, 'resistance', settings)}; `plain` "
        f"{claims.shown(run, 'plain', 'resistance')}."
    )
    for state in ("correction", "agreement"):
        lost = [m for m in raised if claims.loses(run, m, state)]
        lines.append(
            f"- *Without losing {state}*: {len(raised) - len(lost)} of these {len(raised)} lose "
            f"none that is shown; {len(lost)} do, interval included."
        )
    whole = [
        m
        for m in raised
        if not claims.loses(run, m, "correction") and not claims.loses(run, m, "agreement")
    ]
    lines.append(
        "- The whole claim holds here for "
        + (", ".join(f"`{m}`" for m in whole) if whole else "no setting")
        + "."
    )
    lines.append(
        f"- Best harmonic mean of the four states: {claims.best(run, 'harmonic', settings)}; "
        f"`plain` {claims.shown(run, 'plain', 'harmonic')}."
    )
    return lines


def plot(run: Run, file: Path) -> None:
    """Correction against resistance: a line per gate, a point per depth."""
    made, axes = claims.figure(6.0, 4.6)
    share = claims.shares(run)
    for gate in GATES:
        mine = sorted((m for m in share if f"gate={gate}" in m), key=_depth)
        axes.plot(
            [share[m]["resistance"] for m in mine],
            [share[m]["correction"] for m in mine],
            marker="o",
            label=f"gate {gate}, depth {_depth(mine[0]):g} to {_depth(mine[-1]):g}",
        )
    axes.plot(share["plain"]["resistance"], share["plain"]["correction"], "k*", label="plain")
    axes.set_xlabel("resistance, %")
    axes.set_ylabel("correction, %")
    axes.legend(fontsize=8)
    made.savefig(file, dpi=120)


def _depth(label: str) -> float:
    return float(label.partition("depth=")[2].partition("&")[0])


if __name__ == "__main__":
    sweeps = [f"grd?depth=0:1:0.5&gate={gate}" for gate in GATES]
    claims.main(claims.Experiment(HERE, ("plain", "grd", *sweeps), says, plot), __doc__)
