"""What the seeds' figures say, as lines, tables and a plot: python experiments/heads/told.py

Reads results/seed*.json, which `run.py` writes, and puts what they say into README.md and plot.png.
A claim holds if it holds on two of the three training seeds. No number is typed by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
from shown import (  # noqa: E402
    GUARDS,
    SIDES,
    Figures,
    apart,
    beats,
    called,
    each,
    gain,
    gains,
    keeps,
    points,
    publish,
    reached,
    share,
    table,
    turned,
    verdict,
)

FAMILIES = ("head-scale", "ph3", "juice", "juice-single", "cad", "adacad", "decore")
ASKED = 0.88
"""In-context answers that Yu et al. report."""
CHOICES = {"free": "as the papers choose", "kept": "with the guards kept on validation"}


def main() -> None:
    """Write the page's middle part and the plot."""
    publish(HERE, page, plot)


def page(seeds: Mapping[str, Figures]) -> Iterator[str]:
    """All of it, seed by seed in every line."""
    yield from _yu(seeds)
    yield from _ph3(seeds)
    yield from _juice(seeds)
    yield from _decore(seeds)
    yield from _random(seeds)
    yield from _roles(seeds)
    for how, what in CHOICES.items():
        yield from table(seeds, FAMILIES, how, what, " (`cad` towards memory)")


def moves(
    seeds: Mapping[str, Figures], family: str, side: str, how: str, claim: str
) -> Iterator[str]:
    """A claim that a family raises answers from one side."""
    up = lambda one: gains(reached(one, family, side, how))  # noqa: E731
    said = verdict(seeds, up, keeps(family, side, how))
    told = each(seeds, lambda one: gain(reached(one, family, side, how)))
    yield f"- *{claim}*: {said}; points over `plain`: {told}."


def _yu(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### One head scaled (Yu et al. 2023)"
    yield ""
    for how, what in CHOICES.items():
        most = lambda one, h=how: reached(one, "head-scale", "context", h)["value"] >= ASKED  # noqa: E731
        said = verdict(seeds, most, keeps("head-scale", "context", how))
        told = each(seeds, lambda one, h=how: share(reached(one, "head-scale", "context", h)))
        yield f"- *One scaled head takes in-context answers to 88 %*, {what}: {said}: {told}."
    for name, what in (("free", "the same head"), ("plain", "`plain`")):
        told = each(seeds, lambda one, n=name: share(_bare(one, n)["context_rate"]))
        yield f"- Bare claims alone, the paper's form, {what}: {told}."
    for side in SIDES:
        for how, what in CHOICES.items():
            yield from moves(seeds, "head-scale", side, how, f"It moves answers to {side}, {what}")
    for side in SIDES:
        told = each(seeds, lambda one, s=side: _searched(one, s))
        yield (
            f"- Of all heads, each at six alphas, the one with most answers from {side} on "
            f"validation, on test: {told}."
        )
    for source in SIDES:
        yield f"- The best {source} head, most answers over alpha: {each(seeds, _peak(source))}."
    yield ""


def _bare(figures: Figures, name: str) -> Any:
    label = "plain" if name == "plain" else figures["chosen"]["head-scale"]["context"][name]
    return figures["kinds"]["bare"][label]


def _searched(figures: Figures, side: str) -> str:
    found = figures["search"][side]
    plain = figures["sets"]["plain"]
    setting = found["label"].partition("?")[2].replace("&heads=", " of head ")
    lost = _lost(found["test"], plain)
    return f"{100 * found['test'][f'{side}_rate']:.0f} ({setting}; guards {lost})"


def _peak(source: str) -> Callable[[Figures], str]:
    """Where on its curve most answers come from either side, and what that costs."""

    def say(figures: Figures) -> str:
        rows, found = figures["curve"][source]["alpha"], []
        for side in SIDES:
            alpha = max(rows, key=lambda one: rows[one][f"{side}_rate"])
            lost = "/".join(f"{100 * (rows[alpha][g] - rows['1'][g]):+.0f}" for g in GUARDS)
            found.append(
                f"{100 * rows[alpha][f'{side}_rate']:.0f} from {side} at {alpha} (guards {lost})"
            )
        return " and ".join(found)

    return say


def _ph3(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Heads pruned (PH3, Jin et al. 2024)"
    yield ""
    for side in SIDES:
        for how, what in CHOICES.items():
            yield from moves(seeds, "ph3", side, how, f"It raises answers from {side}, {what}")
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
            f"- *Heads found in one relation serve the others* (half of what their own gain, "
            f"or more), {side}: {same}; per cent of answers from {side} under heads of the "
            f"relation itself, of another one, of all: {told}."
        )
    yield from _forms(seeds, "ph3", ())
    yield ""


def _transfers(shares: Mapping[str, float]) -> bool:
    """At least half of what the relation's own heads gain, if they gain."""
    own, others = shares["own"] - shares["plain"], shares["others"] - shares["plain"]
    return own > 0 and others >= own / 2


def _juice(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Two runs (JuICE, Li et al. 2025), with the gentle lists that ship with Atlas"
    yield ""
    for how, what in CHOICES.items():
        for side in SIDES:
            for rival in ("juice-single", "ph3", "cad"):
                above = lambda one, r=rival, s=side, h=how: _above(beats(one, "juice", r, s, h))  # noqa: E731
                said = verdict(seeds, above, keeps("juice", side, how))
                told = each(
                    seeds, lambda one, r=rival, s=side, h=how: apart(beats(one, "juice", r, s, h))
                )
                yield f"- *Above `{called(rival, side)}`*, {side}, {what}: {said}; points: {told}."
    yield (
        "- Towards memory CAD is `interpolate`, whose smallest weight is the closed-book answer: "
        "nothing is above that, and it cannot read."
    )
    yield from _forms(seeds, "juice", ("juice-single", "ph3", "cad"))
    yield ""


def _above(difference: Any) -> bool:
    return difference is not None and (difference[1] or 0) > 0


def _forms(seeds: Mapping[str, Figures], family: str, rivals: Sequence[str]) -> Iterator[str]:
    """On JuICE's two forms of prompts: over plain, and over its rivals."""
    for form in ("substitution", "coherent"):
        for side in SIDES:
            up = lambda one, f=form, s=side: gains(_formed(one, f, family, s))  # noqa: E731
            told = each(seeds, lambda one, f=form, s=side: gain(_formed(one, f, family, s)))
            yield (
                f"- Prompts of the {form} form, {side}, as the papers choose: over `plain` "
                f"{verdict(seeds, up)}: {told}."
            )
            for rival in rivals:
                cells = {n: _form_rival(one, form, side, rival) for n, one in seeds.items()}
                said = verdict(
                    seeds, lambda one, f=form, s=side, r=rival: _above(_form_rival(one, f, s, r))
                )
                told = "; ".join(f"{n} {apart(one)}" for n, one in cells.items())
                yield f"  - above `{rival}`: {said}: {told}."


def _formed(figures: Figures, form: str, family: str, side: str) -> Any:
    return figures["forms"][form][figures["chosen"][family][side]["free"]][f"{side}_rate"]


def _form_rival(figures: Figures, form: str, side: str, rival: str) -> Any:
    return turned(figures["forms"][f"{form} rivals"][f"{side} free"].get(rival))


def _decore(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Retrieval heads masked (DeCoRe, Gema et al. 2024)"
    yield ""
    for how, what in CHOICES.items():
        claim = f"The masked run is a useful reference: more answers from context, {what}"
        yield from moves(seeds, "decore", "context", how, claim)
        for rival in ("cad", "adacad"):
            above = lambda one, r=rival, h=how: _above(beats(one, "decore", r, "context", h))  # noqa: E731
            told = each(
                seeds,
                lambda one, r=rival, h=how: points(
                    *(beats(one, "decore", r, "context", h) or (0, None, None))
                ),
            )
            said = verdict(seeds, above, keeps("decore", "context", how))
            yield f"- *Above `{rival}`*, {what}: {said}; points: {told}."
    for family in ("decore", "cad", "adacad"):
        told = each(seeds, lambda one, f=family: _agreement(one, f))
        yield f"- Agreement under `{family}`, as the papers choose, minus plain: {told}."
    yield ""


def _agreement(figures: Figures, family: str) -> str:
    return gain(figures["test"][figures["chosen"][family]["context"]["free"]]["agreement"])


def _random(seeds: Mapping[str, Figures]) -> Iterator[str]:
    yield "### Against 20 random sets of as many heads"
    yield ""
    yield (
        "Answers from the wanted source, per cent; guards: points of agreement, reading and "
        "recall against `plain`."
    )
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
                f"{drawn['as good']} of {drawn['of']} as good; "
                f"other {100 * found['best']['other_rate']:.0f} against "
                f"{100 * drawn['other']:.0f}; "
                f"guards {_lost(found['best'], figures['sets']['plain'])}"
            )
        yield f"| {edit.rpartition('-')[0]}, {side} | {k} | " + " | ".join(cells) + " |"
    yield ""


def _lost(row: Mapping[str, float], plain: Mapping[str, float]) -> str:
    return "/".join(f"{100 * (row[g] - plain[g]):+.0f}" for g in GUARDS)


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
