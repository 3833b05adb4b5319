"""What probes see of a conflict in Atlas, on three training seeds: python experiments/probes/run.py

Every conflict stands beside the same passage with memory's answer in place of the context's, so
that text alone says nothing. Probes of every layer and kind are fitted on the train split, chosen
on validation and measured on test; beside them stand a classifier of the text and the divergence
of the streams. Probes of heads (`readers.py`) read along memory's answer. Further: a relation left
out of training, and which source will win. Activations are kept below runs/probes: a killed run
goes on. Writes results/<seed>.json, plot.png and what the numbers say into README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "heads"), str(HERE.parent)]

import claims  # noqa: E402
import numpy as np  # noqa: E402
import readers  # noqa: E402
import torch  # noqa: E402
from seed import Seed  # noqa: E402

import conflictkit as ck  # noqa: E402
from conflictkit.detectors.probe import KINDS, LayerProbe, fit  # noqa: E402
from conflictkit.evaluation.logistic import Numbers, numbered  # noqa: E402
from conflictkit.evaluation.metrics import detection, intervals  # noqa: E402
from conflictkit.mechanics.capture import capture  # noqa: E402
from conflictkit.mechanics.probing import labelled  # noqa: E402
from conflictkit.types import Case  # noqa: E402

SEEDS = ("seed0", "seed1", "seed2")
SIZES = {"train": 900, "validation": 300, "test": 500}
"""Conflicts; as many passages that agree stand beside them."""
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
LAYERS = tuple(range(6))
ASKED = 0.95


def pairs(cases: Sequence[Case], count: int) -> list[Case]:
    """Conflicts, each with its twin: the same passage giving memory's answer."""
    draw = random.Random(0)
    found: list[Case] = []
    conflicts = [one for one in cases if one.state in ("correction", "resistance")]
    for case in draw.sample(conflicts, len(conflicts)):
        word = re.compile(rf"(?<!\w){re.escape(case.context_answers[0])}(?!\w)")
        told = tuple(word.sub(lambda _, c=case: c.memory_answers[0], one) for one in case.contexts)
        if told != case.contexts and len(found) < 2 * count:
            twin = replace(
                case, id=f"{case.id}-twin", contexts=told, context_answers=case.memory_answers,
                state="agreement",
            )  # fmt: skip
            found += [case, twin]
    return found


class Split:
    """Cases of one split with their activations."""

    def __init__(self, seed: Seed, name: str, folder: Path) -> None:
        self.cases = pairs(ck.atlas.cases(name, screened=seed.facts), SIZES[name])
        self.kept = capture(
            seed.model, self.cases, folder / f"conflict-{name}", kinds=KINDS, layers=LAYERS
        )
        rows = self.kept.places()[0].tolist()
        self.cases = [self.cases[row] for row in rows]
        self.labels = torch.tensor([one.state != "agreement" for one in self.cases])
        self.subjects = numbered([one.subject for one in self.cases])

    def values(self, kind: str, layer: int) -> torch.Tensor:
        return self.kept.values(kind, layer)


def area(scores: Any, labels: torch.Tensor) -> float:
    """AUROC."""
    one = np.zeros(len(labels), np.int64)
    scored = detection.Scored(np.asarray(scores, float), labels.numpy(), one)
    return float(detection.ranked(scored, np.ones((1, 1)))[0][0])


def areas(
    labels: torch.Tensor, subjects: Numbers, *several: Any, resamples: int = 2000
) -> list[dict[str, float]]:
    """AUROC of each, with its interval by subject, and the first one's less each other's."""
    count = int(subjects.max()) + 1
    drawn = intervals.draw_subjects(count, resamples, np.random.default_rng(0))
    weights = np.vstack([np.ones((1, count)), drawn])
    found = []
    for scores in several:
        scored = detection.Scored(np.asarray(scores, float), labels.numpy(), subjects)
        found.append(detection.ranked(scored, weights)[0])
    told = []
    for one in found:
        less = found[0] - one
        bounds = [np.quantile(x[1:], q) for x in (one, less) for q in (0.025, 0.975)]
        told.append({
            "auroc": float(one[0]), "low": float(bounds[0]), "high": float(bounds[1]),
            "probe_minus": float(less[0]), "minus_low": float(bounds[2]),
            "minus_high": float(bounds[3]),
        })  # fmt: skip
    return told


def chosen(train: Split, held: Split, places: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Every place at the strength that validation chooses, and the best place."""
    found = {}
    for kind, layer in places:
        tried = []
        for strength in STRENGTHS:
            weights, bias = fit(train.values(kind, layer), train.labels, strength=strength)
            said = held.values(kind, layer) @ weights + bias
            tried.append((area(said, held.labels), strength, weights, bias))
        found[kind, layer] = max(tried, key=lambda one: one[0])
    best = max(found, key=lambda place: found[place][0])
    return {"places": found, "best": best}


def by_text(train: Split, test: Split) -> np.ndarray[Any, Any]:
    """A classifier of the words alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=1.0, max_iter=2000)
    )
    texts = [["\n".join((*one.contexts, one.question)) for one in s.cases] for s in (train, test)]
    words.fit(texts[0], train.labels.numpy())
    return words.decision_function(texts[1])


def moved(train: Split, test: Split, place: tuple[str, int], strength: float) -> dict[str, Any]:
    """A relation left out of training: AUROC on it, beside a probe that saw it."""
    found = {}
    for relation in sorted({one.relation for one in test.cases}):
        out = torch.tensor([one.relation == relation for one in train.cases])
        there = torch.tensor([one.relation == relation for one in test.cases])
        if int(out.sum()) < 40 or int(there.sum()) < 40:
            continue
        values, labels = train.values(*place), train.labels
        weights, bias = fit(values[~out], labels[~out], strength=strength)
        said = test.values(*place)[there] @ weights + bias
        found[relation] = {"auroc": area(said, test.labels[there]), "n": int(there.sum())}
    return found


def source(seed: Seed, folder: Path, place_kinds: Sequence[str] = ("residual",)) -> dict[str, Any]:
    """Which source will win: chosen on validation, measured on test."""
    sides = {}
    for name in ("train", "validation", "test"):
        cases = ck.atlas.cases(name, screened=seed.facts)
        conflicts = [one for one in cases if one.state in ("correction", "resistance")]
        mine = random.Random(1).sample(conflicts, min(len(conflicts), SIZES[name]))
        told, labels, _ = labelled(seed.model, mine, "source", folder / f"source-{name}", {})
        kept = capture(
            seed.model, told, folder / f"source-{name}-acts", kinds=place_kinds, layers=LAYERS
        )
        rows = kept.places()[0].tolist()
        sides[name] = (kept, labels[rows], [told[row].subject for row in rows])
    best: tuple[float, Any] = (0.0, None)
    curve = {}
    for kind in place_kinds:
        for layer in LAYERS:
            for strength in STRENGTHS:
                kept, labels, _ = sides["train"]
                weights, bias = fit(kept.values(kind, layer), labels, strength=strength)
                kept, labels, _ = sides["validation"]
                reached = area(kept.values(kind, layer) @ weights + bias, labels)
                curve[f"{kind}.{layer}"] = max(reached, curve.get(f"{kind}.{layer}", 0.0))
                if reached > best[0]:
                    best = reached, (kind, layer, weights, bias)
    kind, layer, weights, bias = best[1]
    kept, labels, subjects = sides["test"]
    (cell,) = areas(labels, numbered(subjects), kept.values(kind, layer) @ weights + bias)
    return {"kind": kind, "layer": layer, "n": len(labels), **cell, "validation": curve}


def measured(seed: Seed, runs: Path) -> tuple[dict[str, Any], list[LayerProbe]]:
    """All figures of one training seed, and its probes: of one vector, and of heads."""
    folder = runs / seed.name
    train, held, test = (Split(seed, name, folder) for name in ("train", "validation", "test"))
    places = [(kind, layer) for kind in KINDS for layer in LAYERS]
    told = chosen(train, held, places)
    kind, layer = told["best"]
    _, strength, weights, bias = told["places"][kind, layer]
    curve = {
        f"{k}.{at}": area(test.values(k, at) @ w + b, test.labels)
        for (k, at), (_, _, w, b) in told["places"].items()
    }
    mine = test.values(kind, layer) @ weights + bias
    words = by_text(train, test)
    scores = (mine, words, seed.diverged(test.cases, by_length=True))
    cells = areas(test.labels, test.subjects, *scores)
    reading, reader = readers.measured(seed, (train, held, test), words, area, areas)
    figures = {
        "command": "python experiments/probes/run.py",
        "model": {"name": seed.name, "fingerprint": seed.model.fingerprint},
        "versions": seed.versions,
        "cases": {one: len(split.cases) for one, split in
                  (("train", train), ("validation", held), ("test", test))},
        "chosen": {"kind": kind, "layer": layer, "strength": strength},
        "test": dict(zip(("probe", "text", "jsd"), cells, strict=True)),
        "curve": curve,
        "transfer": moved(train, test, (kind, layer), strength),
        "source": source(seed, folder),
        "heads": reading,
    }  # fmt: skip
    probe = LayerProbe(
        "conflict", kind, layer, weights, bias, seed.name, seed.model.fingerprint,
        {"strength": strength, "test": cells[0]},
    )  # fmt: skip
    return figures, [probe, reader]


def says(seeds: dict[str, Any]) -> list[str]:
    """What the numbers say."""

    def cell(one: Any) -> str:
        return f"{one['auroc']:.3f} ({one['low']:.3f} to {one['high']:.3f})"

    rows = list(seeds.values())
    reach = sum(one["test"]["probe"]["auroc"] >= ASKED for one in rows)
    above = {
        name: sum(one["test"][name]["minus_low"] > 0 for one in rows) for name in ("text", "jsd")
    }
    return [
        *readers.says(seeds, ASKED),
        "- AUROC of the best linear probe of one vector, chosen on validation (seeds "
        f"{', '.join(seeds)}): "
        + "; ".join(
            f"{cell(one['test']['probe'])} at {one['chosen']['kind']} {one['chosen']['layer']}"
            for one in rows
        )
        + f". At least {ASKED}: {reach} of {len(rows)} seeds.",
        "- A classifier of the text: "
        + "; ".join(cell(one["test"]["text"]) for one in rows)
        + f". The probe is above it, interval included, on {above['text']}.",
        "- JSD of the streams: "
        + "; ".join(cell(one["test"]["jsd"]) for one in rows)
        + f". The probe is above it, interval included, on {above['jsd']}; below it, interval "
        f"included, on {sum(one['test']['jsd']['minus_high'] < 0 for one in rows)}.",
        "- A relation left out of training, AUROC on it: "
        + "; ".join(
            ", ".join(f"{name} {one['auroc']:.2f}" for name, one in row["transfer"].items())
            for row in rows
        )
        + ".",
        "- Which source will win, AUROC on test: "
        + "; ".join(f"{cell(one['source'])} behind layer {one['source']['layer']}" for one in rows)
        + ".",
    ]


def plot(seeds: dict[str, Any], file: Path) -> None:
    """AUROC over layers, by kind, for both targets."""
    made, axes = claims.figure(7.2, 4.2)
    styles = dict(zip(KINDS, ("-", "--", ":"), strict=True))
    for number, (name, one) in enumerate(seeds.items()):
        for kind in KINDS:
            ys = [one["curve"][f"{kind}.{layer}"] for layer in LAYERS]
            axes.plot(
                LAYERS, ys, styles[kind], color=f"C{number}",
                label=f"conflict, {kind}, {name}" if number == 0 else None,
            )  # fmt: skip
        ys = [one["source"]["validation"][f"residual.{layer}"] for layer in LAYERS]
        axes.plot(LAYERS, ys, "o-", color=f"C{number}", label=f"which source wins, {name}")
        ys = [one["heads"]["curve"][str(layer)] for layer in LAYERS]
        axes.plot(
            LAYERS, ys, "s-", color=f"C{number}",
            label=f"conflict, heads from here on, {name}" if number == 0 else None,
        )  # fmt: skip
        axes.axhline(one["test"]["jsd"]["auroc"], color=f"C{number}", lw=0.6, ls="-.")
    axes.set_xlabel("layer")
    axes.set_ylabel("AUROC (dash-dotted: JSD of the streams)")
    axes.legend(fontsize=7, loc=(0.68, 0.16))
    made.savefig(file, dpi=120)


def main() -> None:
    """Every seed, then the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", nargs="+", default=SEEDS)
    options.add_argument("--runs", type=Path, default=Path("runs/probes"))
    arguments = options.parse_args()
    (HERE / "results").mkdir(exist_ok=True)
    for name in arguments.seeds:
        figures, probes = measured(Seed(name, arguments.runs), arguments.runs)
        text = json.dumps(figures, indent=1) + "\n"
        (HERE / "results" / f"{name}.json").write_text(text, encoding="utf-8")
        print(name, json.dumps(figures["test"]), flush=True)
        for probe, file in zip(probes, ("probe", "heads"), strict=True):
            probe.save(arguments.runs / name / f"{file}.safetensors")
    seeds = {
        file.stem: json.loads(file.read_text()) for file in sorted(HERE.glob("results/*.json"))
    }
    lines = says(seeds)
    readme = HERE / "README.md"
    before, _, after = readme.read_text(encoding="utf-8").split(claims.MARK)
    joined = "\n".join(lines)
    readme.write_text(claims.MARK.join([before, f"\n{joined}\n", after]), encoding="utf-8")
    plot(seeds, HERE / "plot.png")
    print(joined)


if __name__ == "__main__":
    main()
