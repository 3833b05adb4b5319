"""`conflictkit ask`: what it prints, what it reads, what it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conflictkit import toolkit
from conflictkit.cli import _inputs
from tests.cli.conftest import Run

CONTEXT = "It is London."
SHORT = ("--max-new-tokens", 4)


@pytest.fixture
def ask(run: Run, folder: Path) -> Callable[..., dict]:
    """Ask the tiny model; the JSON object."""

    def call(*arguments: object, stdin: bytes | None = None) -> dict:
        result = run(
            "ask", "Capital?", "--model", folder, "--json", *SHORT, *arguments, stdin=stdin
        )
        assert result.code == 0
        assert result.err == ""
        return json.loads(result.out, parse_constant=lambda word: pytest.fail(word))

    return call


def test_json_is_one_object_with_everything(ask: Callable[..., dict], folder: Path) -> None:
    said = ask("--context", CONTEXT, "--method", "ck-plug?alpha=0.2&adaptive=false")
    model = toolkit.load(str(folder))
    options: dict[str, Any] = {"max_new_tokens": 4}
    expected = model.ask("Capital?", CONTEXT, "ck-plug?alpha=0.2&adaptive=false", **options)
    assert said["answer"] == expected.text
    assert said["plain_answer"] == model.ask("Capital?", CONTEXT, "plain", **options).text
    assert said["memory_answer"] == model.ask("Capital?", method="memory", **options).text
    assert said["method"] == "ck-plug"
    assert said["params"]["alpha"] == 0.2
    assert said["params"]["adaptive"] is False
    assert said["question"] == "Capital?"
    assert said["context"] == [CONTEXT]
    assert said["model"] == str(folder)
    assert set(said["stats"]) >= {"forwards", "context_tokens", "memory_tokens", "edits"}
    assert said["stats"]["forwards"] == expected.stats.forwards
    for token in said["tokens"]:
        assert set(token) >= {"text", "id", "scores", "context_weight", "memory_weight"}
        assert 0 <= token["scores"]["jsd"] <= 0.6932
        assert set(token["context_top"][0]) == {"text", "id", "probability"}
        assert token["memory_top"]
    assert len(said["tokens"]) == 4


def test_parameters_may_be_given_one_by_one(ask: Callable[..., dict]) -> None:
    said = ask("--context", CONTEXT, "-m", "ck-plug", "-p", "alpha=0.2", "-p", "adaptive=false")
    assert said == ask("--context", CONTEXT, "-m", "ck-plug?alpha=0.2", "-p", "adaptive=false")
    assert said["params"]["alpha"] == 0.2


def test_every_option_reaches_the_model(ask: Callable[..., dict]) -> None:
    options = ("--temperature", 2, "--top-k", 50, "--top-p", 0.99)
    drawn = [ask("--context", CONTEXT, *options, "--seed", seed)["answer"] for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    greedy = ask("--context", CONTEXT)
    beams = ask("--context", CONTEXT, "--num-beams", 3)
    assert beams["score"] >= greedy["score"] - 1e-5  # wider batches round otherwise
    cut = ask("--context", CONTEXT, "--stop", greedy["tokens"][-1]["text"])
    assert cut["finish_reason"] == "stop"


def test_passages_keep_their_order(ask: Callable[..., dict], tmp_path: Path) -> None:
    third = tmp_path / "third.txt"
    third.write_bytes(b"\xef\xbb\xbfthird\r\nline\r\n")
    said = ask("--context", "first", "--context", "second", "--context-file", third)
    assert said["context"] == ["first", "second", "third\nline"]


@pytest.mark.parametrize("arguments", [(), ("--context-file", "-")])
def test_a_passage_can_be_piped_in(ask: Callable[..., dict], arguments: tuple) -> None:
    assert ask(*arguments, stdin="Łódź\n".encode())["context"] == ["Łódź"]


def test_standard_input_is_left_alone_when_a_context_is_named(ask: Callable[..., dict]) -> None:
    assert ask("--context", CONTEXT, stdin=b"other")["context"] == [CONTEXT]


@pytest.mark.parametrize("stdin", [None, b""])
def test_no_context_means_closed_book(ask: Callable[..., dict], stdin: bytes | None) -> None:
    said = ask(stdin=stdin)
    assert said["context"] == []
    assert said["answer"] == said["memory_answer"]
    assert said["plain_answer"] is None


def test_a_pipe_that_nobody_writes_to_does_not_hang(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_inputs, "PATIENCE", 0.05)
    reading, writing = os.pipe()
    with os.fdopen(reading) as silent, os.fdopen(writing, "w"):
        monkeypatch.setattr("tests.cli.conftest.Piped", lambda _: silent)
        result = run("ask", "Capital?", "--model", folder, "-q", *SHORT, stdin=b"")
    assert result.code == 0
    assert "standard input stayed silent" in result.err


def test_the_terminal_form_shows_all_three_answers_and_the_tokens(run: Run, folder: Path) -> None:
    code, out, err = run("ask", "Capital?", "-c", CONTEXT, "--model", folder, *SHORT)
    assert (code, err) == (0, "")
    for shown in ("Capital?", CONTEXT, "from memory", "with the context", "under adacad", "jsd"):
        assert shown in out
    assert "memory says" in out


def test_less_can_be_asked_for(run: Run, folder: Path) -> None:
    base = ("ask", "Capital?", "-c", CONTEXT, "--model", folder, *SHORT)
    plain = run(*base, "--no-trace")
    assert "from memory" in plain.out
    assert "memory says" not in plain.out
    assert "empty" not in plain.out
    answer = json.loads(run(*base, "--json", "--no-trace").out)
    assert answer["tokens"] == []
    assert run(*base, "--quiet").out == answer["answer"] + "\n"


def test_the_page_is_written_whole_or_not_at_all(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "trace.html"
    base = ("ask", "<b>Capital?", "-c", CONTEXT, "--model", folder, *SHORT, "--html", page)
    assert run(*base, "--quiet").code == 0
    first = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;Capital?" in first
    assert "from memory" in first
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert page.stat().st_mode == plain.stat().st_mode
    plain.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    code, out, err = run(*base, "--quiet")
    assert (code, out) == (2, "")
    assert "No space left on device" in err
    assert page.read_text(encoding="utf-8") == first
    assert list(tmp_path.iterdir()) == [page]


def test_json_survives_an_encoding_that_lacks_the_characters(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    raw = io.BytesIO()
    narrow = io.TextIOWrapper(raw, encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert run("ask", "Łódź?", "--model", folder, "--json", *SHORT).code == 0
    narrow.flush()
    assert json.loads(raw.getvalue())["question"] == "Łódź?"
