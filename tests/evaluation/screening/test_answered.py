"""What a model has said, kept through any crash."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from conflictkit.evaluation import answered
from conflictkit.evaluation.answered import Answered, Said, cache_folder

WORDS = Said("Grüße", ("a\nb", ""))


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    """Killed at any byte: what was whole is there, and what comes next is too."""
    made = Answered(tmp_path / "whole", {"n": 1})
    made.add({"one": WORDS})
    made.add({"two": WORDS, "three": WORDS})
    data = made.path.read_bytes()
    ends = [place for place in range(len(data)) if data[place : place + 1] == b"\n"]
    assert len(ends) == 4  # the settings, and three answers
    for cut in range(len(data) + 1):
        torn = Answered(tmp_path / "torn", {"n": 1})
        torn.path.parent.mkdir(parents=True, exist_ok=True)
        torn.path.write_bytes(data[:cut])
        again = Answered(tmp_path / "torn", {"n": 1})
        whole = sum(end < cut for end in ends)
        names = ["one", "two", "three"][: max(0, whole - 1)]
        assert [again.get(name) for name in ("one", "two", "three")] == [
            WORDS if name in names else None for name in ("one", "two", "three")
        ]
        again.add({"four": WORDS})
        later = Answered(tmp_path / "torn", {"n": 1})
        assert all(later.get(name) == WORDS for name in [*names, "four"])


def test_lines_that_nobody_wrote_are_passed_over(tmp_path: Path) -> None:
    made = Answered(tmp_path, {})
    made.add({"one": WORDS})
    junk = [b"[]", b"{}", b'{"prompt": 1, "greedy": "x", "samples": []}', b"\xff\xfe",
            b'{"prompt": "p", "greedy": "x", "samples": [1]}', b"[" * 100_000]  # fmt: skip
    with made.path.open("ab") as file:
        file.write(b"\n".join(junk) + b"\n")
    made.add({"two": WORDS})
    again = Answered(tmp_path, {})
    assert [again.get(name) for name in ("one", "two", "p")] == [WORDS, WORDS, None]


def test_two_writers_wait_for_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def slowly(file: BinaryIO, data: bytes) -> None:
        file.seek(0, os.SEEK_END)
        time.sleep(0.001)  # the other one would take the same place now
        file.write(data)
        file.flush()

    monkeypatch.setattr(answered, "append", slowly)

    def write(name: str) -> None:
        mine = Answered(tmp_path, {"n": 2})
        for number in range(50):
            mine.add({f"{name}{number}": Said("x" * 5000, ())})

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Answered(tmp_path, {"n": 2})
    assert all(found.get(f"{name}{number}") for name in "ab" for number in range(50))
    assert len(found.path.read_bytes().splitlines()) == 101


_ENDLESS = """
import sys
from conflictkit.evaluation.answered import Answered, Said
mine = Answered(sys.argv[1], {"n": 3})
number = 0
while True:
    mine.add({f"{sys.argv[2]}{number}": Said("y" * 3000, ("z",))})
    number += 1
    sys.stdout.write(".")
    sys.stdout.flush()
"""


@pytest.mark.slow
def test_killed_processes_lose_nothing_that_was_written(tmp_path: Path) -> None:
    draw = random.Random(0)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, str(tmp_path), name], stdout=subprocess.PIPE
        )
        for name in "ab"
    ]
    told = []
    for run in runs:
        assert run.stdout is not None
        run.stdout.read(3)
    for run in runs:
        time.sleep(draw.uniform(0, 0.05))
        os.kill(run.pid, signal.SIGKILL)
        out, _ = run.communicate()
        told.append(3 + len(out))
    found = Answered(tmp_path, {"n": 3})
    for name, count in zip("ab", told, strict=True):
        assert all(found.get(f"{name}{number}") for number in range(count))
    found.add({"after": WORDS})
    assert Answered(tmp_path, {"n": 3}).get("after") == WORDS


def test_where_answers_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CONFLICTKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "conflictkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "conflictkit"
