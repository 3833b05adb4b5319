"""Head methods against each other, on one training seed of Atlas.

Run: python experiments/heads/run.py --seed seed2

Heads come from the train split, settings from validation, figures from test. Every family has 24
settings for each source; `free` is the one that gives most answers from that source, as the papers
choose, `kept` the best one that loses at most two points of agreement, of reading about invented
subjects and of closed-book recall. Writes results/<seed>.json beside this file; answers are kept
below runs/heads, so the same command goes on where it was cut short. `told.py` makes pages of it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "auto")]

import contests  # noqa: E402
import roles  # noqa: E402
import torch  # noqa: E402
from cases import forms  # noqa: E402
from contests import SIDES, other  # noqa: E402
from seed import ALLOWED, CONFLICTS, GUARDS, KINDS, Seed  # noqa: E402

from conflictkit.evaluation import Run  # noqa: E402
from conflictkit.evaluation.metrics import Cell, summarise  # noqa: E402

SIZES = (1, 2, 3, 5)
RANDOM_SETS = 20
TUNED = {**dict.fromkeys(KINDS, 40), "agreement": 60, "reading": 40, "recall": 40}
TESTED = {**dict.fromkeys(KINDS, 200), "agreement": 300, "reading": 200, "recall": 200}
CONTROLLED = dict.fromkeys(KINDS, 25)
FORMED = dict.fromkeys(KINDS, 50)
CURVED = dict.fromkeys(KINDS, 50)
SEARCHED = dict.fromkeys(KINDS, 20)
GUARDED = dict.fromkeys(GUARDS, 60)
"""Beside the curves and the sets, where conflicts alone are answered otherwise."""
METRICS = ("context_rate", "memory_rate", "other_rate", *CONFLICTS, *GUARDS)
FORWARDS = "forwards_per_token"


def main() -> None:
    """All stages, each kept."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seed", default="seed2", help="seed0, seed1 or seed2 (it ships)")
    options.add_argument("--threads", type=int, help="threads of torch")
    options.add_argument("--share", type=float, default=1.0, help="of every sample, for trying")
    options.add_argument("--runs", type=Path, default=Path("runs/heads"), help="keeps answers")
    arguments = options.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seed = Seed(arguments.seed, arguments.runs, arguments.share)
    chosen, tuning = tuned(seed)
    figures = {
        "command": f"python experiments/heads/run.py --seed {seed.name}",
        "share": seed.share,
        "model": {"name": seed.name, "fingerprint": seed.model.fingerprint},
        "versions": seed.versions,
        "samples": {"validation": TUNED, "test": TESTED, "random sets": CONTROLLED},
        "chosen": chosen,
        "tuning": tuning,
        **tested(seed, chosen),
        "curve": curve(seed),
        "search": search(seed),
        "sets": sets(seed, chosen),
        "forms": formed(seed, chosen),
        "transfer": roles.transfer(seed),
        "roles": roles.roles(seed),
    }
    folder = HERE / "results" if seed.share == 1 else arguments.runs / seed.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{seed.name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(path)


def tuned(seed: Seed) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that the validation split chooses, and what they reached there."""
    cases = seed.drawn("validation", TUNED)
    plain = rates(seed.answered("tune-plain", cases, ["plain"]))["plain"]
    chosen: dict[str, Any] = {}
    reached: dict[str, Any] = {"plain": plain}
    for (family, side), specs in contests.settings(seed.rankings).items():
        what = f"tune-{family}-{side}" if family != "head-scale" else "tune-head-scale"
        table = rates(seed.answered(what, cases, specs))
        reached |= table

        def wanted(label: str, side: str = side, table: Any = table) -> tuple[float, float]:
            return table[label][f"{side}_rate"], -table[label]["other_rate"]

        safe = [one for one in table if all(table[one][g] >= plain[g] - ALLOWED for g in GUARDS)]
        chosen.setdefault(family, {})[side] = {
            "free": max(table, key=wanted),
            "kept": max(safe, key=wanted, default="plain"),
        }
    return chosen, reached


def rates(run: Run) -> dict[str, dict[str, float]]:
    """Label -> metric -> share."""
    assert run.summary is not None
    found: dict[str, dict[str, float]] = {}
    for label, row in run.summary.cells.items():
        found[label] = {name: row[name].value or 0.0 for name in METRICS if name in row}
    return found


def labels_of(chosen: Mapping[str, Any]) -> list[str]:
    """Every setting that was chosen, once."""
    picked = [one for sides in chosen.values() for both in sides.values() for one in both.values()]
    return list(dict.fromkeys(["plain", "memory", *picked]))


def tested(seed: Seed, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen settings on test, by kind of claim, and JuICE against its rivals."""
    cases = seed.drawn("test", TESTED)
    run = seed.answered("test", cases, labels_of(chosen))
    assert run.summary is not None
    by_kind = {}
    for kind in KINDS:
        mine = [one for one in cases if one.state in CONFLICTS and one.context_kind == kind]
        ids = {one.id for one in mine}
        results = [one for one in run.results if one.case in ids]
        by_kind[kind] = table(summarise(mine, results), ("context_rate", "memory_rate"))
    return {
        "test": table(run.summary, (*METRICS, FORWARDS)),
        "kinds": by_kind,
        "rivals": {
            f"{family} {side} {how}": against(run, chosen, family, side, how)
            for family, sides in chosen.items()
            for side in sides
            for how in ("free", "kept")
        },
    }


def table(summary: Any, metrics: Sequence[str]) -> dict[str, Any]:
    """Label -> metric -> value with interval, and the paired difference from `plain`."""
    return {
        label: {name: told(row[name]) for name in metrics if name in row}
        for label, row in summary.cells.items()
    }


def told(cell: Cell) -> dict[str, Any]:
    """A cell as the page needs it."""
    return {
        "value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n,
        "minus": cell.difference, "minus_low": cell.difference_low,
        "minus_high": cell.difference_high,
    }  # fmt: skip


def against(
    run: Run, chosen: Mapping[str, Any], family: str, side: str, how: str
) -> dict[str, Any]:
    """Rival -> its paired difference from a family, in answers from `side`, at the same choice."""
    label = chosen[family][side][how]
    summary = summarise(run.cases, run.results, baseline=label)
    found = {}
    for rival, sides in chosen.items():
        if rival != family and side in sides:
            cell = summary.cells[sides[side][how]].get(f"{side}_rate")
            if cell is not None:
                found[rival] = told(cell)
    return found


def curve(seed: Seed) -> dict[str, Any]:
    """Answers by source over alpha, for the best single head of either source."""
    cases = seed.drawn("test", CURVED)
    found = {}
    for source in SIDES:
        head = seed.rankings["attribution"].top(source, 1)
        specs = {alpha: contests.scale(head, alpha) for alpha in (*contests.ALPHAS, 1)}
        run = seed.answered(f"curve-{source}", cases, list(specs.values()))
        table = _with_guards(seed, f"curve-{source}", rates(run))
        found[source] = {
            "head": list(head[0]),
            "alpha": {f"{alpha:g}": table[specs[alpha]] for alpha in sorted(specs)},
        }
    return found


def search(seed: Seed) -> dict[str, Any]:
    """Every single head at a few alphas on validation, and the best one on test: what attribution,
    which looks at one pass, may have missed."""
    specs = [
        contests.scale([head], alpha) for head in _heads(seed) for alpha in contests.FEW_ALPHAS
    ]
    tried = rates(seed.answered("search", seed.drawn("validation", SEARCHED), specs))
    cases = seed.drawn("test", CURVED)
    found = {}
    for side in SIDES:
        best = max(tried, key=lambda label: tried[label][f"{side}_rate"])
        run = seed.answered(f"search-{side}", cases, [best])
        found[side] = {
            "label": best,
            "validation": tried[best],
            "test": _with_guards(seed, f"search-{side}", rates(run))[best],
        }
    return found


def _heads(seed: Seed) -> list[tuple[int, int]]:
    body = seed.rankings["attribution"]
    return [(layer, head) for layer in range(body.layers) for head in range(body.heads)]


def _with_guards(
    seed: Seed, what: str, table: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """The same settings on what they must not spoil."""
    cases = seed.drawn("test", GUARDED)
    guards = rates(seed.answered(f"{what}-guards", cases, list(table)))
    return {label: {**row, **guards[label]} for label, row in table.items()}


def sets(seed: Seed, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The same edit on the k best heads and on 20 random sets of k, in answers from each source."""
    cases = seed.drawn("test", CONTROLLED)
    edits = _edits(seed, chosen)
    plain = rates(seed.answered("sets-plain", cases, ["plain"]))
    found: dict[str, Any] = {"plain": _with_guards(seed, "sets-plain", plain)["plain"]}
    for name, (best, spec) in edits.items():
        for k in SIZES:
            label = spec(best(k), k)
            drawn = random_sets(seed, k, spec, label)
            table = rates(seed.answered(f"sets-{name}-{k}", cases, [label, *drawn]))
            side = name.rpartition("-")[2]
            mine = [table[one][f"{side}_rate"] for one in table if one != label]
            found[f"{name} {k}"] = {
                "best": _with_guards(seed, f"sets-{name}-{k}", {label: table[label]})[label],
                "random": {
                    "mean": statistics.fmean(mine),
                    "deviation": statistics.pstdev(mine),
                    "other": statistics.fmean(
                        table[one]["other_rate"] for one in table if one != label
                    ),
                    "as good": sum(one >= table[label][f"{side}_rate"] for one in mine),
                    "of": len(mine),
                },
            }
    return found


def _edits(seed: Seed, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Name-side -> its best 2k heads (helpful first), and from such heads to a spec."""
    ranking = seed.rankings
    found: dict[str, Any] = {}
    for side in SIDES:
        carriers = ranking["path-patching"].top(other(side), 24)
        found[f"ph3-{side}"] = (
            lambda k, heads=carriers: heads[:k],
            lambda heads, k: contests.prune(heads[:k]),
        )
        spec = _params(chosen["head-scale"][side]["free"])
        best = [source for source in SIDES if _is(spec["heads"], ranking["attribution"], source)]
        alpha, source = float(spec["alpha"]), best[0]
        found[f"head-scale-{side}"] = (
            lambda k, source=source: ranking["attribution"].top(source, k),
            lambda heads, k, alpha=alpha: contests.scale(heads[:k], alpha),
        )
        spec = _params(chosen["juice"][side]["free"])
        large, small = float(spec["enlarge"]), float(spec["suppress"])
        lists = ("suppress", "enlarge") if side == "context" else ("enlarge", "suppress")
        found[f"juice-{side}"] = (
            lambda k, lists=lists: [h for one in lists for h in ranking["juice"].top(one, k)],
            lambda heads, k, large=large, small=small: contests.turned(
                "juice", heads[:k], heads[k : 2 * k], large, small
            ),
        )
    spec = _params(chosen["decore"]["context"]["free"])
    found["decore-context"] = (
        lambda k: ranking["attention-mass"].top("context", k),
        lambda heads, k, cap=float(spec["cap"]): contests.mask(heads[:k], cap),
    )
    return found


def _params(label: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in label.partition("?")[2].split("&"))


def _is(text: str, ranking: Any, source: str) -> bool:
    return text == ".".join(map(str, ranking.top(source, 1)[0]))


def random_sets(seed: Seed, k: int, spec: Any, best: str) -> list[str]:
    """20 different sets of as many heads under the same edit, none of them the best."""
    every = _heads(seed)
    draw = random.Random(k)
    found: dict[str, None] = {}
    while len(found) < RANDOM_SETS:
        # Of 2k different heads an edit takes what it needs.
        if (one := spec(draw.sample(every, 2 * k), k)) != best:
            found[one] = None
    return list(found)


def formed(seed: Seed, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen settings on prompts of JuICE's two forms; nothing was tuned or trained on them."""
    cases = [form for case in seed.drawn("test", FORMED) for form in forms(case)]
    found = {}
    for form in ("substitution", "coherent"):
        mine = [one for one in cases if one.context_kind == form]
        families = {name: chosen[name] for name in ("juice", "juice-single", "ph3", "cad")}
        run = seed.answered(f"form-{form}", mine, labels_of(families))
        assert run.summary is not None
        found[form] = table(run.summary, ("context_rate", "memory_rate", "other_rate"))
        found[f"{form} rivals"] = {
            f"{side} {how}": against(run, families, "juice", side, how)
            for side in SIDES
            for how in ("free", "kept")
        }
    return found


if __name__ == "__main__":
    main()
