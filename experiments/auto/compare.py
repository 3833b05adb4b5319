"""`auto` against every published rule, the best constant weight and a plain gate, each at its best.

Every rival's setting is the best one on the tuning cases, for each of the two figures by itself;
then all are measured on other cases. Differences are paired by case, intervals are by subject.

Run: python experiments/auto/compare.py --cases atlas:test
Writes results/<cases>.json and .md beside this file; answers are kept below runs/auto, so the same
command goes on where it was cut short.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import HERE, folder, load, parser, told

import conflictkit as ck
from conflictkit.cli._progress import watching
from conflictkit.evaluation import Result, Run, evaluate
from conflictkit.evaluation.cases import load_cases
from conflictkit.evaluation.contenders import contenders
from conflictkit.evaluation.metrics import Cell, summarise
from conflictkit.policy import Policy
from conflictkit.states import STATES
from conflictkit.types import Case

AUTO, PLAIN = "auto", "plain"
FIGURES = ("minimum", "harmonic")
GUARDED = ("agreement", "quoting")
ALLOWED = 0.01
LEAST = 20
"""Cases that a cell needs to count among the worst."""
WORST = 4
_CONSTANT = ("plain", "memory", "interpolate?weight=0.05:0.95:0.05")
_CAD = ("cad?alpha=0.1", "cad?alpha=0.25:2:0.25")
SWEEPS: Mapping[str, Sequence[str]] = {
    "plain": ("plain",),
    "memory": ("memory",),
    "best constant weight": (*_CONSTANT, *_CAD),
    "cad": _CAD,
    "adacad": ("adacad?threshold=0:0.6:0.1",),
    "coiecd": ("coiecd?beta=0.25:1:0.25&ratio=1:8:1",),
    "ck-plug": ("ck-plug", "ck-plug?alpha=0:1:0.1"),
    "arr": ("arr",),
    "grd": tuple(f"grd?depth=0:1:0.25&gate={gate}" for gate in ("full", "confidence", "entropy")),
}
GATE = "memory-confidence gate"
GATES = {
    text: Policy.of("memory", when=text)
    for moment in ("", " at prompt")
    for bound in (
        0.05,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        0.95,
        0.99,
        0.992,
        0.995,
        0.998,
        0.999,
        0.9995,
    )
    for text in (f"memory-confidence > {bound:g}{moment}",)
}


def main() -> None:
    """Tune, measure, write."""
    options = parser(__doc__)
    options.add_argument("--cases", default="atlas:test", help="cases to measure on")
    options.add_argument("--tune", default="atlas:validation", help="cases to find settings on")
    options.add_argument("--policy", type=Path, default=ck.atlas.auto())
    options.add_argument("--results", type=Path, default=HERE / "results")
    options.add_argument("--name", help="of the results; by default the cases'")
    arguments = options.parse_args()
    model = load(arguments)
    policy = Policy.load(arguments.policy)
    policy.check(model.name, model.fingerprint)  # before the long part
    tuning = tuned(arguments, model)
    best = {figure: chosen(tuning, figure) for figure in FIGURES}
    run = measured(arguments, model, policy, best)
    figures = {
        "command": f"python experiments/auto/compare.py --cases {arguments.cases}"
        + (f" --limit {arguments.limit}" if arguments.limit else ""),
        "tune": {"spec": arguments.tune, **told(tuning)},
        "cases": {"spec": arguments.cases, **told(run)},
        "policy": policy.to_dict(),
        "limit": arguments.limit,
        **compared(run, best, arguments.seed),
        "cells": cells(run, arguments.seed),
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    name = arguments.name or arguments.cases.replace(":", "-").replace("/", "-")
    path = arguments.results / name
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(figures), encoding="utf-8")
    print(page(figures))


def tuned(arguments: Any, model: Any) -> Run:
    """All settings on the tuning cases; the guards do not decide, so they are left out."""
    specs = list(dict.fromkeys(spec for family in SWEEPS.values() for spec in family))
    cases = [case for case in load_cases(arguments.tune) if case.state in STATES]
    return _evaluate(arguments, model, cases, specs, GATES, arguments.tune, "tune")


def chosen(tuning: Run, figure: str) -> dict[str, str]:
    """Family -> the label that is best on the tuning cases."""
    if tuning.summary is None:
        raise SystemExit("the tuning run has no summary")
    table = tuning.summary.cells
    families = {
        name: [one.label for group in contenders(list(specs)) for one in group]
        for name, specs in SWEEPS.items()
    }
    families[GATE] = list(GATES)
    return {
        name: max(labels, key=lambda label: table[label][figure].value)
        for name, labels in families.items()
    }


def measured(
    arguments: Any, model: Any, policy: Policy, best: Mapping[str, Mapping[str, str]]
) -> Run:
    """`plain`, `memory`, the best settings and `auto` on the cases to measure on."""
    labels = list(dict.fromkeys(label for family in best.values() for label in family.values()))
    gates = {label: GATES[label] for label in labels if label in GATES}
    specs = list(dict.fromkeys([PLAIN, *(label for label in labels if label not in gates)]))
    cases = load_cases(arguments.cases)
    policies = {AUTO: policy, **gates}
    # Another policy or other settings are another run.
    asked = json.dumps([specs, [policies[name].to_dict() for name in policies]])
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    return _evaluate(arguments, model, cases, specs, policies, arguments.cases, f"measure-{digest}")


def _evaluate(
    arguments: Any,
    model: Any,
    cases: Sequence[Case],
    specs: Sequence[str],
    policies: Mapping[str, Policy],
    spec: str,
    what: str,
) -> Run:
    with watching(what.partition("-")[0], "answers") as watch:
        return evaluate(
            model,
            cases,
            specs,
            folder(arguments, model, f"{what}-{spec}"),
            policies=policies,
            limit=arguments.limit,
            spec=spec,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            top=1,
            progress=watch,
        )


def compared(run: Run, best: Mapping[str, Mapping[str, str]], seed: int) -> dict[str, Any]:
    """`auto` minus each rival, for both figures; `auto` minus `plain`, for the guards."""
    against = summarise(run.cases, run.results, baseline=AUTO, seed=seed)
    plain = run.summary or summarise(run.cases, run.results, seed=seed)
    rivals = {
        figure: {
            family: {
                "label": label,
                "value": _plain(against.cells[label][figure]),
                "difference": _turned(against.cells[label][figure]),
            }
            for family, label in families.items()
        }
        for figure, families in best.items()
    }
    return {
        "auto": {name: _plain(plain.cells[AUTO][name]) for name in _there(plain, AUTO)},
        "plain": {name: _plain(plain.cells[PLAIN][name]) for name in _there(plain, PLAIN)},
        "rivals": rivals,
        "guards": {
            name: _difference(plain.cells[AUTO][name])
            for name in GUARDED
            if name in plain.cells[AUTO]
        },
    }


def _there(summary: Any, label: str) -> list[str]:
    names = (*STATES, *FIGURES, "quoting", "reading", "recall", "other_rate")
    return [name for name in names if name in summary.cells[label]]


def cells(run: Run, seed: int) -> list[dict[str, Any]]:
    """Right answers of `auto` by state and kind of passage, worst first, and whom it trusted."""
    found = []
    kinds = dict.fromkeys((case.state, case.context_kind) for case in run.cases)
    for state, kind in kinds:
        if state not in STATES:
            continue
        mine = [c for c in run.cases if (c.state, c.context_kind) == (state, kind)]
        ids = {case.id for case in mine}
        results = [r for r in run.results if r.case in ids and r.method in (AUTO, PLAIN)]
        table = summarise(mine, results, seed=seed).cells
        found.append(
            {
                "state": state,
                "kind": kind,
                "n": len(mine),
                "auto": _plain(table[AUTO][state]),
                "plain": _plain(table[PLAIN][state]),
                "trusted": trusted(r for r in results if r.method == AUTO),
            }
        )
    return sorted(found, key=lambda cell: cell["auto"]["value"])


def trusted(results: Iterable[Result]) -> dict[str, float]:
    """Share of answers for which `auto` gave memory more weight, the context, or judged nothing."""
    counts: Counter[str] = Counter()
    for result in results:
        scores = (token["scores"] for token in result.tokens)
        first = next((one for one in scores if one["differ"]), None)
        side = "nobody" if first is None else "memory" if first["tau"] < 0.5 else "context"
        counts[side] += 1
    return {side: counts[side] / counts.total() for side in ("memory", "context", "nobody")}


def _plain(cell: Cell) -> dict[str, Any]:
    return {"value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n, "note": cell.note}


def _difference(cell: Cell) -> dict[str, Any]:
    ends = {"low": cell.difference_low, "high": cell.difference_high}
    return {"value": cell.difference, **ends, "p": cell.p}


def _turned(cell: Cell) -> dict[str, Any]:
    """The difference the other way round."""
    found = _difference(cell)
    value, low, high = (
        # 0.0 - 0.0 has no sign, -0.0 has.
        None if found[name] is None else 0.0 - found[name]
        for name in ("value", "high", "low")
    )
    return {"value": value, "low": low, "high": high, "p": found["p"]}


def page(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown; nothing in it is typed by hand."""
    return "\n".join([*_head(figures), *_rivals(figures), *_guards(figures), *_worst(figures), ""])


def _head(figures: Mapping[str, Any]) -> list[str]:
    model, cases = figures["cases"]["model"], figures["cases"]["cases"]
    return [
        f"# auto on {figures['cases']['spec']}",
        "",
        f"Made by `{figures['command']}`: model {model['name']} "
        f"({model['fingerprint'][:12]}, {model['dtype']}), {cases['count']:,} cases "
        f"({', '.join(f'{n:,} {state}' for state, n in cases['states'].items())}), seed "
        f"{figures['cases']['options']['seed']}, settings found on {figures['tune']['spec']}. "
        "Per cent; 95 % intervals by subject; differences are paired by case.",
        *(
            [f"**A trial on at most {figures['limit']:,} cases of each split.**"]
            if figures["limit"]
            else []
        ),
        "",
    ]


def _rivals(figures: Mapping[str, Any]) -> Iterable[str]:
    titles = {"minimum": "minimum of correction and resistance", "harmonic": "harmonic mean"}
    for figure in FIGURES:
        rivals = figures["rivals"][figure]
        yield f"## {titles[figure].capitalize()}: auto {_shown(figures['auto'][figure])}"
        yield ""
        yield "| rival | best setting | its figure | auto minus rival | interval above 0 |"
        yield "|---|---|---|---|---|"
        for family, found in rivals.items():
            above = (found["difference"]["low"] or 0) > 0
            yield (
                f"| {family} | `{found['label']}` | {_shown(found['value'])} | "
                f"{_shown(found['difference'], '+')} | {'yes' if above else 'no'} |"
            )
        short = [
            name for name, found in rivals.items() if not (found["difference"]["low"] or 0) > 0
        ]
        yield ""
        yield (
            f"Not shown to be above: {', '.join(short)}."
            if short
            else "Above every rival, intervals included."
        )
        yield ""


def _guards(figures: Mapping[str, Any]) -> Iterable[str]:
    yield "## What must not be spoilt"
    yield ""
    yield "| cases | auto | plain | auto minus plain | at most 1 point below |"
    yield "|---|---|---|---|---|"
    for name, found in figures["guards"].items():
        kept = round(found["value"], 9) >= -ALLOWED  # a difference of shares is not exact
        yield (
            f"| {name} | {_shown(figures['auto'][name])} | {_shown(figures['plain'][name])} | "
            f"{_shown(found, '+')} | {'yes' if kept else 'no'} |"
        )
    yield ""


def _worst(figures: Mapping[str, Any]) -> Iterable[str]:
    yield "## Where it fails"
    yield ""
    large = [cell for cell in figures["cells"] if cell["n"] >= LEAST]
    if not large:
        yield f"No state and kind of passage has {LEAST} cases: too few to say."
    for cell in large[:WORST]:
        side = cell["trusted"]
        yield (
            f"- {cell['state']}, {cell['kind']} passages ({cell['n']:,} cases): "
            f"{_shown(cell['auto'])} right, plain {_shown(cell['plain'])}. It trusted memory in "
            f"{100 * side['memory']:.0f} %, the context in {100 * side['context']:.0f} %; in "
            f"{100 * side['nobody']:.0f} % the streams never disagreed."
        )


def _shown(found: Mapping[str, Any], sign: str = "") -> str:
    if found["value"] is None:
        return "–"
    value = f"{100 * found['value']:{sign}.1f}"
    if found["low"] is None:
        return value
    return f"{value} ({100 * found['low']:{sign}.1f} to {100 * found['high']:{sign}.1f})"


if __name__ == "__main__":
    main()
