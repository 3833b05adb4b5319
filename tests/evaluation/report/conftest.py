"""Two runs to report on: real answers of Atlas, and one that holds everything hostile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conflictkit.atlas.cases import cases as atlas_cases
from conflictkit.evaluation.metrics.summary import summarise
from conflictkit.evaluation.record import Result
from conflictkit.states import STATES
from conflictkit.types import Case
from tests.evaluation.report import runs
from tests.trace.samples import HOSTILE

METHODS = ("plain", "memory", "cad", *(f"ck-plug?alpha={a}" for a in ("0", "0.5", "1")))
EVERYTHING = " ".join(HOSTILE)
ADMITTED = EVERYTHING.replace("\ud800", "").replace("\x00", "")
"""What a case may hold: the reader of cases refuses the rest."""


@pytest.fixture(scope="session")
def atlas_answers() -> tuple[list[Case], list[Result]]:
    """Two cases of each state under six methods."""
    cases = [case for state in STATES for case in atlas_cases("test", state)[:2]]
    return cases, runs.answered(cases, METHODS)


@pytest.fixture(scope="session")
def first(
    atlas_answers: tuple[list[Case], list[Result]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of Atlas."""
    cases, results = atlas_answers
    summary = summarise(cases, results, resamples=200).to_dict()
    return runs.write(tmp_path_factory.mktemp("runs") / "first", cases, results, summary)


@pytest.fixture(scope="session")
def hostile(
    atlas_answers: tuple[list[Case], list[Result]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose every text tries to get out of the page."""
    cases, results = atlas_answers
    bad = [
        replace(
            case,
            id=f"{case.id}{ADMITTED}",
            question=ADMITTED,
            contexts=(ADMITTED, "A second passage."),
            subject=ADMITTED,
            gold_answers=(ADMITTED,),
        )
        for case in cases
    ]
    ids = {old.id: new.id for old, new in zip(cases, bad, strict=True)}
    renamed = {"cad": f"cad{ADMITTED}"}
    worse = [
        replace(
            result,
            case=ids[result.case],
            method=renamed.get(result.method, result.method),
            answer=EVERYTHING,
            tokens=[
                {
                    **token,
                    "text": text,
                    "scores": {**token["scores"], text: 0.5},
                    "context_top": [[text, 0.5]],
                    "memory_top": [[text + "!", 0.5]],
                }
                for token, text in zip([result.tokens[0]] * len(HOSTILE), HOSTILE, strict=True)
            ],
        )
        for result in results
    ]
    summary = summarise(bad, worse, resamples=200).to_dict()
    folder = tmp_path_factory.mktemp("runs") / "<img src=x onerror=alert(1)>"
    return runs.write(folder, bad, worse, summary, model=ADMITTED)
