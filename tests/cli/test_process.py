"""The command as a shell runs it: exit codes, streams, what gets imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "conflictkit.cli")
POLAND = ("ask", "What is the capital of Poland?", "--context", "The capital of Poland is London.")


def shell(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=250,
        check=False,
        stdin=subprocess.DEVNULL,
        env=env,
    )


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "ask" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    heavy = {"torch", "transformers", "pandas", "numpy", "scipy", "tokenizers"}
    assert not heavy & {name.split(".")[0] for name in imported}


@pytest.mark.parametrize(
    "arguments", [("ask", "q", "--context", ""), ("ask", "q", "--nope"), ("nope",)]
)
def test_bad_input_ends_with_2_and_one_line(arguments: tuple[str, ...]) -> None:
    done = shell(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("conflictkit: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_reader_that_leaves_early_is_owed_no_message(flag: str) -> None:
    process = subprocess.Popen([*COMMAND, flag], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    assert complaint == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "conflictkit: error: cannot write the result: No space left on device\n"


@pytest.mark.slow
def test_atlas_answers_with_json_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "trace.html"
    done = shell(*POLAND, "--json", "--html", str(page))
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["model"] == "atlas"
    assert said["answer"]
    assert said["plain_answer"]
    assert said["memory_answer"]
    assert "".join(token["text"] for token in said["tokens"]).strip() == said["answer"]
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_closed_streams_and_a_plain_locale_are_survived() -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_ALL")}
    done = shell(*POLAND, env=bare | {"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert "from memory" in done.stdout
    closed = subprocess.run(
        f"'{sys.executable}' -m conflictkit.cli ask 'Why?' --quiet <&- 2>&-",
        shell=True,
        capture_output=True,
        timeout=250,
        check=False,
    )
    assert closed.returncode == 0
    assert closed.stdout.strip()
