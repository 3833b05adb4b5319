"""Bad input: exit code 2, one line that says what to type, nothing on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from conflictkit.cli import _ask, main
from tests.cli.conftest import Run
from tests.tiny import byte_tokenizer, llama

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("",), "question is empty"),
        ((" \n",), "question is empty"),
        (("q", "--context", ""), "--context is empty"),
        (("q", "--context", "\t "), "--context is empty"),
        (("q", "--context", "ok", "--context", ""), "--context is empty"),
        (("q\udcff",), "not valid UTF-8"),
        (("q", "--context", "\udcff"), "not valid UTF-8"),
        (("q", "--context", "c", "--stop", "a\udcff"), "--stop is not valid UTF-8"),
        (("q", "--context", "c", "--start-after", "\udcff"), "--start-after is not valid UTF-8"),
        (("q", "--context", "c", "--method", "addacad"), "did you mean 'adacad'"),
        (("q", "--context", "c", "--method", "cad?alhpa=1"), "did you mean 'alpha'"),
        (("q", "--context", "c", "--method", "cad?alpha=x"), "'alpha'"),
        (("q", "--context", "c", "--method", "cad", "--param", "alpha"), "name=value"),
        (("q", "--context", "c", "--method", "cad", "--param", "alpha=nan"), "alpha"),
        (("q", "--context", "c", "--model", "nowhere"), "unknown model 'nowhere'"),
        (("q", "--context", "c", "--model", "atlsa"), "did you mean 'atlas'"),
        (("q", "--context", "c", "--html", "/nowhere/at/all.html"), "no folder '/nowhere/at'"),
        (("q", "--context", "c", "--html", "/"), "cannot write"),
        (("q", "--context", "c", "--html", "x.html", "--no-trace"), "leave --no-trace out"),
        (("q", "--context", "c", "--json", "--quiet"), "exclude each other"),
        (("q", "--context-file", "/nowhere.txt"), "No such file"),
        (("q", "--context-file", "/"), "Is a directory"),
        (("q", "--context-file", "a\0b"), "cannot read"),
        (("q", "--temprature", "1"), "--temprature"),
        (("q", "--top-k", "many"), "--top-k"),
        ((), "question"),
    ],
)
def test_bad_input_is_one_line(refused: Refused, arguments: tuple, said: str) -> None:
    assert said in refused("ask", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-new-tokens", 0), "max_new_tokens"),
        (("--temperature", -1), "temperature"),
        (("--temperature", "nan"), "temperature"),
        (("--top-p", 1.5), "top_p"),
        (("--num-beams", 0), "num_beams"),
        (("--stop", ""), "stop"),
        (("--dtype", "float31"), "float32"),
        (("--device", "toaster"), "toaster"),
        (("--context", "word " * 200), "--truncate"),
        (("--chat",), "chat template"),
    ],
)
def test_what_the_model_refuses_is_one_line(
    refused: Refused, folder: Path, arguments: tuple, said: str
) -> None:
    assert said in refused("ask", "q", "--context", "c", "--model", folder, *arguments)


def test_a_context_that_is_too_long_can_be_cut(run: Run, folder: Path) -> None:
    long = "word " * 200
    base = ("ask", "q", "--context", long, "--model", folder, "--max-new-tokens", 3, "--json")
    code, out, err = run(*base, "--truncate")
    assert (code, err) == (0, "")
    assert json.loads(out)["stats"]["context_tokens"] <= 256


def test_a_tokenizer_without_pad_token(refused: Refused, run: Run, tmp_path: Path) -> None:
    llama(vocab=261).save_pretrained(tmp_path)
    byte_tokenizer(pad=False).save_pretrained(tmp_path)
    base = ("ask", "q", "--context", "c", "--model", tmp_path, "--max-new-tokens", 2)
    assert "--pad-token" in refused(*base)
    assert run(*base, "--pad-token", "</s>").code == 0


def test_an_empty_folder_is_no_model(refused: Refused, tmp_path: Path) -> None:
    assert "could not load" in refused("ask", "q", "--context", "c", "--model", tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"\xff\xfe\x00", "not UTF-8"), (b"", "empty"), (b"\xef\xbb\xbf", "empty"), (b" \n", "empty")],
)
def test_files_that_hold_no_text(refused: Refused, tmp_path: Path, data: bytes, said: str) -> None:
    passage = tmp_path / "passage.txt"
    passage.write_bytes(data)
    assert said in refused("ask", "q", "--context-file", passage)


def test_standard_input_must_hold_text(refused: Refused) -> None:
    assert "not UTF-8" in refused("ask", "q", stdin=b"\xff")
    assert "empty" in refused("ask", "q", stdin=b"  \n")
    assert "empty" in refused("ask", "q", "--context-file", "-", stdin=b"")
    assert "empty" in refused("ask", "q", "--context-file", "-")


def test_the_message_cannot_drive_the_terminal(refused: Refused) -> None:
    line = refused("ask", "q", "--context", "c", "--method", "\x1b[2J\x07\u202e\nnext")
    assert line.removesuffix("\n").isprintable()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, typer.Abort])
def test_an_interruption_is_130_without_a_trace_of_python(
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise kind

    monkeypatch.setattr(_ask, "_answer", interrupt)
    assert run("ask", "q", "--context", "c") == (130, "", "")


def test_a_fault_of_ours_is_not_dressed_up_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(_ask, "_answer", fail)
    with pytest.raises(ZeroDivisionError):
        main(["ask", "q", "--context", "c"])
