"""What the figures of speed say, as a page and a plot: python experiments/speed/told.py

Reads results/generate.json, copying.json, score.json and leaks.json, as far as they are there, and
puts what they say into docs/speed.md and docs/images/speed.png. No number is typed by hand but
those that are asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asked import Figures, asked, has, size, spread
from peers import LABELS, WAYS
from store import OUT

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
MARK = "<!-- says -->"


WORDS = {
    "generate": "transformers' `generate`, one stream",
    "lookup": "the same with prompt lookup",
    "plain": "conflictkit, one stream",
    "adacad": "AdaCAD, two streams",
    "drafted": "AdaCAD, two streams, `drafts='auto'`",
}


def main() -> None:
    """Write the page and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="where the figures lie")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where speed.md lies")
    options = parser.parse_args()
    found = load(options.out)
    file = options.docs / "speed.md"
    head, _, foot = file.read_text(encoding="utf-8").split(MARK)
    said = "\n".join(page(found)).strip()
    file.write_text(f"{head}{MARK}\n\n{said}\n\n{MARK}{foot}", encoding="utf-8")
    if found["generate"]:
        (options.docs / "images").mkdir(exist_ok=True)
        plot(found["generate"]["cells"], options.docs / "images" / "speed.png")
    print(file)


def load(folder: Path) -> dict[str, Any]:
    """What each part has written; empty where it has not been run."""
    names = ("generate", "copying", "score", "leaks")
    files = {name: folder / f"{name}.json" for name in names}
    return {
        name: json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for name, file in files.items()
    }


def page(found: Mapping[str, Figures]) -> Iterator[str]:
    """All that stands between the marks."""
    cells = _cells(found["generate"])
    yield from _machines(found, cells)
    yield "## Asked and measured"
    yield ""
    yield "| what | asked | measured | |"
    yield "|---|---|---|---|"
    yield from asked(found, cells)
    yield ""
    if cells:
        yield "![What a token costs beside one plain stream](images/speed.png)"
        yield ""
        yield from _prefills(found["generate"]["cells"])
        yield from _large(cells)
        yield from _left_out(found["generate"]["cells"])
    if found["copying"]:
        yield from _copied(found["copying"])
    if found["score"].get("profile"):
        yield from _profile(found["score"])


def _cells(generate: Figures) -> list[Figures]:
    """The cells that were measured, in order."""
    every = generate.get("cells", {}).values()
    measured = [one for one in every if "ways" in one]
    return sorted(measured, key=lambda one: (one["device"], one["shape"], *size(one)))


def _machines(found: Mapping[str, Figures], cells: list[Figures]) -> Iterator[str]:
    parts = [*cells, *(one for name, one in found.items() if one and name != "generate")]
    told = dict.fromkeys(_machine(one["machine"]) for one in parts)
    speeds = [one["copy_gigabytes_per_second"] for one in cells if one["device"] == "cpu"]
    copied = f"; copying memory: {min(speeds):.1f} to {max(speeds):.1f} GB/s" if speeds else ""
    yield f"Measured on: {'; '.join(told) or 'nothing yet'}{copied}."
    yield ""


def _machine(one: Figures) -> str:
    gpu = f", {one['accelerator']}" if one["accelerator"] else ""
    return (
        f"{one['processor']}, {one['cores']} cores, {one['threads']} threads{gpu}, "
        f"torch {one['torch']}, transformers {one['transformers']}, "
        f"conflictkit {one['conflictkit']}"
    )


def _prefills(cells: Mapping[str, Figures]) -> Iterator[str]:
    yield "## Reading the prompts"
    yield ""
    yield "Seconds of one row; both streams are read one after the other."
    yield ""
    yield "| model | context | `generate`'s reading | context stream | memory stream | relative |"
    yield "|---|---|---|---|---|---|"
    for one in cells.values():
        if "prefill" not in one:
            continue
        times = {name: f"{values['median']:.3g}" for name, values in one["prefill"].items()}
        if one["plain_is_the_context_stream"]:
            times["plain"] = "the context stream's"
        yield (
            f"| {_named(one)} | {one['context']} | {times['plain']} | {times['context']} | "
            f"{times['memory']} | {spread(one['over_plain'])} |"
        )
    yield ""


def _named(one: Figures) -> str:
    return one["shape"] if one["device"] == "cpu" else f"{one['shape']}, {one['device']}"


def _where(one: Figures) -> str:
    return f"{_named(one)}, context {one['context']}, rows {one['batch']}"


def _large(cells: list[Figures]) -> Iterator[str]:
    yield "## Writing"
    yield ""
    yield (
        "Relative seconds: those of a token in each row, to plain `generate` in the same round; "
        "median and quartiles over rounds. Passes: over the weights, per token of a row, counted "
        "at the first feed-forward. Cache: bytes of all streams' caches, to plain's. GB/s: of "
        "weights, and its share of the speed of copying memory. Accepted: guessed tokens that "
        "were chosen, per pass and row."
    )
    yield ""
    yield (
        "| model | context | rows | | ms per token | relative | passes | cache | GB/s | accepted |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for cell in cells:
        ways = [way for way in WAYS if has(cell, way)]
        for number, way in enumerate(ways):
            figures = cell["ways"][way]
            where = (_named(cell), cell["context"], cell["batch"]) if not number else ("", "", "")
            speed = figures["gigabytes_per_second"]["median"]
            share = figures["share_of_copy"]["median"]
            cache = figures["cache_over_plain"]
            accepted = figures["accepted_per_pass"]
            drafts = way in ("drafted", "lookup")
            yield (
                f"| {where[0]} | {where[1]} | {where[2]} | {LABELS[way]} | "
                f"{1e3 * figures['seconds_per_token']['median']:.1f} | "
                f"{spread(figures['over_plain']) if way != 'plain' else '1'} | "
                f"{figures['passes_per_token']:.2f} | {f'{cache:.2f}' if cache else 'none'} | "
                f"{speed:.1f} ({share:.0%}) | {f'{accepted:.2f}' if drafts else ''} |"
            )
    yield ""
    yield from _unlike(cells)


def _unlike(cells: list[Figures]) -> Iterator[str]:
    """Where ways that must say the same did not, if anywhere."""
    mark = "same_tokens_as_"
    compared = [
        (cell, way, key.removeprefix(mark), value)
        for cell in cells
        for way, figures in cell["ways"].items()
        for key, value in figures.items()
        if key.startswith(mark)
    ]
    unlike = [one for one in compared if not one[3]]
    if compared:
        yield (
            f"In {len(compared) - len(unlike)} of {len(compared)} comparisons of ways that must "
            "say the same, they did."
        )
        yield ""
        for cell, way, rival, _ in unlike:
            yield f"- {_where(cell)}: {LABELS[way]} against {LABELS[rival]} differ."
        if unlike:
            yield ""


def _left_out(cells: Mapping[str, Figures]) -> Iterator[str]:
    skipped = [one for one in cells.values() if "skipped" in one]
    if skipped:
        yield "Not measured:"
        yield ""
        for one in skipped:
            yield f"- {_where(one)}: {one['skipped']}."
        yield ""


def _copied(copied: Figures) -> Iterator[str]:
    tokens = copied["answer_tokens"]
    yield "## Answers that copy"
    yield ""
    yield (
        f"Atlas, asked to quote a sentence about an invented subject: the first "
        f"{copied['counted']} of {copied['asked']} questions whose answer is at least "
        f"{copied['shortest']} tokens of the passages (median {tokens['median']:.0f} tokens, end "
        "token included). Seconds of whole answers, prefills included; passes behind the "
        "prefills. A question's ratio is the median of its rounds; median and quartiles over "
        "questions."
    )
    yield ""
    yield "| | ms per answer | relative | passes per token |"
    yield "|---|---|---|---|"
    for way, words in WORDS.items():
        over = copied["over_generate"][way]
        yield (
            f"| {words} | {1e3 * copied['seconds'][way]['median']:.0f} | "
            f"{spread(over) if way != 'generate' else '1'} | "
            f"{copied['passes_per_token'][way]:.2f} |"
        )
    yield ""
    yield (
        f"Drafted AdaCAD relative to conflictkit's one stream: "
        f"{spread(copied['drafted_over_plain'])}; to AdaCAD without drafts: "
        f"{spread(copied['drafted_over_adacad'])}; "
        f"{copied['accepted_per_pass']:.1f} accepted tokens per pass. In "
        f"{copied['same_as_generate']} of {copied['counted']} questions `generate` gives the same "
        "answer."
    )
    yield ""


def _profile(score: Figures) -> Iterator[str]:
    yield "## Where scoring spends its time"
    yield ""
    yield "| operation | seconds in scoring | in two bare passes |"
    yield "|---|---|---|"
    bare = score["profile"]["bare"]
    for name, taken in score["profile"]["scored"].items():
        other = f"{bare[name]:.3f}" if name in bare else ""
        yield f"| `{name}` | {taken:.3f} | {other} |"
    yield ""


def plot(cells: Mapping[str, Figures], file: Path) -> None:
    """Relative seconds over the context's length: a row of panels per model, one per batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [one for one in cells.values() if "ways" in one]
    models = list(dict.fromkeys(map(_named, measured)))
    batches = sorted({one["batch"] for one in measured})
    lengths = sorted({one["context"] for one in measured})
    drawn = [w for w in WAYS if w not in ("plain", "reread") and any(has(c, w) for c in measured)]
    colours = dict(zip(drawn, pyplot.get_cmap("tab10").colors, strict=False))
    made, axes = pyplot.subplots(
        len(models), len(batches), figsize=(3.3 * len(batches), 2.9 * len(models)),
        layout="constrained", sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for row, model in zip(axes, models, strict=True):
        for place, batch in zip(row, batches, strict=True):
            own = [one for one in measured if (_named(one), one["batch"]) == (model, batch)]
            for way, colour in colours.items():
                some = sorted((c for c in own if has(c, way)), key=lambda c: c["context"])
                ratios = [one["ways"][way]["over_plain"] for one in some]
                middle = [one["median"] for one in ratios]
                reach = [
                    [one["median"] - one["low"] for one in ratios],
                    [one["high"] - one["median"] for one in ratios],
                ]
                place.errorbar(
                    [one["context"] for one in some], middle, yerr=reach, color=colour,
                    marker="o", markersize=3, linewidth=1.2, capsize=2,
                )  # fmt: skip
            place.axhline(1, color="grey", linewidth=0.8, linestyle=":")
            place.set_title(f"{model}, {batch} row{'s' * (batch > 1)}", fontsize=9)
            place.spines[["top", "right"]].set_visible(False)
            place.grid(alpha=0.25)
            place.set_xscale("log", base=2)
            place.set_xticks(lengths, [str(one) for one in lengths], minor=False)
            place.set_ylim(bottom=0)
    lines = [pyplot.Line2D([], [], color=colour, marker="o") for colour in colours.values()]
    names = [LABELS[way].replace("`", "") for way in colours]
    made.legend(lines, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    for place in axes[-1]:
        place.set_xlabel("tokens of the context", fontsize=9)
    for place in axes[:, 0]:
        place.set_ylabel("seconds per token\nover plain generate", fontsize=9)
    made.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
