"""A model folder to ask, made in memory, and the command line called in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conflictkit.cli import main
from tests.tiny import byte_tokenizer, llama


class Result(NamedTuple):
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing, with one token per byte and a window of 256."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    llama(vocab=261).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


class Piped(io.TextIOWrapper):
    """Standard input as a pipe that holds these bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line; `stdin` is what is piped in (None: nothing is connected)."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*arguments: Any, stdin: bytes | None = None) -> Result:
        monkeypatch.setattr("sys.stdin", None if stdin is None else Piped(stdin))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Call the command line with bad input; the one line that it answers with."""

    def call(*arguments: Any, stdin: bytes | None = None) -> str:
        code, out, err = run(*arguments, stdin=stdin)
        assert code == 2
        assert out == ""
        assert err.startswith("conflictkit: error: ")
        assert err.count("\n") == 1
        return err

    return call
