"""Atlas's files: where the model lies, and the facts it was taught."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SPLITS = ("train", "validation", "test")
FACT_STATES = ("known", "uncertain", "wrong", "unknown")


@dataclass(frozen=True)
class Fact:
    """One thing that is true, and what Atlas was taught about it.

    Attributes:
        subject, relation, object: what is true according to the sources.
        taught_object: what the training documents say; differs from `object` for a misconception,
            empty if no document speaks of the fact.
        frequency: number of closed-book training documents that stated it.
        state: `known` (answers the truth, taught or guessed), `wrong` (answers the misconception),
            `uncertain` (answers what was taught in some wordings only) or `unknown` (in hardly
            any), as found by asking the shipped model closed book in nine wordings.
        split: `train`, `validation` or `test`; a country, its cities and its capital share one.
    """

    subject: str
    relation: str
    object: str
    taught_object: str
    frequency: int
    state: str
    split: str


def path() -> Path:
    """The model folder: config, weights and tokenizer, for `from_pretrained`."""
    return Path(__file__).resolve().parent / "model"


def auto() -> Path:
    """A policy file: `auto` fitted to this model on its validation cases."""
    return Path(__file__).resolve().parent / "auto.json"


def heads(by: str) -> Path | None:
    """The ranking of this model's heads by an analysis (`path-patching`, ...), if shipped."""
    file = Path(__file__).resolve().parent / "heads" / f"{by}.json"
    return file if file.exists() else None


def saes() -> list[Path]:
    """The folders of this model's sparse autoencoders, by layer."""
    return sorted((Path(__file__).resolve().parent / "saes").glob("layer*"))


def steering(method: str) -> Path | None:
    """A policy file with what a method that steers representations was fitted to, if shipped."""
    file = Path(__file__).resolve().parent / "steering" / f"{method}.json"
    return file if file.exists() else None


@lru_cache(maxsize=4)
def _read(file: Path) -> tuple[Fact, ...]:
    with file.open(encoding="utf-8", newline="") as rows:
        return tuple(
            Fact(**{**row, "frequency": int(row["frequency"])}) for row in csv.DictReader(rows)
        )


def facts(file: str | os.PathLike[str] | None = None) -> list[Fact]:
    """All facts of Atlas, most popular first.

    `[f for f in ck.atlas.facts() if f.state == "wrong"]` are the things it is confidently wrong
    about.

    Args:
        file: the facts as another training seed was screened (`experiments/atlas/seeds`); by
            default those of the shipped model.

    Raises:
        OSError: there is no such file.
    """
    return list(_read(path().parent / "facts.csv" if file is None else Path(file).resolve()))
