"""What the seeds' figures say, as lines, tables and a plot: python experiments/heads/told.py

Reads results/seed*.json, which `run.py` writes, and puts what they say into README.md and plot.png.
A claim holds if it holds on two of the three training seeds. No number is typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import claims  # noqa: E402
import numpy as np  # noqa: E402

SIDES, GUARDS = ("context", "memory"), ("agreement", "reading", "recall")
FAMILIES = ("head-scale", "ph3", "juice", "juice-single", "cad", "adacad", "decore")
ALLOWED, ENOUGH, ASKED = 0.02, 2, 0.88
CHOICES = {"free": "as the papers choose", "kept": "with the guards kept on validation"}

Figures = Mapping[str, Any]


def main() -> None:
    """Write the page's middle part and the plot."""
    seeds = {
        file.stem: json.loads(file.read_text()) for file in sorted(HERE.glob("results/*.json"))
    }
    readme = HERE / "README.md"
    before, _, after = readme.read_text(encoding="utf-8").split(claims.MARK)
    lines = "\n".join(page(seeds))
    readme.write_text(claims.MARK.join([before, f"\n{lines}\n", after]), encoding="utf-8")
    plot(seeds, HERE / "plot.png")
    print(lines)


def page(seeds: Mapping[str, Figures]) -> Iterator[str]:
    """All of it, seed by seed in every line."""
    yield from _yu(seeds)
    yield from _ph3(seeds)
    yield from _juice(seeds)
    yield from _decore(seeds)
    yield from _random(seeds)
    yield from _roles(seeds)
    for how, what in CHOICES.items():
        yield from _table(seeds, how, what)


def verdict(seeds: Mapping[str, Figures], holds: Callable[[Figures], bool]) -> str:
    """Whether a claim holds, and where."""
    where = [name for name, figures in seeds.items() if holds(figures)]
    word = "holds here" if len(where) >= ENOUGH else "does not hold here"
    return f"{word} ({len(where)} of {len(seeds)} seeds{': ' + ', '.join(where) if where else ''})"


def reached(figures: Figures, family: str, side: str, how: str = "free") -> Any:
    """The cell of a chosen setting on test."""
    return figures["test"][figures["chosen"][family][side][how]][f"{side}_rate"]


def share(cell: Mapping[str, Any]) -> str:
    """`45.5 (41.4-49.7)`, in per cent."""
    text = f"{100 * cell['value']:.1f}"
    return (
        text
        if cell["low"] is None
        else f"{text} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"
    )


def points(value: float, low: float | None, high: float | None) -> str:
    """`+1.2 (+0.1 to +2.3)`, in points."""
    text = f"{100 * value:+.1f}"
    return (
        text if low is None or high is None else f"{text} ({100 * low:+.1f} to {100 * high:+.1f})"
    )


def gain(cell: Mapping[str, Any]) -> str:
    """The paired difference from `plain`; none where the setting is `plain`."""
    return (
        "0"
        if cell["minus"] is None
        else points(cell["minus"], cell["minus_low"], cell["minus_high"])
    )


def gains(cell: Mapping[str, Any]) -> bool:
    """Whether the interval of the difference from `plain` lies above 0."""
    return (cell["minus_low"] or 0) > 0


def beats(figures: Figures, family: str, rival: str, side: str, how: str) -> Any:
    """A family minus its rival, the interval turned round."""
    cell = figures["rivals"][f"{family} {side} {how}"].get(rival)
    if cell is None or cell["minus"] is None:
        return None
    ends = cell["minus_low"], cell["minus_high"]
    return (-cell["minus"], *(None if one is None else -one for one in reversed(ends)))


def safe(figures: Figures, label: str) -> bool:
    """Whether a setting loses at most two points of every guard on test."""
    test = figures["test"]
    return all(
        test[label][g]["value"] >= test["plain"][g]["value"] - ALLOWED - 1e-9 for g in GUARDS
    )


def each(seeds: Mapping[str, Figures], say: Callable[[Figures], str]) -> str:
    """`seed0 ...; seed1 ...`."""
    return "; ".join(f"{name} {say(figures)}" for name, figures in seeds.items())


def _yu(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### One head scaled (Yu et al. 2023)"
    yield ""
    most = lambda figures: reached(figures, "head-scale", "context")["value"] >= ASKED  # noqa: E731
    told = each(seeds, lambda one: share(reached(one, "head-scale", "context")))
    yield f"- *One scaled head takes in-context answers to 88 %*: {verdict(seeds, most)}: {told}."
    bare = lambda one: one["kinds"]["bare"][one["chosen"]["head-scale"]["context"]["free"]]  # noqa: E731
    yield (
        "- Among bare claims, the paper's form: "
        + each(seeds, lambda one: share(bare(one)["context_rate"]))
        + "; plain "
        + each(seeds, lambda one: share(one["kinds"]["bare"]["plain"]["context_rate"]))
        + "."
    )
    for side in SIDES:
        told = each(seeds, lambda one, s=side: gain(reached(one, "head-scale", s)))
        what = verdict(seeds, lambda one, s=side: gains(reached(one, "head-scale", s)))
        yield f"- *It moves answers to the {side}*: {what}; minus plain, points: {told}."
    yield ""


def _ph3(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Heads pruned (PH3, Jin et al. 2024)"
    yield ""
    for side in SIDES:
        for how, what in CHOICES.items():
            told = each(seeds, lambda one, s=side, h=how: gain(reached(one, "ph3", s, h)))
            said = verdict(seeds, lambda one, s=side, h=how: gains(reached(one, "ph3", s, h)))
            yield f"- *Pruning raises answers from {side}*, {what}: {said}; points: {told}."
    for side in SIDES:
        told = each(
            seeds,
            lambda one, s=side: (
                "plain {plain:.0f}, own {own:.0f}, others {others:.0f}, all {all:.0f}".format(
                    **{k: 100 * one["transfer"][s][k] for k in ("plain", "own", "others", "all")}
                )
            ),
        )
        same = verdict(seeds, lambda one, s=side: _transfers(one["transfer"][s]))
        yield (
            f"- *Heads found in one relation serve the others*, {side}: {same}; answers from "
            f"{side}, per cent, under heads of the relation itself, of another, of all: {told}."
        )
    yield ""


def _transfers(shares: Mapping[str, float]) -> bool:
    """At least half of what the relation's own heads gain, if they gain."""
    own, others = shares["own"] - shares["plain"], shares["others"] - shares["plain"]
    return own > 0 and others >= own / 2


def _juice(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Two runs (JuICE, Li et al. 2025)"
    yield ""
    for how, what in CHOICES.items():
        for side in SIDES:
            for rival in ("juice-single", "ph3", "cad"):
                found = {n: beats(one, "juice", rival, side, how) for n, one in seeds.items()}
                where = verdict(
                    seeds,
                    lambda one, r=rival, s=side, h=how: (
                        ((beats(one, "juice", r, s, h) or (0, 0, 0))[1] or 0) > 0
                    ),
                )
                told = "; ".join(
                    f"{name} {'the same' if one is None else points(*one)}"
                    for name, one in found.items()
                )
                yield f"- *Above `{rival}`*, {side}, {what}: {where}; points: {told}."
    for form in ("substitution", "coherent"):
        for side in SIDES:
            told = each(seeds, lambda one, f=form, s=side: _form(one, f, s))
            yield f"- Prompts of its {form} form, {side}, as the papers choose: {told}."
    yield ""


def _form(figures: Figures, form: str, side: str) -> str:
    cells, found = figures["forms"][form], []
    for family in ("juice", "juice-single", "ph3", "cad"):
        label = figures["chosen"][family][side]["free"]
        found.append(f"`{family}` {100 * cells[label][f'{side}_rate']['value']:.0f}")
    plain = 100 * cells["plain"][f"{side}_rate"]["value"]
    return f"plain {plain:.0f}, " + ", ".join(found)


def _decore(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Retrieval heads masked (DeCoRe, Gema et al. 2024)"
    yield ""
    said = verdict(seeds, lambda one: gains(reached(one, "decore", "context")))
    told = each(seeds, lambda one: gain(reached(one, "decore", "context")))
    yield f"- *The masked run is a useful reference*, answers from context: {said}; points: {told}."
    for rival in ("cad", "adacad"):
        told = each(
            seeds,
            lambda one, r=rival: points(
                *(beats(one, "decore", r, "context", "free") or (0, None, None))
            ),
        )
        yield f"- Minus `{rival}` at its best, points: {told}."
    for family in ("decore", "cad", "adacad"):
        told = each(seeds, lambda one, f=family: _agreement(one, f))
        yield f"- Agreement under `{family}`, minus plain: {told}."
    yield ""


def _agreement(figures: Figures, family: str) -> str:
    return gain(figures["test"][figures["chosen"][family]["context"]["free"]]["agreement"])


def _random(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Against 20 random sets of as many heads"
    yield ""
    yield "| edit, source | k | " + " | ".join(seeds) + " |"
    yield "|---|---|" + "---|" * len(seeds)
    names = list(dict.fromkeys(n for one in seeds.values() for n in one["sets"] if n != "plain"))
    for name in names:
        edit, _, k = name.rpartition(" ")
        side = edit.rpartition("-")[2]
        cells = []
        for figures in seeds.values():
            found, drawn = figures["sets"][name], figures["sets"][name]["random"]
            cells.append(
                f"{100 * found['best'][f'{side}_rate']:.0f} against "
                f"{100 * drawn['mean']:.0f} ± {100 * drawn['deviation']:.0f}, "
                f"{drawn['as good']} of {drawn['of']} as good"
            )
        yield f"| {edit.rpartition('-')[0]}, {side} | {k} | " + " | ".join(cells) + " |"
    yield ""


def _roles(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Does a head keep its role across relations?"
    yield ""
    for name in (one for one in next(iter(seeds.values()))["roles"] if one != "items"):
        told = each(
            seeds,
            lambda one, n=name: (
                f"{one['roles'][n]['mean']:.2f} ({one['roles'][n]['low']:.2f} to "
                f"{one['roles'][n]['high']:.2f}; halves of one relation "
                f"{one['roles'][n]['halves']:.2f})"
            ),
        )
        yield f"- Rank correlation of {name} scores between relations: {told}."
    yield ""


def _table(seeds: Mapping[str, Figures], how: str, what: str) -> Iterator[str]:
    yield f"### Every method at its best, {what}"
    yield ""
    heads = " | ".join(f"{name}: from it | guards" for name in seeds)
    yield f"| for | method | {heads} |"
    yield "|---|---|" + "---|---|" * len(seeds)
    for side in SIDES:
        for family in ("plain", *FAMILIES):
            cells = []
            for figures in seeds.values():
                sides = figures["chosen"].get(family, {side: {how: "plain"}})
                if side not in sides:
                    continue
                label = sides[side][how]
                cells += [share(figures["test"][label][f"{side}_rate"]), _guards(figures, label)]
            if cells:
                yield f"| {side} | {_name(family, side)} | " + " | ".join(cells) + " |"
    yield ""


def _name(family: str, side: str) -> str:
    return (
        "`interpolate` (`cad` towards memory)"
        if (family, side) == ("cad", "memory")
        else f"`{family}`"
    )


def _guards(figures: Figures, label: str) -> str:
    """What the guards lost, in points, and answers that are neither."""
    test = figures["test"]
    lost = "/".join(
        f"{100 * (test[label][g]['value'] - test['plain'][g]['value']):+.0f}" for g in GUARDS
    )
    word = "kept" if safe(figures, label) else "lost"
    return f"{word} {lost}, other {100 * test[label]['other_rate']['value']:.0f}"


def plot(seeds: Mapping[str, Figures], file: Path) -> None:
    """Answers by source over alpha, for the best single head of either source."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    for place, source in zip(axes, SIDES, strict=True):
        curves: Sequence[Any] = [one["curve"][source]["alpha"] for one in seeds.values()]
        alphas = [float(one) for one in curves[0]]
        for side, colour in zip(SIDES, ("tab:blue", "tab:orange"), strict=True):
            values = np.array(
                [[100 * row[f"{side}_rate"] for row in one.values()] for one in curves]
            )
            for number, row in enumerate(values):
                label = f"from {side}" if number == 0 else None
                place.plot(
                    alphas,
                    row,
                    color=colour,
                    alpha=0.35 + 0.3 * (number == len(values) - 1),
                    label=label,
                )
        place.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        place.set_xlabel(f"alpha of the best {source} head")
        place.spines[["top", "right"]].set_visible(False)
        place.grid(alpha=0.25)
    axes[0].set_ylabel("answers, per cent")
    axes[0].legend(frameon=False)
    made.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
