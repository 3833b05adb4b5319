"""The comparison's page: what is called above, kept and worst follows from the results."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from conflictkit.evaluation import Run
from conflictkit.evaluation.metrics import Cell, summarise
from conflictkit.evaluation.record import Cost, Result
from conflictkit.types import Case

FOLDER = Path(__file__).parents[3] / "experiments" / "auto"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("auto_compare", FOLDER / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("common", None)


class Made(Run):
    """A run in memory: 40 cases of correction and of resistance, half of each about one kind."""

    results: Any = ()
    summary: Any = None


def run(right: dict[str, dict[str, int]]) -> Made:
    """Method -> state -> how many of the 40 cases are answered right, the first ones."""
    cases = [
        Case(f"{state}{n}", "test", "r", f"s{n}", "Who?", ("It is no.",),
             "bare" if n < 20 else "hedged", ("yes",), ("no",), ("yes",), state)
        for state in ("correction", "resistance")
        for n in range(40)
    ]  # fmt: skip
    cost = Cost(forwards=1, context_tokens=1, memory_tokens=0, seconds=0.1, cache_bytes=0)
    results = [
        Result(
            case.id, method, "yes" if int(case.subject[1:]) < counts[case.state] else "no",
            (5,), "eos", -0.5, cost,
            tokens=({"scores": {"differ": 1.0, "tau": 0.2}},) if method == "auto" else (),
        )
        for method, counts in right.items()
        for case in cases
    ]  # fmt: skip
    info = {
        "model": {"name": "made up", "fingerprint": "0" * 64, "dtype": "float32"},
        "cases": {"count": 80, "states": {"correction": 40, "resistance": 40}},
        "options": {"seed": 0},
        "versions": {},
        "finished": "now",
    }
    made = Made(Path(), info, tuple(cases))
    object.__setattr__(made, "results", tuple(results))
    object.__setattr__(made, "summary", summarise(cases, results))
    return made


def test_the_best_setting_is_found_on_the_tuning_cases(
    compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = {"plain": ("plain",), "cad": ("cad?alpha=1:3:1",)}
    monkeypatch.setattr(compare, "SWEEPS", sweeps)
    monkeypatch.setattr(compare, "GATES", {"gate": None})
    counts = {"plain": 5, "cad?alpha=1": 9, "cad?alpha=2": 14, "cad?alpha=3": 3, "gate": 1}
    made = run({name: {"correction": n, "resistance": 40} for name, n in counts.items()})
    wanted = {"plain": "plain", "cad": "cad?alpha=2", compare.GATE: "gate"}
    assert compare.chosen(made, "minimum") == compare.chosen(made, "harmonic") == wanted


def test_differences_are_auto_minus_rival(compare: Any) -> None:
    made = run(
        {
            "plain": {"correction": 30, "resistance": 10},
            "cad": {"correction": 26, "resistance": 24},
            "auto": {"correction": 28, "resistance": 25},
        }
    )
    best = {figure: {"plain": "plain", "cad": "cad"} for figure in compare.FIGURES}
    found = compare.compared(made, best, 0)
    rivals = found["rivals"]["minimum"]
    assert rivals["plain"]["difference"]["value"] == pytest.approx(15 / 40)
    assert rivals["plain"]["difference"]["low"] > 0
    assert rivals["cad"]["difference"]["value"] == pytest.approx(1 / 40)
    assert rivals["cad"]["difference"]["low"] <= 0 < rivals["cad"]["difference"]["high"]
    cells = compare.cells(made, 0)
    assert [(cell["state"], cell["kind"]) for cell in cells[:2]] == [
        ("resistance", "hedged"), ("correction", "hedged"),
    ]  # fmt: skip
    assert cells[0]["auto"]["value"] == 5 / 20
    assert cells[0]["trusted"] == {"memory": 1.0, "context": 0.0, "nobody": 0.0}

    about = {"spec": "made", **compare.told(made)}
    page = compare.page(
        {"command": "x", "tune": about, "cases": about, "limit": None, "cells": cells, **found}
    )
    assert "| plain | `plain` | 25.0 " in page
    assert "| cad | `cad` | 60.0 " in page
    assert page.count("Not shown to be above: cad.") == 2
    assert "- resistance, hedged passages (20 cases): 25.0 " in page


def test_guards_and_signs(compare: Any) -> None:
    cell = Cell(0.5, 0.4, 0.6, 50, difference=-0.02, difference_low=-0.05, difference_high=0.01)
    assert compare._turned(cell) == {"value": 0.02, "low": -0.01, "high": 0.05, "p": None}
    found = {"value": -0.02, "low": -0.05, "high": 0.01}
    figures = {"auto": {"agreement": found}, "plain": {"agreement": found}}
    for value, word in ((-0.02, "no"), (-0.005, "yes")):
        lines = list(
            compare._guards({**figures, "guards": {"agreement": {**found, "value": value}}})
        )
        assert any(line.endswith(f"| {word} |") for line in lines)
