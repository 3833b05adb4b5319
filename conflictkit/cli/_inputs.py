"""What the command line reads and writes: passages, standard input, files."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from conflictkit import files
from conflictkit.cli import _output
from conflictkit.errors import (
    ConflictKitError,
    EmptyInputError,
    InvalidParameterError,
    OutputError,
)

STANDARD_INPUT = "-"
PATIENCE = 3.0
"""Seconds that an open pipe may stay silent before it counts as nobody's."""


def question_text(text: str) -> str:
    """The question, checked.

    Raises:
        EmptyInputError: nothing but white space.
        InvalidParameterError: bytes that are not text.
    """
    if not text.strip():
        raise EmptyInputError("the question is empty: write it as the first argument")
    return sound(text, "the question")


def sound(text: str, source: str) -> str:
    """An argument as text, also where the locale is not UTF-8 but the shell's bytes are.

    Raises:
        InvalidParameterError: bytes that are not text; `source` is how the message calls it.
    """
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        raise InvalidParameterError(f"{source} is not valid UTF-8 text") from error


def stops(texts: Sequence[str] | None) -> list[str] | None:
    """The texts of `--stop`, checked like every argument; none if there are none."""
    return [sound(text, "--stop") for text in texts or ()] or None


def passages(given: Sequence[str], files: Sequence[str]) -> list[str]:
    """All passages: those on the command line, then those in files, else standard input.

    Standard input is read only if nothing else was named, and nothing in it means closed book.

    Raises:
        EmptyInputError: a passage that was given, but holds nothing.
        InvalidParameterError: a file that cannot be read or is not UTF-8.
    """
    found = [sound(_filled(text, "--context"), "--context") for text in given]
    for name in files:
        source = "standard input" if name == STANDARD_INPUT else f"context file '{name}'"
        found.append(_filled(_text(_read(name, source), source), source))
    if found:
        return found
    piped = _piped()
    return [_filled(_text(piped, "standard input"), "standard input")] if piped else []


def _filled(text: str, source: str) -> str:
    if not text.strip():
        raise EmptyInputError(
            f"the context from {source} is empty: fill it, or leave it out to ask closed book"
        )
    return text


def _read(name: str, source: str) -> bytes:
    if name == STANDARD_INPUT:
        return _standard_input().read()
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidParameterError(f"cannot read {source}: {reason}") from error


def _text(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidParameterError(
            f"{source} is not UTF-8 text (byte 0x{data[error.start]:02x} at position "
            f"{error.start}): save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").strip("\n")


def _standard_input() -> BinaryIO:
    """Standard input as bytes; empty if the process was started without one."""
    stream = sys.stdin
    if stream is None or stream.closed:
        return io.BytesIO()
    return getattr(stream, "buffer", None) or io.BytesIO(stream.read().encode())


def _piped() -> bytes:
    """What someone piped in; nothing for a terminal, a closed stream or a silent pipe.

    A pipe can be inherited by accident from a program that never writes to it and never closes
    it: reading would hang for ever.
    """
    stream = sys.stdin
    if stream is None or stream.closed or stream.isatty():
        return b""
    if not _has_data(stream):
        _output.note(
            f"standard input stayed silent for {PATIENCE:g} s: answering closed book "
            "(--context-file - waits)"
        )
        return b""
    try:
        return _standard_input().read()
    except OSError:  # a descriptor that was opened for something else
        return b""


def _has_data(stream: TextIO) -> bool:
    """Whether reading would return, with data or with the end."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return True
    return os.name != "posix" or bool(select.select([descriptor], [], [], PATIENCE)[0])


def writable(name: str) -> Path:
    """The file to write, checked before any work is done.

    Raises:
        InvalidParameterError: its folder is missing or closed to us, or it is a folder itself.
    """
    path = Path(os.path.realpath(name))
    if not path.parent.is_dir():
        raise InvalidParameterError(f"cannot write '{name}': there is no folder '{path.parent}'")
    if path.exists() and not path.is_file():
        raise InvalidParameterError(f"cannot write '{name}': it is not a regular file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidParameterError(f"cannot write '{name}': no permission in '{path.parent}'")
    return path


def new_file(name: str, overwrite: bool) -> Path:
    """A file that can be written, and that is not there yet, unless it may be replaced.

    Raises:
        OutputError: it cannot, or it is.
    """
    path = writable(name)
    if path.exists() and not overwrite:
        raise OutputError(f"'{name}' is there already: name another --out or add --overwrite")
    return path


def write_whole(path: Path, text: str) -> None:
    """Write all of it or nothing: readers never see half a file.

    Raises:
        ConflictKitError: the disk is full, or the folder vanished.
    """
    try:
        files.write_whole(path, text)
    except OSError as error:
        raise ConflictKitError(f"cannot write '{path}': {error.strerror or error}") from error
