"""Small files: written whole or not at all, and read strictly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{64}")


def write_whole(path: Path, data: str | bytes) -> None:
    """Write all of it or nothing, text as UTF-8: readers never see half a file.

    A link is followed, an old file's permissions are kept, a new one's are those of any new file.

    Raises:
        OSError: the disk is full, the folder is missing or read-only.
        ValueError: the text or the name cannot be written.
    """
    path = Path(os.path.realpath(path))
    draft = None
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.chmod(draft, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(draft, path)
    except BaseException:
        if draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(draft)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def shortened(value: object, most: int = 160) -> str:
    """A value as people are shown it: of long data the beginning, and how long it is."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most // 4]}... ({len(text):,} characters)"


def short(value: object) -> str:
    """Any value, as an error message may show it."""
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # a number with too many digits to be written
        return "something"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def is_digest(value: object) -> bool:
    """Whether it is a SHA-256 in hexadecimal digits."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


@dataclass(frozen=True)
class JsonFile:
    """How files of one kind are read: as JSON data that runs no code and fills no memory.

    Attributes:
        kind: what messages call such a file.
        error: what is raised about one that is refused.
        largest: bytes of the largest one that is read.
        most_parts: brackets, commas and colons of the fullest one.
    """

    kind: str
    error: type[Exception]
    largest: int
    most_parts: int

    def contents(self, path: str | os.PathLike[str]) -> bytes:
        """The bytes of a regular file that is not too large."""
        try:
            # Opened before it is looked at, so that the file looked at is the file read; without
            # O_NONBLOCK a pipe would wait for a writer.
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            with os.fdopen(handle, "rb") as file:
                about = os.fstat(handle)
                regular = stat.S_ISREG(about.st_mode)
                data = file.read(min(about.st_size, self.largest) + 1) if regular else b""
        except (OSError, ValueError) as error:
            raise self.error(f"cannot be read: {error}") from error
        if not regular:
            raise self.error("is not a regular file")
        if len(data) > self.largest:
            raise self.error(f"is larger than {self.largest} bytes: this is no {self.kind}")
        return data

    def check(self, text: str) -> None:
        """Refuse to write what would not be read again."""
        if len(text.encode()) > self.largest or self._parts(text.encode()) > self.most_parts:
            raise self.error(
                f"this {self.kind} is too large: at most {self.largest:,} bytes and "
                f"{self.most_parts:,} parts are read"
            )

    def parse(self, data: bytes) -> Any:
        """What the bytes say: finite numbers, no field twice."""
        # Counted before they are built: a small file of brackets would fill a large memory.
        if self._parts(data) > self.most_parts:
            raise self.error(f"holds more than {self.most_parts} parts: this is no {self.kind}")
        try:
            return json.loads(
                data.decode("utf-8-sig"), object_pairs_hook=self._once, parse_constant=self._refuse
            )
        except UnicodeDecodeError as error:
            raise self.error(f"is not UTF-8 text: {error}") from error
        except json.JSONDecodeError as error:
            raise self.error(f"is not JSON: {error}") from error
        except (RecursionError, ValueError) as error:  # too deep; a number with too many digits
            if isinstance(error, self.error):
                raise
            raise self.error(f"cannot be read as JSON: {error}") from error

    def fields(self, what: str, data: Any, names: Collection[str] | None = None) -> Mapping:
        """`data`, if it is an object with exactly these fields; names None: with any."""
        if not isinstance(data, Mapping):
            raise self.error(f"{what} must be an object")
        for name in names or ():
            if name not in data:
                raise self.error(f"{what} lacks the field '{name}'")
        for name in data if names is not None else ():
            if name not in names:
                raise self.error(f"{what} has an unknown field {short(name)}")
        return data

    @staticmethod
    def _parts(data: bytes) -> int:
        return sum(data.count(sign) for sign in (b"[", b"{", b",", b":"))

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise self.error("a field is given twice")
        return made

    def _refuse(self, text: str) -> Any:
        raise self.error(f"{text} is no number that a {self.kind} may hold")
