"""SpARE and steering directions against contrast and head methods, on one training seed of Atlas.

Run: python experiments/steering/compare.py --seed seed2

Features and directions come from the train split, settings from validation, figures from test.
Every family has 24 settings for each source; `free` is the one that gives most answers from that
source, `kept` the best one that loses at most two points of agreement, of reading about invented
subjects and of closed-book recall. CAD, AdaCAD, JuICE and PH3 are those of `experiments/heads`,
chosen in the same way on the same cases. Writes results/<seed>.json; answers are kept below
runs/steering, so the same command goes on where it was cut short. `--only spare`, after new
autoencoders, takes what the other families chose and reached from results/<seed>.json, where the
model, the versions and the cases are the same. `told.py` makes a page of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "heads"), str(HERE.parent / "auto")]

import run as heads  # noqa: E402
import torch  # noqa: E402
from declined import declined  # noqa: E402
from gated import gated  # noqa: E402
from seed import ALLOWED, GUARDS, Seed  # noqa: E402

import conflictkit as ck  # noqa: E402
from conflictkit.cli._progress import watching  # noqa: E402
from conflictkit.controller import Controller  # noqa: E402
from conflictkit.evaluation import Run, evaluate  # noqa: E402
from conflictkit.evaluation.metrics import summarise  # noqa: E402
from conflictkit.interventions.directions import Directions  # noqa: E402
from conflictkit.interventions.edited import spare as rule  # noqa: E402
from conflictkit.interventions.sae import SAE, by_layer  # noqa: E402
from conflictkit.mechanics.steering import fit_steering  # noqa: E402
from conflictkit.policy import Policy  # noqa: E402
from conflictkit.types import Case  # noqa: E402

SIDES = ("context", "memory")
LAYERS = (3, 4)
FAMILIES = ("spare", "caa", "repe", "iti")
RIVALS = ("cad", "adacad", "juice", "ph3")
LEARNT = 600
"""Conflicts of the train split that features and directions come from."""
DEGREES, SHARES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0), (0.003, 0.01, 0.03, 0.1)
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
PLACES = ("last_prompt", "generated", "all")
RANDOM_SETS = 20
TUNED = {name: count // 2 for name, count in heads.TUNED.items()}

Policies = dict[str, Policy]
Figures = Mapping[str, Any]
"""Family -> what is known of it from an earlier run."""


@dataclass(frozen=True)
class Bench:
    """A training seed, its autoencoders, and where answers are kept."""

    seed: Seed
    runs: Path

    @property
    def folder(self) -> Path:
        return self.runs / self.seed.name

    @property
    def saes(self) -> Path:
        return Path("runs/sae") / ("atlas" if self.seed.name == "seed2" else self.seed.name)

    def conflicts(self) -> list[Case]:
        """Those of the train split that features and directions come from."""
        several = [
            one for one in ck.atlas.cases("train", screened=self.seed.facts)
            if one.state in heads.CONFLICTS
        ]  # fmt: skip
        return random.Random(0).sample(several, min(LEARNT, len(several)))

    def fitted(self) -> dict[str, dict[Any, Policy]]:
        """Family -> share or None -> policy; kept, because fits take a while."""
        cases = self.conflicts()
        found: dict[str, dict[Any, Policy]] = {}
        for family, share in [("spare", one) for one in SHARES] + [
            (name, None) for name in FAMILIES[1:]
        ]:
            file = self.folder / "fits" / f"{family}-{share}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                more = {"sae": str(self.saes), "share": share} if share else {}
                layers = sorted(by_layer([str(self.saes)])) if share else LAYERS
                made = fit_steering(
                    self.seed.model, cases, family, layers=layers, keep=self.folder / "kept",
                    **more,
                )  # fmt: skip
                made.policy.save(file)
                file.with_suffix(".about").write_text(json.dumps(dict(made.about)))
                print(json.dumps(dict(made.about)), flush=True)
            found.setdefault(family, {})[share] = Policy.load(file)
        return found

    def answered(
        self, what: str, cases: Sequence[Case], policies: Policies, methods: Sequence[str] = ()
    ) -> Run:
        """Every case under every policy; kept, so that it is done once."""
        with watching(f"{self.seed.name}: {what}", "answers") as watch:
            return evaluate(
                self.seed.model, cases, list(methods), self.folder / what, policies=policies,
                spec=what, batch_size=64, top=1, progress=watch,
                probe=self.probe() if what.startswith("gated-") else None,
            )  # fmt: skip

    def probe(self) -> str:
        """The seed's probe of heads, as the experiment on probes chose it.

        Raises:
            SystemExit: that has not been run.
        """
        file = Path("runs/probes") / self.seed.name / "heads.safetensors"
        if not file.exists():
            raise SystemExit(f"{file} is missing: python experiments/probes/run.py")
        return str(file)


def settings(fitted: Mapping[str, Mapping[Any, Policy]], side: str) -> dict[str, Policies]:
    """Family -> label -> policy: 24 each."""
    found: dict[str, Policies] = {"spare": {}}
    for degree, share in itertools.product(DEGREES, SHARES):
        base = fitted["spare"][share]
        found["spare"][f"spare-{side}-g{degree:g}-p{share:g}"] = changed(
            base, prefer=side, degree=degree
        )
    for family in FAMILIES[1:]:
        base = fitted[family][None]
        found[family] = {
            f"{family}-{side}-a{alpha:g}-{place}": changed(
                base, prefer=side, alpha=alpha, positions=place
            )
            for alpha, place in itertools.product(ALPHAS, PLACES)
        }
    return found


def changed(policy: Policy, **params: Any) -> Policy:
    """The policy with other parameters."""
    return replace(policy, controller=Controller(replace(policy.controller.rule, **params)))


def tuned(
    bench: Bench, fitted: Any, known: Figures
) -> tuple[dict[str, Any], dict[str, Any], Policies]:
    """What the validation split chooses, what it reached, and the policies by label."""
    cases = bench.seed.drawn("validation", TUNED)
    plain = heads.rates(bench.answered("tune-plain", cases, {}, ["plain"]))["plain"]
    chosen: dict[str, Any] = {}
    reached: dict[str, Any] = {"plain": plain}
    policies: Policies = {}
    for side in SIDES:
        for family, several in settings(fitted, side).items():
            if family in known:
                reached |= {one: known[family]["tuning"][one] for one in several}
                policies |= several
                chosen.setdefault(family, {})[side] = known[family]["chosen"][side]
                continue
            table = heads.rates(bench.answered(f"tune-{family}-{side}", cases, several))
            reached |= table
            policies |= several

            def wanted(label: str, side: str = side, table: Any = table) -> tuple[float, float]:
                return table[label][f"{side}_rate"], -table[label]["other_rate"]

            safe = [
                one for one in table if all(table[one][g] >= plain[g] - ALLOWED for g in GUARDS)
            ]
            chosen.setdefault(family, {})[side] = {
                "free": max(table, key=wanted),
                "kept": max(safe, key=wanted, default="plain"),
            }
    return chosen, reached, policies


def rivals(seed: Seed) -> tuple[dict[str, Any], Run]:
    """The rivals' settings and their answers on test, as `experiments/heads` has them."""
    file = HERE.parent / "heads" / "results" / f"{seed.name}.json"
    everything = json.loads(file.read_text(encoding="utf-8"))["chosen"]
    run = seed.answered("test", seed.drawn("test", heads.TESTED), heads.labels_of(everything))
    return {name: everything[name] for name in RIVALS}, run


def tested(bench: Bench, chosen: dict[str, Any], policies: Policies) -> dict[str, Any]:
    """The chosen settings on test beside their rivals."""
    cases = bench.seed.drawn("test", heads.TESTED)
    wanted = [one for one in heads.labels_of(chosen) if one in policies]
    run = bench.answered("test", cases, {one: policies[one] for one in wanted}, ["plain"])
    others, theirs = rivals(bench.seed)
    names = {one for one in heads.labels_of(others) if one not in ("plain",)}
    results = [*run.results, *(one for one in theirs.results if one.method in names)]
    summary = summarise(cases, results)
    every = {**chosen, **others}
    return {
        "chosen": every,
        "test": heads.table(summary, (*heads.METRICS, heads.FORWARDS)),
        "rivals": {
            f"{family} {side} {how}": against(cases, results, every, family, side, how)
            for family in FAMILIES
            for side in SIDES
            for how in ("free", "kept")
        },
    }


def against(
    cases: Sequence[Case], results: Any, every: Any, family: str, side: str, how: str
) -> dict[str, Any]:
    """Rival -> its paired difference from a family in answers from `side`."""
    label = every[family][side][how]
    summary = summarise(cases, results, baseline=label)
    found = {}
    for rival, sides in every.items():
        if rival != family and side in sides:
            cell = summary.cells[sides[side][how]].get(f"{side}_rate")
            if cell is not None:
                found[rival] = heads.told(cell)
    return found


def random_ones(bench: Bench, policy: Policy, count: int = RANDOM_SETS) -> Policies:
    """The same edit with random features, or with random directions of the same norms."""
    found: Policies = {}
    made: Any = policy.controller.rule
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        if made.name == "spare":
            saes = {at: SAE.load(one) for at, one in by_layer([str(bench.saes)]).items()}
            texts = {}
            for side in SIDES:
                targets = rule.targets_of(getattr(made, side))
                texts[side] = rule.text_of({
                    at: dict(zip(
                        _live(bench, saes[at], draw, len(one), side), one.values(), strict=True
                    ))
                    for at, one in targets.items()
                })  # fmt: skip
            found[f"random-{number}"] = changed(policy, digest="", **texts)
        else:
            vectors = Directions.read(made.directions).vectors
            drawn = {at: torch.randn(len(one), generator=draw) for at, one in vectors.items()}
            sized = {at: one / one.norm() * vectors[at].norm() for at, one in drawn.items()}
            found[f"random-{number}"] = changed(policy, directions=str(Directions(sized)))
    return found


_FIRES: dict[tuple[str, int], list[int]] = {}


def _live(bench: Bench, sae: SAE, draw: torch.Generator, count: int, side: str) -> list[int]:
    """Random features that fire on conflicts; the halves of context and memory do not overlap."""
    key = (bench.seed.name, sae.layer)
    if key not in _FIRES:
        from conflictkit.mechanics.captured import load

        layers = sorted(by_layer([str(bench.saes)]))
        kept = load(bench.folder / "kept" / ("layers-" + "-".join(map(str, layers))))
        fires = (sae.code(kept.values("residual", sae.layer)) > 0).any(0)
        _FIRES[key] = fires.nonzero()[:, 0].tolist()
    mine = _FIRES[key][0::2] if side == "context" else _FIRES[key][1::2]
    order = torch.randperm(len(mine), generator=draw).tolist()
    return [mine[one] for one in order[:count]]


def controlled(bench: Bench, chosen: Any, policies: Policies, known: Figures) -> dict[str, Any]:
    """The chosen setting of every family among 20 random ones, in answers from each source."""
    cases = bench.seed.drawn("test", heads.CONTROLLED)
    found = {}
    for family, side in itertools.product(FAMILIES, SIDES):
        if family in known:
            found[f"{family} {side}"] = known[family]["random"][side]
            continue
        label = chosen[family][side]["free"]
        several = {label: policies[label], **random_ones(bench, policies[label])}
        table = heads.rates(bench.answered(f"random-{family}-{side}", cases, several))
        mine = [table[one][f"{side}_rate"] for one in table if one != label]
        found[f"{family} {side}"] = {
            "best": table[label][f"{side}_rate"],
            "mean": statistics.fmean(mine),
            "deviation": statistics.pstdev(mine),
            "as good": sum(one >= table[label][f"{side}_rate"] for one in mine),
            "of": len(mine),
        }
    return found


def known(bench: Bench, only: Sequence[str]) -> Figures:
    """What an earlier run found of the families that are not run again.

    Raises:
        SystemExit: it was of another model, other versions or other cases.
    """
    if not only:
        return {}
    path = HERE / "results" / f"{bench.seed.name}.json"
    past = json.loads(path.read_text(encoding="utf-8"))
    if past["model"]["fingerprint"] != bench.seed.model.fingerprint or (
        past["versions"] != bench.seed.versions
    ):
        raise SystemExit(f"{path} is of another model or other versions: leave out --only")
    return {
        family: {
            "tuning": past["tuning"],
            "chosen": past["chosen"][family],
            "random": {side: past["random"][f"{family} {side}"] for side in SIDES},
        }
        for family in FAMILIES
        if family not in only
    }


def main() -> None:
    """All stages, each kept."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seed", default="seed2", help="seed0, seed1 or seed2 (it ships)")
    options.add_argument("--runs", type=Path, default=Path("runs/steering"), help="keeps answers")
    options.add_argument("--heads", type=Path, default=Path("runs/heads"), help="rivals' answers")
    options.add_argument("--only", nargs="+", choices=FAMILIES, default=[], help="run anew")
    arguments = options.parse_args()
    bench = Bench(Seed(arguments.seed, arguments.heads), arguments.runs)
    past = known(bench, arguments.only)
    fitted = bench.fitted()
    chosen, tuning, policies = tuned(bench, fitted, past)
    about = {
        file.stem: json.loads(file.read_text())
        for file in sorted((bench.folder / "fits").glob("*.about"))
    }
    figures = {
        "command": f"python experiments/steering/compare.py --seed {bench.seed.name}",
        "model": {"name": bench.seed.name, "fingerprint": bench.seed.model.fingerprint},
        "versions": bench.seed.versions,
        "autoencoders": json.loads((bench.saes / "card.json").read_text()),
        "fits": about,
        "tuning": tuning,
        **tested(bench, chosen, policies),
        "random": controlled(bench, chosen, policies, past),
        "gated": gated(bench, chosen, policies),
        "declined": declined(bench),
    }
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / f"{bench.seed.name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
