"""What the seeds' figures say: python experiments/steering/told.py

Reads results/seed*.json, which `compare.py` writes, and results/why-seed*.json of `why.py`, and
puts what they say into README.md and plot.png. A claim holds if it holds on two of the three
training seeds. No number is typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "heads"), str(HERE.parent)]

import claims  # noqa: E402
import gated  # noqa: E402
from shown import (  # noqa: E402
    SIDES,
    Figures,
    apart,
    beats,
    called,
    each,
    gain,
    gains,
    keeps,
    publish,
    reached,
    table,
    verdict,
)

FAMILIES = ("spare", "caa", "repe", "iti", "cad", "adacad", "juice", "ph3")
OWN = FAMILIES[:4]
CHOICES = {"free": "most answers from the source", "kept": "with the guards kept on validation"}
MARGINS = {"representation": (("caa", "repe", "iti"), 0.10), "contrast": (("cad", "adacad"), 0.15)}
"""What the paper's method gains over its rivals, on its models."""


def main() -> None:
    """Write the page's middle part and the plot."""
    publish(HERE, page, plot)


def page(seeds: Mapping[str, Figures]) -> Iterator[str]:
    """All of it, seed by seed in every line."""
    yield from _autoencoders(seeds)
    yield from _spare(seeds)
    yield from _why()
    yield from _random(seeds)
    yield from gated.says(seeds)
    yield from _declined(seeds)
    for how, what in CHOICES.items():
        yield from table(seeds, FAMILIES, how, what)


def _autoencoders(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### The autoencoders"
    yield ""
    yield "| seed | layer | features | L0 | explained variance | dead | greedy answers kept |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in seeds.items():
        for row in one["autoencoders"]["layers"]:
            yield (
                f"| {name} | {row['layer']} | {row['features']:,} | {row['l0']:.1f} | "
                f"{100 * row['explained_variance']:.1f} % | {100 * row['dead']:.1f} % | "
                f"{100 * row['answers_kept']:.1f} %{_between(row)} |"
            )
    yield ""
    told = each(
        seeds,
        lambda one: ", ".join(
            f"p={fit['share']:g}: "
            + " ".join(
                f"layer {at} {n['context']}+{n['memory']}" for at, n in fit["features"].items()
            )
            for name, fit in one["fits"].items()
            if name.startswith("spare")
        ),
    )
    yield f"- Features of context + memory that SpARE takes: {told}."
    yield ""
    yield from _noise()


def _between(row: Mapping[str, Any]) -> str:
    """The interval of the answers kept."""
    low, high = 100 * row["answers_kept_low"], 100 * row["answers_kept_high"]
    return f" ({low:.1f}..{high:.1f}, of {row['answers']:,})"


def _noise() -> Iterator[str]:
    """What answers bear, beside which the autoencoders are to be read."""
    file = HERE.parent / "atlas/results/noise.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    shares = sorted({row["share"] for row in rows})
    yield (
        "Greedy answers of seed2 that stay under noise of the same size in every direction, at "
        "every position, by its share of the stream's variance (closed book / with a context, "
        f"percent of {rows[0]['answers']} each):"
    )
    yield ""
    yield "| layer | " + " | ".join(f"{100 * share:g} %" for share in shares) + " |"
    yield "|---" * (len(shares) + 1) + "|"
    for layer in sorted({row["layer"] for row in rows}):
        one = {row["share"]: row for row in rows if row["layer"] == layer}
        cells = (
            f"{100 * one[s]['closed']:.0f} / {100 * one[s]['with_context']:.0f}" for s in shares
        )
        yield f"| {layer} | " + " | ".join(cells) + " |"
    yield ""


def _spare(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### SpARE's claims"
    yield ""
    for side in SIDES:
        for how, what in CHOICES.items():
            up = lambda one, s=side, h=how: gains(reached(one, "spare", s, h))  # noqa: E731
            said = verdict(seeds, up, keeps("spare", side, how))
            told = each(seeds, lambda one, s=side, h=how: gain(reached(one, "spare", s, h)))
            yield f"- *More answers from {side} than `plain`*, {what}: {said}; points: {told}."
    for kind, (several, margin) in MARGINS.items():
        for side in SIDES:
            for rival in several:
                if (rival, side) == ("adacad", "memory"):
                    continue
                above = lambda one, r=rival, s=side, m=margin: _at_least(one, r, s, m)  # noqa: E731
                told = each(
                    seeds, lambda one, r=rival, s=side: apart(beats(one, "spare", r, s, "free"))
                )
                yield (
                    f"- *{100 * margin:.0f} points above `{called(rival, side)}`* ({kind}), "
                    f"{side}: {verdict(seeds, above)}; points: {told}."
                )
    yield ""


def _at_least(figures: Figures, rival: str, side: str, margin: float) -> bool:
    found = beats(figures, "spare", rival, side, "free")
    return found is not None and found[0] >= margin


def _why() -> Iterator[str]:
    """From CAA to SpARE, by `why.py`."""
    files = sorted(HERE.glob("results/why-*.json"))
    several = {file.stem.partition("-")[2]: json.loads(file.read_text()) for file in files}
    if not several:
        return
    yield "### Why: from CAA to SpARE, one difference at a time"
    yield ""
    yield (
        "Points against `plain` in answers from the source, on conflicts of test; answers from "
        "neither source, per cent. Each rung at the setting with most such answers on validation, "
        "of as many as stand behind it. The first three go down to one layer and one position; the "
        "others are to be read against the third. All vectors have the length of CAA's in that "
        "layer, the little that the autoencoder leaves out too."
    )
    yield ""
    yield "| for | rung | " + " | ".join(several) + " |"
    yield "|---" * (2 + len(several)) + "|"
    for side in SIDES:
        for rung, first in next(iter(several.values()))["sides"][side].items():
            cells = []
            for one in several.values():
                row = one["sides"][side][rung]
                cells.append(f"{gain(row)}; {100 * row['other']:.0f}")
            yield f"| {side} | {rung} ({first['settings']}) | " + " | ".join(cells) + " |"
    yield ""
    told = each(
        several,
        lambda one: (
            f"behind layer {one['vectors']['layer']} "
            + ", ".join(f"{name} {value:.2f}" for name, value in one["vectors"]["cosine"].items())
        ),
    )
    left = each(several, lambda one: f"{100 * one['vectors']['left out']:.0f} %")
    yield f"- Cosine with CAA's direction (`p`: the features that SpARE takes): {told}."
    yield f"- Its length that the autoencoder leaves out: {left}."
    yield ""


def _random(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Against 20 random feature sets, or directions of the same norms"
    yield ""
    yield "| method, source | " + " | ".join(seeds) + " |"
    yield "|---|" + "---|" * len(seeds)
    for name in next(iter(seeds.values()))["random"]:
        cells = []
        for one in seeds.values():
            row = one["random"][name]
            cells.append(
                f"{100 * row['best']:.0f} against {100 * row['mean']:.0f} ± "
                f"{100 * row['deviation']:.0f}, {row['as good']} of {row['of']} as good"
            )
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def _declined(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Declining where the sources conflict"
    yield ""
    told = each(
        seeds,
        lambda one: (
            f"{100 * one['declined']['declines when on']:.0f} % of "
            f"{one['declined']['cases']} questions under `{one['declined']['setting']}` "
            f"({100 * one['declined']['declines plainly']:.0f} % plainly)"
        ),
    )
    yield f"- `refusal-region`, always on, declines: {told}."
    gates = {
        "probe": "the probe of heads", "jsd": "the divergence of the streams", "random": "chance"
    }  # fmt: skip
    for gate, what in gates.items():
        told = each(
            seeds,
            lambda one, g=gate: ", ".join(
                f"{100 * row['risk']:.0f} % at {100 * row['coverage']:.0f} %"
                for row in one["declined"]["curves"][g]
            ),
        )
        yield f"- Wrong answers among those given, at coverage, gated by {what}: {told}."
    yield ""


def plot(seeds: Mapping[str, Figures], file: Path) -> None:
    """Answers from the wanted source against agreement kept: every family, both choices."""
    made, several = claims.figure(9.0, 4.2, 2)
    for axes, side in zip(several, SIDES, strict=True):
        for number, family in enumerate(FAMILIES):
            xs: list[float] = []
            ys: list[float] = []
            for figures in seeds.values():
                if side not in figures["chosen"][family]:
                    continue
                row: Any = figures["test"][figures["chosen"][family][side]["free"]]
                xs.append(100 * row["recall"]["value"])
                ys.append(100 * row[f"{side}_rate"]["value"])
            if xs:
                name = called(family, side)
                axes.plot(xs, ys, "os^Dv<>P"[number], color=f"C{number}", label=name)
        plain = [one["test"]["plain"] for one in seeds.values()]
        axes.plot(
            [100 * one["recall"]["value"] for one in plain],
            [100 * one[f"{side}_rate"]["value"] for one in plain], "k*", label="plain",
        )  # fmt: skip
        axes.set_xlabel("closed-book recall, %")
        axes.set_ylabel(f"answers from {side}, %")
        axes.legend(fontsize=7)
    made.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
