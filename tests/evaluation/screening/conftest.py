"""A tiny model to ask, and a cache of its own for every test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import conflictkit as ck
from tests.tiny import byte_tokenizer, llama


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Do not wait for the disk, and keep out of the user's folders."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("CONFLICTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model() -> Any:
    """One token per byte; knows nothing."""
    return ck.load(llama(vocab=261), tokenizer=byte_tokenizer())
