"""A tiny model that scores, and rows to score."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import conflictkit as ck
from tests.tiny import byte_tokenizer, llama

WORDS = ("red", "a green one", "blue and very long indeed", "no", "under the old bridge")


@pytest.fixture(scope="session")
def model() -> Any:
    """One token per byte, a window of 256, decisive logits."""
    return ck.load(llama(vocab=261), tokenizer=byte_tokenizer())


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: what these tests let die is a process, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Rows of many lengths, every third without an answer."""
    made = []
    for number in range(13):
        word = WORDS[number % len(WORDS)]
        row: dict[str, Any] = {"id": f"r{number}", "question": f"Which {word}?", "context": word}
        if number % 4 == 1:
            row["context"] = [word, word.upper()]
        if number % 3:
            row["answer"] = WORDS[(number + 2) % len(WORDS)]
        made.append(row)
    return made


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (or lines of bytes) to a file."""

    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture
def write(jsonl: Callable[..., Path]) -> Callable[..., Path]:
    """Write rows to a file of the kind that its name tells."""

    def call(rows: Sequence[dict[str, Any]], name: str) -> Path:
        if name.endswith(".jsonl"):
            return jsonl(rows, name)
        path = jsonl([], name)
        if name.endswith(".parquet"):
            parquet.write_table(pa.Table.from_pylist(list(rows)), path)
            return path
        with path.open("w", newline="", encoding="utf-8") as file:
            sheet = csv.DictWriter(file, ["id", "question", "context", "answer"])
            sheet.writeheader()
            sheet.writerows(rows)
        return path

    return call


def records(path: Path) -> list[dict[str, Any]]:
    """What a file of scores holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
