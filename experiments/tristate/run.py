"""Every method on Atlas's test split: python experiments/tristate/run.py

Answers all cases (resumes below runs/), and writes from that run alone `results.json`, the tables
`tables.md`, `plot.png`, what the numbers say into README.md, the page `report.html` beside the
answers, and the same without traces into docs/tristate.html.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import claims  # noqa: E402

import conflictkit as ck  # noqa: E402
from conflictkit.evaluation import Run  # noqa: E402
from conflictkit.policy import Policy  # noqa: E402

AUTO = "auto"


def says(run: Run) -> list[str]:
    """What the numbers say, each sentence made from them."""
    share = claims.shares(run)
    published = [m for m in share if m != AUTO]
    others = [m for m in published if m != "plain"]
    plain = share["plain"]
    lines = [f"- Best at {s}: {claims.best(run, s, published)}." for s in claims.STATES]
    for metric, title in (
        ("minimum", "minimum of correction and resistance"),
        ("harmonic", "harmonic mean of the four states"),
    ):
        found = claims.best(run, metric, published)
        lines.append(f"- Best {title}: {found}; `plain` {plain[metric]:.1f} %.")
    traded = [m for m in others if _moved(share, m, "correction", "resistance") < 0]
    lines.append(
        f"- {len(traded)} of {len(others)} methods other than `plain` buy one of correction and "
        f"resistance with the other{_list(traded)}."
    )
    spoiled = [m for m in others if claims.loses(run, m, "agreement")]
    lines.append(
        f"- Agreement is lower than under `plain`, interval included, under {len(spoiled)} of "
        f"them{_list(spoiled)}."
    )
    if AUTO in share:
        lines.append(
            "- `auto`, fitted on the validation split: minimum "
            f"{claims.shown(run, AUTO, 'minimum')}, harmonic mean "
            f"{claims.shown(run, AUTO, 'harmonic')}."
        )
    slowest = max(published, key=lambda m: share[m]["relative_seconds"])
    lines.append(
        f"- The dearest takes {share[slowest]['relative_seconds'] / 100:.2f} times as long as "
        f"`plain` (`{slowest}`)."
    )
    return lines


def _moved(share: dict[str, dict[str, float]], method: str, *metrics: str) -> float:
    """Product of a method's differences from `plain`: negative where one rises, one falls."""
    product = 1.0
    for metric in metrics:
        product *= share[method][metric] - share["plain"][metric]
    return product


def _list(methods: list[str]) -> str:
    return ": " + ", ".join(f"`{m}`" for m in methods) if methods else ""


def plot(run: Run, file: Path) -> None:
    """Correction against resistance, a point per method with both intervals."""
    made, axes = claims.figure(6.0, 5.0)
    for label in claims.shares(run):
        x, y = (claims.cell(run, label, name) for name in ("resistance", "correction"))
        ends = [
            [[100 * (c.value - (c.low or 0))], [100 * ((c.high or 1) - c.value)]] for c in (x, y)
        ]
        axes.errorbar(
            100 * x.value,
            100 * y.value,
            xerr=ends[0],
            yerr=ends[1],
            fmt="o",
            capsize=2,
            label=label,
        )
    axes.set_xlabel("resistance, %")
    axes.set_ylabel("correction, %")
    axes.legend(fontsize=8)
    made.savefig(file, dpi=120)


if __name__ == "__main__":
    claims.main(
        claims.Experiment(
            HERE,
            [name for name in ck.methods.names(edits=False) if name != AUTO],
            says,
            plot,
            policies={AUTO: Policy.load(ck.atlas.auto())},
            page=HERE.parents[1] / "docs" / "tristate.html",
        ),
        __doc__,
    )
