"""Rows of a file, one after the other, each with the place where it ends: a run can go on there.

Nothing is held but the row at hand. Text is read as bytes, line by line: a line that is no text
spoils its own row and no other, and places are exact.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from conflictkit.errors import InvalidParameterError
from conflictkit.scoring.rows import BadRow, Malformed, Reader

LONGEST = 16 * 2**20
"""Bytes of the longest row that is read."""
_RAW = 64 * 2**10
"""Characters of a malformed row that are kept."""
_BLOCK = 2**20
_BOM = b"\xef\xbb\xbf"
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Place:
    """Where a row ends.

    Attributes:
        line: lines read up to there (in Parquet files: rows).
        offset: bytes read up to there (in Parquet files: rows).
    """

    line: int = 0
    offset: int = 0


class Source(Protocol[T_co]):
    """A file of rows.

    Attributes:
        name: the file as the user wrote it.
        total: the offset at its end.
    """

    name: str
    total: int

    def rows(self, start: Place) -> Iterator[tuple[T_co | BadRow, Place]]:
        """Rows after `start`, each with the place where it ends."""
        ...

    def digest(self) -> Any:
        """A hash that has taken in nothing of what `absorb` adds."""
        ...

    def absorb(self, digest: Any, start: int, stop: int) -> None:
        """Add to `digest` what stands between two offsets."""
        ...

    def grew(self, place: Place) -> bool:
        """Whether text was added to the row that ended at `place` when it was read."""
        ...


def open_source(path: str | os.PathLike[str], fields: Reader[T]) -> Source[T]:
    """The file as a source, by the ending of its name: `.jsonl`, `.csv` or `.parquet`.

    Args:
        path: the file.
        fields: what makes a row of its columns.

    Raises:
        InvalidParameterError: no such file, not a regular one, of another kind, or without the
            columns that are needed.
    """
    name = os.fspath(path)
    check_file(name)
    ending = Path(name).suffix.lower()
    if ending == ".parquet":
        from conflictkit.scoring.tables import ParquetSource

        return ParquetSource(name, fields)
    kinds = {".jsonl": JsonlSource, ".ndjson": JsonlSource, ".csv": CsvSource}
    if ending not in kinds:
        raise InvalidParameterError(
            f"cannot tell what '{name}' holds: its name must end in .jsonl, .csv or .parquet"
        )
    return kinds[ending](name, fields)


def check_file(name: str) -> None:
    """Raise InvalidParameterError unless a file is there, regular, readable and not UTF-16."""
    try:
        place = Path(name)
        if not place.exists():
            raise InvalidParameterError(f"there is no file '{name}'")
        if not place.is_file():
            raise InvalidParameterError(f"'{name}' is not a regular file")
        with place.open("rb") as file:
            start = file.read(2)
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidParameterError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InvalidParameterError(f"cannot read '{name}': {reason}") from error
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise InvalidParameterError(f"'{name}' is UTF-16 text: save it as UTF-8")


class _TextSource(Generic[T]):
    def __init__(self, name: str, fields: Reader[T]) -> None:
        self.name, self.fields = name, fields
        self.total = Path(name).stat().st_size

    def digest(self) -> Any:
        return hashlib.blake2b(digest_size=32)

    def absorb(self, digest: Any, start: int, stop: int) -> None:
        with Path(self.name).open("rb") as file:
            file.seek(start)
            while start < stop and (block := file.read(min(_BLOCK, stop - start))):
                digest.update(block)
                start += len(block)

    def grew(self, place: Place) -> bool:
        with Path(self.name).open("rb") as file:
            return bool(_rest(file, place).strip())


def _rest(file: BinaryIO, place: Place) -> bytes:
    """What stands between `place`, where `file` is left, and the end of its line.

    Nothing, unless the last line of a file had no end when it was read, and more was added since.
    """
    file.seek(max(place.offset - 1, 0))
    if not place.offset or file.read(1) == b"\n":
        return b""
    return file.readline(LONGEST)


class JsonlSource(_TextSource[T]):
    """One JSON object per line; empty lines are passed over."""

    def rows(self, start: Place) -> Iterator[tuple[T | BadRow, Place]]:
        with Path(self.name).open("rb") as file:
            line, offset = start.line, start.offset + len(_rest(file, start))
            while data := file.readline(LONGEST + 1):
                line += 1
                too_long = len(data) > LONGEST
                offset += len(data) + (_skip_line(file, data) if too_long else 0)
                if line == 1:
                    data = data.removeprefix(_BOM)
                if not data.strip():
                    continue
                yield self._row(data, line, too_long), Place(line, offset)

    def _row(self, data: bytes, line: int, too_long: bool) -> T | BadRow:
        try:
            if too_long:
                raise Malformed(None, f"the line is longer than {LONGEST} bytes")
            return self.fields.read(_json_object(data), line)
        except Malformed as fault:
            return BadRow(line, fault.field, fault.reason, _raw(data.rstrip(b"\r\n")))


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        values = STRICT_JSON.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"byte 0x{data[error.start]:02x} at position {error.start}"
        raise Malformed(None, f"the line is not UTF-8 text ({reason})") from error
    except json.JSONDecodeError as error:
        raise Malformed(None, f"the line is not JSON ({error.msg}, {error.colno})") from error
    except RecursionError as error:
        raise Malformed(None, "the line is not JSON that can be read (too deep)") from error
    except ValueError as error:  # a whole number with more digits than Python converts
        raise Malformed(None, f"the line is not JSON that can be read ({error})") from error
    if not isinstance(values, dict):
        raise Malformed(None, "the line is not a JSON object")
    return values


def _no_number(text: str) -> Any:
    raise Malformed(None, f"the line is not JSON ({text} is no number)")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(twice, "is given twice")
    return values


STRICT_JSON = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_no_twins)
"""JSON that takes no NaN and no name twice: raises Malformed there, else as `json` does."""


def _skip_line(file: BinaryIO, data: bytes) -> int:
    """Pass over the rest of a line that is too long; the number of bytes passed over."""
    passed = 0
    while not data.endswith(b"\n") and (data := file.readline(_BLOCK)):
        passed += len(data)
    return passed


def _raw(data: bytes) -> str:
    return data[:_RAW].decode("utf-8", errors="backslashreplace")


class CsvSource(_TextSource[T]):
    """Comma-separated values as RFC 4180 has them, with a line of names at the top."""

    def __init__(self, name: str, fields: Reader[T]) -> None:
        super().__init__(name, fields)
        # The limit belongs to the whole process, and is lower than a long passage.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
        with Path(name).open("rb") as file:
            self._header, self._top = self._read_header(file)
        fields.columns(name, self._header)

    def rows(self, start: Place) -> Iterator[tuple[T | BadRow, Place]]:
        start = max(start, self._top, key=lambda place: place.offset)
        with Path(self.name).open("rb") as file:
            start = Place(start.line, start.offset + len(_rest(file, start)))
            lines = _Lines(file, start, self.name)
            records = csv.reader(lines, strict=True)
            while True:
                lines.begin()
                try:
                    cells = next(records)
                except StopIteration:
                    return
                except Malformed as fault:
                    yield self._bad(lines, fault), lines.place
                    continue
                except csv.Error as error:
                    if "unexpected end of data" in str(error):
                        raise lines.unclosed() from error
                    fault = Malformed(None, f"the row is not CSV ({error})")
                    yield self._bad(lines, fault), lines.place
                    continue
                if not cells:
                    continue
                try:
                    row: T | BadRow = self._row(cells, lines.first)
                except Malformed as fault:
                    row = self._bad(lines, fault)
                yield row, lines.place

    def _row(self, cells: list[str], line: int) -> T:
        if len(cells) != len(self._header):
            raise Malformed(None, f"the row has {len(cells)} cells, the header {len(self._header)}")
        values: dict[str, Any] = dict(zip(self._header, cells, strict=True))
        for field in self.fields.optional:  # an empty cell is how CSV says that there is none
            if field in values and not values[field].strip():
                values[field] = None
        return self.fields.read(values, line)

    def _bad(self, lines: _Lines, fault: Malformed) -> BadRow:
        return BadRow(lines.first, fault.field, fault.reason, _raw(lines.raw.rstrip(b"\r\n")))

    def _read_header(self, file: BinaryIO) -> tuple[list[str], Place]:
        lines = _Lines(file, Place(), self.name)
        lines.begin()
        try:
            header = next(csv.reader(lines, strict=True), [])
        except (csv.Error, Malformed) as error:
            raise InvalidParameterError(
                f"'{self.name}', line 1: no header of a CSV file ({error})"
            ) from error
        return [name.strip() for name in header], lines.place


class _Lines:
    """Lines for the CSV reader, and which of them make up the record at hand."""

    def __init__(self, file: BinaryIO, start: Place, name: str) -> None:
        self._file, self._name = file, name
        self.place = start
        self.begin()

    def begin(self) -> None:
        """A new record."""
        self.first, self._size = self.place.line + 1, 0
        self._parts: list[bytes] = []

    @property
    def raw(self) -> bytes:
        """The record as it stands in the file."""
        return b"".join(self._parts)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        data = self._file.readline(LONGEST + 1)
        if not data:
            raise StopIteration
        self._parts.append(data)
        self._size += len(data)
        if self._size > LONGEST:
            self._pass_over(data)
        self.place = Place(self.place.line + 1, self.place.offset + len(data))
        if self.place.line == 1:
            data = data.removeprefix(_BOM)
        # A byte that is no text becomes a lone surrogate, which its field is refused for.
        return data.decode("utf-8", errors="surrogateescape")

    def _pass_over(self, data: bytes) -> None:
        """Pass over the rest of a row that is too long, if it ends with its first line.

        Raises:
            Malformed: it does; the row can be set aside.
            InvalidParameterError: it does not, or nobody can tell.
        """
        if len(self._parts) > 1:
            raise self.unclosed()
        length, state = len(data), _after(data, _AT_CELL)
        while not data.endswith(b"\n") and (data := self._file.readline(_BLOCK)):
            length, state = length + len(data), _after(data, state)
        if state == _QUOTED:
            raise self.unclosed()
        self.place = Place(self.place.line + 1, self.place.offset + length)
        raise Malformed(None, f"the row is longer than {LONGEST} bytes")

    def unclosed(self) -> InvalidParameterError:
        """Nothing after such a row can be trusted, so it is never set aside."""
        return InvalidParameterError(
            f"'{self._name}', line {self.first}: a row begins here that does not end (is a quote "
            "left open?): mend it, for what follows cannot be told from it"
        )


_AT_CELL, _BARE, _QUOTED, _QUOTE = range(4)
_NEXT = [re.compile(pattern, re.DOTALL) for pattern in (rb".", rb",", rb'"', rb".")]
# What ends each of these states.


def _after(data: bytes, state: int) -> int:
    """Where a reader of CSV is behind `data`: at a cell's beginning, in a bare or a quoted cell, or
    behind a quote that may have closed one."""
    place = 0
    while found := _NEXT[state].search(data, place):
        character, place = found[0], found.end()
        if state == _QUOTED:
            state = _QUOTE
        elif character == b",":
            state = _AT_CELL
        else:
            state = _QUOTED if character == b'"' else _BARE
    return state
