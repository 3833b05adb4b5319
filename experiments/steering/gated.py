"""Gates before an edit: the probe of heads and the divergence of the streams, against always on.

Gates are compared at one price: each has the threshold that 5 % of validation's agreements pass
under plain decoding, asked once at the prompt or at every token.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import run as heads
from seed import GUARDS

from conflictkit.controller import Controller
from conflictkit.policy import Policy

DETECTORS, TIMES = ("probe", "jsd"), ("at prompt", "at every token")
PASS = 0.05
"""Share of agreements that a gate lets through."""
AGREEMENTS = {"agreement": 300}
CASES = {**heads.CURVED, **heads.GUARDED}


def gates(bench: Any) -> dict[str, str]:
    """Name -> gate, at the threshold that validation gives it."""
    cases = bench.seed.drawn("validation", AGREEMENTS)
    found = {}
    for detector in DETECTORS:
        more = {"probe": bench.probe()} if detector == "probe" else {}
        told = []
        for start in range(0, len(cases), 50):
            several = cases[start : start + 50]
            answers = bench.seed.model.ask_batch(
                [one.question for one in several], [one.contexts for one in several], "plain",
                when=f"{detector} > 0.5", max_new_tokens=16, **more,
            )  # fmt: skip
            told += [[token.scores[detector] for token in one.trace.tokens] for one in answers]
        for time, of in zip(TIMES, (lambda one: one[0], max), strict=True):
            least = np.quantile([of(one) for one in told], 1 - PASS)
            text = f"{detector} > {least:.4f}"
            found[f"{detector} {time}"] = f"{text} {time}" if time == TIMES[0] else text
    return found


def gated(bench: Any, chosen: Any, policies: dict[str, Policy]) -> dict[str, Any]:
    """Always on against gates, towards the context: what they keep, and what they cost."""
    cases, several = bench.seed.drawn("test", CASES), gates(bench)
    found: dict[str, Any] = {"gates": several}
    for family in ("spare", "caa"):
        label = chosen[family]["context"]["free"]
        base = policies[label]
        behind = {
            f"{label} when {name}": replace(base, controller=Controller(base.controller.rule, when))
            for name, when in several.items()
        }
        run = bench.answered(f"gated-{family}", cases, {label: base, **behind}, ["plain"])
        assert run.summary is not None
        found[family] = heads.table(run.summary, (*heads.METRICS, heads.FORWARDS))
    return found


def says(seeds: dict[str, Any]) -> list[str]:
    """What the page says of it."""
    lines = [
        "### Gated against always on, towards the context",
        "",
        "Points against `plain`: answers from the context; guards; forwards per token. Every gate "
        f"has the threshold that {100 * PASS:g} % of validation's agreements pass under plain "
        "decoding.",
        "",
        "| method | " + " | ".join(seeds) + " |",
        "|---|" + "---|" * len(seeds),
    ]
    for family in ("spare", "caa"):
        rows: dict[str, list[str]] = {}
        for one in seeds.values():
            for label, row in one["gated"][family].items():
                if label == "plain":
                    continue
                gate = label.partition(" when ")[2] or "always on"
                lost = "/".join(f"{100 * (row[g]['minus'] or 0):+.0f}" for g in GUARDS)
                rows.setdefault(gate, []).append(
                    f"{100 * (row['context_rate']['minus'] or 0):+.1f}; {lost}; "
                    f"{row['forwards_per_token']['value']:.2f}"
                )
        lines += [
            f"| `{family}`, {gate} | " + " | ".join(cells) + " |" for gate, cells in rows.items()
        ]
    names = itertools.chain(*(one["gated"]["gates"].values() for one in seeds.values()))
    return [*lines, "", f"- The gates: {'; '.join(f'`{one}`' for one in names)}.", ""]
