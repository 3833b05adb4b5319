"""Small cases of every kind, and a tiny model to ask."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import conflictkit as ck
from conflictkit.types import Case
from tests.tiny import byte_tokenizer, llama

NINE = "plain,memory,cad,adacad,coiecd,ck-plug,interpolate,arr,grd"
WORDS = ("red", "a green one", "blue and very long indeed", "no", "under the old bridge", "7")
STATES = ("correction", "resistance", "agreement", "irrelevant")


def case(number: int, **fields: Any) -> Case:
    """A case about nothing; its lengths vary with its number."""
    word, other = WORDS[number % len(WORDS)], WORDS[(number + 2) % len(WORDS)]
    state = fields.get("state", STATES[number % 4])
    given: dict[str, Any] = {
        "id": f"c{number}",
        "split": "test",
        "relation": "colour",
        "subject": f"s{number % 5}",
        "question": f"Which {word}?",
        "contexts": (f"It is {other}.",) if number % 3 else (f"It is {other}.", "Nothing else."),
        "context_kind": "bare",
        "memory_answers": (word,),
        "context_answers": () if state == "irrelevant" else (other,),
        "gold_answers": (other,),
        "state": state,
    }
    return Case(**{**given, **fields})


def closed(number: int) -> Case:
    """A case without a context."""
    return case(number, id=f"r{number}", contexts=(), context_answers=(), state="recall")


@pytest.fixture(scope="session")
def model() -> Any:
    """One token per byte, a window of 256, decisive logits."""
    return ck.load(llama(vocab=261), tokenizer=byte_tokenizer())


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: what these tests let die is a process, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def mixed() -> list[Case]:
    """Eight cases with a context, two without, one with both prompts fixed."""
    fixed = case(8, id="fixed", prompt="It is 7. Which? It is", memory_prompt="Which? It is")
    return [*map(case, range(8)), closed(1), closed(2), fixed]


Rows = Callable[[Path], list[dict[str, Any]]]


def rows(folder: Path, *, seconds: bool = False) -> list[dict[str, Any]]:
    """The rows of a run, without the seconds that no two runs share."""
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    if not seconds:
        for row in found:
            assert row["cost"].pop("seconds") > 0
    return found
