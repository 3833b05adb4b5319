"""Does a head keep its role across relations? Scores by relation; heads of one used on others."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

import contests
import numpy as np
from contests import SIDES, other
from scipy import stats
from seed import CONFLICTS, KINDS, Seed

from conflictkit.evaluation.metrics import summarise
from conflictkit.mechanics import attribution, items, patching

LEAST = 5
"""Items of every kind of claim that a relation needs to be looked at."""
MOST = 60
"""Items of a relation that are read."""
K = 3
DRAWN = 30
"""Test conflicts of each relation."""

Scores = Mapping[str, np.ndarray[Any, Any]]
"""Analysis -> `[items, heads]` of one relation."""


def evenly(pools: Mapping[tuple[str, str], list[Any]], relation: str, most: int) -> list[Any]:
    """As many of every kind of claim, drawn; none where a kind has too few.

    A relation's first cases are of one kind, and kinds differ more than relations do.
    """
    draw = random.Random(relation)
    mine = [pools[relation, kind] for kind in KINDS if (relation, kind) in pools]
    if len(mine) < len(KINDS) or min(map(len, mine)) < LEAST:
        return []
    each = min(most // len(KINDS), *map(len, mine))
    return [one for pool in mine for one in draw.sample(pool, each)]


@cache
def scored(seed: Seed) -> dict[str, Scores]:
    """Relation -> scores of its items of the train split."""
    cases = [one for one in seed.cases("train") if one.state in CONFLICTS]
    found, _ = items.build(seed.model, cases, require_corrupted=True)
    kinds = {one.id: one.context_kind for one in cases}
    pools: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for one in found:
        pools[one.relation, kinds[one.case_id]].append(one)
    scores: dict[str, Scores] = {}
    for relation in sorted({relation for relation, _ in pools}):
        mine = evenly(pools, relation, MOST)
        if not mine:
            continue
        memory, context = patching.path_patching(seed.model, mine, measure="logit")
        towards = attribution.attribution(seed.model, mine)
        scores[relation] = {
            "path-patching, context": context.flatten(1).double().numpy(),
            "path-patching, memory": memory.flatten(1).double().numpy(),
            "attribution": towards.flatten(1).double().numpy(),
        }
    return scores


def roles(seed: Seed) -> dict[str, Any]:
    """Rank correlation of heads' mean scores between relations, and between halves of one."""
    scores = scored(seed)
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {
        "items": {name: len(one["attribution"]) for name, one in scores.items()}
    }
    for name in next(iter(scores.values())):
        tables = {relation: one[name] for relation, one in scores.items()}
        pairs = {
            f"{a} / {b}": _spearman(tables[a].mean(0), tables[b].mean(0))
            for a, b in itertools.combinations(tables, 2)
        }
        mean = float(np.mean(list(pairs.values())))
        error = 1.96 * _jackknife(tables)
        found[name] = {
            "mean": mean,
            "low": max(-1.0, mean - error),
            "high": min(1.0, mean + error),
            "halves": float(np.mean([_halves(table, rng) for table in tables.values()])),
            "pairs": pairs,
        }
    return found


def _spearman(a: Any, b: Any) -> float:
    return float(stats.spearmanr(a, b).statistic)


def _jackknife(tables: Mapping[str, Any]) -> float:
    """Standard error of the mean over pairs of relations, for other items of the same relations.

    Not a bootstrap: items drawn twice make means noisier, and every correlation smaller.
    """
    whole = {name: one.mean(0) for name, one in tables.items()}
    variance = 0.0
    for relation, table in tables.items():
        count = len(table)
        found = []
        for place in range(count):
            means = {**whole, relation: np.delete(table, place, 0).mean(0)}
            found.append(
                np.mean([_spearman(means[relation], means[o]) for o in whole if o != relation])
            )
        # The other pairs do not change: a part of them all.
        part = 2 / len(tables)
        variance += (
            (count - 1) / count * float(np.sum((np.array(found) - np.mean(found)) ** 2)) * part**2
        )
    return variance**0.5


def _halves(table: Any, rng: np.random.Generator, times: int = 20) -> float:
    """What chance leaves of a correlation: between two random halves of the same relation's items,
    stepped up to their full number (Spearman-Brown)."""
    found = []
    for _ in range(times):
        order = rng.permutation(len(table))
        half = len(order) // 2
        r = _spearman(table[order[:half]].mean(0), table[order[half:]].mean(0))
        found.append(2 * r / (1 + r))
    return float(np.mean(found))


def transfer(seed: Seed) -> dict[str, Any]:
    """PH3 with heads from one relation, on the same one and on the others."""
    tables = scored(seed)
    pools: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for case in seed.cases("test"):
        if case.state in CONFLICTS:
            pools[case.relation, case.context_kind].append(case)
    tables = {name: one for name, one in tables.items() if evenly(pools, name, DRAWN)}
    cases = [case for relation in tables for case in evenly(pools, relation, DRAWN)]
    relation_of = {case.id: case.relation for case in cases}
    found: dict[str, Any] = {}
    for side in SIDES:
        specs = {"all": contests.prune(seed.rankings["path-patching"].top(other(side), K))}
        for relation, one in tables.items():
            means = one[f"path-patching, {other(side)}"].mean(0)
            heads = seed.rankings["path-patching"].heads
            best = [divmod(int(place), heads) for place in np.argsort(-means, kind="stable")[:K]]
            specs[relation] = contests.prune(best)
        run = seed.answered(f"relations-{side}", cases, ["plain", *specs.values()])
        shares: dict[str, dict[str, float]] = {}
        for relation in tables:
            mine = [case for case in cases if case.relation == relation]
            ids = {case.id for case in mine}
            table = summarise(mine, [one for one in run.results if one.case in ids], resamples=100)
            shares[relation] = {
                label: table.cells[label][f"{side}_rate"].value or 0.0 for label in table.methods
            }
        found[side] = {"specs": specs, "shares": shares, **_summed(shares, specs)}
    found["cases"] = {name: list(relation_of.values()).count(name) for name in tables}
    return found


def _summed(
    shares: Mapping[str, Mapping[str, float]], specs: Mapping[str, str]
) -> dict[str, float]:
    """Mean over relations: plain, heads of the relation itself, of another one, of all."""
    own = [shares[one][specs[one]] for one in shares]
    others = [shares[one][specs[two]] for one in shares for two in shares if one != two]
    return {
        "plain": float(np.mean([row["plain"] for row in shares.values()])),
        "own": float(np.mean(own)),
        "others": float(np.mean(others)),
        "all": float(np.mean([row[specs["all"]] for row in shares.values()])),
    }
