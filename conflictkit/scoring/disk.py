"""Bringing things to the disk so that a crash at any moment leaves nothing half done."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from conflictkit.errors import OutputError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing keeps two runs apart there
    fcntl = None

Settings = Mapping[str, Any]
"""What must be the same for a run to go on; JSON data."""


def differences(old: Settings, new: Settings) -> list[str]:
    """What differs between two settings, one phrase for each: `NAME was OLD, is NEW`."""

    def short(value: object) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "..."

    return [
        f"{name} was {short(old.get(name))}, is {short(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def json_line(entry: Mapping[str, Any]) -> bytes:
    """One line of a JSON lines file; strict JSON."""
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def append(file: BinaryIO, data: bytes) -> None:
    """Write at the end of a file, and wait until the disk has it."""
    file.seek(0, os.SEEK_END)
    file.write(data)
    flush(file)


def flush(file: BinaryIO) -> None:
    """Wait until the disk has what was written to the file."""
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of files, to the disk."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_to_append(path: Path) -> BinaryIO:
    """A file to read and to append to, made if it is not there, emptied never."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    return os.fdopen(handle, "r+b")


def put(path: Path, data: bytes) -> None:
    """Replace a file in one move: readers find the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(data)
        flush(file)
    os.replace(draft, path)
    sync(path.parent)


def lock(file: BinaryIO, what: Path, *, wait: bool = False) -> None:
    """Keep other runs away from `what` for as long as `file` is open.

    Args:
        file: the file that the lock is on.
        what: what a message calls it.
        wait: if another run is there, wait until it has gone.

    Raises:
        OutputError: another run is there already.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise OutputError(f"another run is writing '{what}': wait for it") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into the error that says so."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write '{path}': {error.strerror or error}: once that is mended, the same "
            "call goes on where this one stopped"
        ) from error
