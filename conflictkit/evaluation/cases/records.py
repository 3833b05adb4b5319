"""Rows of a benchmark as it was released, from a file or from the hub, and what their columns say.

A file may be a JSON list, JSON lines (whatever its ending), CSV or Parquet. Nothing is guessed from
a broken row: it is refused with its place and its column.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conflictkit.errors import EmptyInputError, HubError, InvalidParameterError, RowError
from conflictkit.scoring.reading import STRICT_JSON, JsonlSource, Place, check_file, open_source
from conflictkit.scoring.rows import BadRow, Malformed, kind, text

_ENDINGS = (".csv", ".json", ".jsonl", ".ndjson", ".parquet")
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")


@dataclass(frozen=True)
class Record:
    """One row as it was released.

    Attributes:
        values: column -> value.
        place: where it stands, for messages.
        number: its number in its table or split, from 0.
        split: the split it comes from, on the hub; empty in a file.
    """

    values: Mapping[str, Any]
    place: str
    number: int
    split: str = ""

    def error(self, column: str, reason: str) -> RowError:
        """The error that names place and column."""
        return RowError(f"{self.place}, field '{column}': {reason}")

    def text(self, column: str, default: str | None = None) -> str:
        """The text of a column, without surrounding white space.

        Raises:
            RowError: it is missing or empty and there is no default, or it is no text.
        """
        value = self.values.get(column)
        if value is None or value == "":
            if default is not None:
                return default
            raise self.error(column, "is empty" if column in self.values else "is missing")
        return self.check(column, value)

    def verbatim(self, column: str) -> str:
        """The text of a column as it stands.

        Raises:
            RowError: it is missing or empty, or no text.
        """
        self.text(column)
        return self.values[column]

    def texts(self, column: str, *, needed: bool = True) -> tuple[str, ...]:
        """The texts of a column: a list, the text of a list, or one text; repeats left out.

        Raises:
            RowError: it is missing or empty though needed, or holds something else than texts.
        """
        value = self.values.get(column)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = self._written_list(column, value)
        if value is None or value == "" or (isinstance(value, list | tuple) and not value):
            if not needed:
                return ()
            raise self.error(column, "is empty" if column in self.values else "is missing")
        return unique(self.check(column, entry) for entry in _listed(value))

    def check(self, column: str, value: Any) -> str:
        """A text that says something, without surrounding white space.

        Raises:
            RowError: it does not.
        """
        try:
            return text(column, value).strip()
        except Malformed as fault:
            raise self.error(column, fault.reason) from fault

    def meta(self, *columns: str) -> dict[str, Any]:
        """Those of the columns that the row has, for `Case.meta`."""
        found = {name: self.values.get(name) for name in columns}
        return {name: value for name, value in found.items() if value not in (None, "")}

    def _written_list(self, column: str, value: str) -> Any:
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
        raise self.error(column, "begins like a list but cannot be read as one")


@dataclass(frozen=True)
class Table:
    """The rows of one file, or of one data set on the hub.

    Attributes:
        name: as the user wrote it.
        stem: name of the file without folder and ending, or of the configuration or data set.
        folders: names of the folders above the file, innermost first.
        records: its rows; at least one.
    """

    name: str
    stem: str
    records: Sequence[Record]
    folders: Sequence[str] = field(default=())

    def name_row(self, record: Record) -> str:
        """What a row is called when nothing in it names it: unique in the table."""
        return "-".join(part for part in (self.stem, record.split, f"{record.number:05d}") if part)


def open_table(where: str) -> Table:
    """The rows behind a path, or behind `OWNER/NAME` or `OWNER/NAME:CONFIG` on the hub.

    Raises:
        InvalidParameterError: no such file, or one that cannot be read.
        RowError: a row that cannot be read; the message names file and line.
        EmptyInputError: no rows.
        HubError: the data set cannot be loaded.
    """
    path = Path(where)
    hub = _HUB_ID.fullmatch(where)
    if hub is not None and path.suffix.lower() not in _ENDINGS and not exists(path):
        records = list(_from_hub(hub["id"], hub["config"]))
        table = Table(where, hub["config"] or hub["id"].partition("/")[2], records)
    else:
        folders = [parent.name for parent in path.absolute().parents]
        table = Table(where, path.stem, list(_from_file(where)), folders)
    if not table.records:
        raise EmptyInputError(f"there are no rows in '{where}'")
    return table


def split_of(name: str) -> str:
    """The split of cases that a name of a split or file speaks of; `test` if of none."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    if words & {"train", "training"}:
        return "train"
    return "validation" if words & {"validation", "valid", "val", "dev"} else "test"


def unique(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts in order, each once."""
    return tuple(dict.fromkeys(texts))


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; False also for names that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _from_file(name: str) -> Iterator[Record]:
    check_file(name)
    path, plain = Path(name), _AsIs()
    if path.suffix.lower() != ".json":
        source = open_source(name, plain)
    elif _begins_list(path):
        yield from _json_list(name, path.read_bytes())
        return
    else:  # some releases call JSON lines .json
        source = JsonlSource(name, plain)
    for number, (row, _) in enumerate(source.rows(Place())):
        if isinstance(row, BadRow):
            column = f", field '{row.field}'" if row.field else ""
            raise RowError(f"{name}, line {row.line}{column}: {row.reason}")
        line, values = row
        yield Record(values, f"{name}, line {line}", number)


class _AsIs:
    """Rows with all of their columns."""

    optional = ()

    def columns(self, file: str, found: Sequence[str]) -> list[str]:
        for name in found:
            if list(found).count(name) > 1:
                raise InvalidParameterError(f"'{file}' has two columns '{name}'")
        return list(found)

    def read(self, values: Mapping[str, Any], line: int) -> tuple[int, Mapping[str, Any]]:
        return line, values


def _begins_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _json_list(name: str, data: bytes) -> Iterator[Record]:
    """The items of a JSON list one by one, so that each knows the line on which it begins."""
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RowError(f"{name}, line {line}: the file is not UTF-8 text") from error
    space = re.compile(r"\s*")

    def skip(at: int) -> int:
        return space.match(content, at).end()  # type: ignore[union-attr]

    at, line, counted, number = skip(skip(0) + 1), 1, 0, 0
    while content[at : at + 1] != "]" or number:
        line, counted = line + content.count("\n", counted, at), at
        place = f"{name}, line {line} (item {number + 1})"
        try:
            values, at = STRICT_JSON.raw_decode(content, at)
        except Malformed as fault:
            column = f", field '{fault.field}'" if fault.field else ""
            raise RowError(f"{place}{column}: {fault.reason}") from fault
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or "it is nested too deep or has too many digits"
            raise RowError(f"{place}: the file is not JSON ({reason})") from error
        if not isinstance(values, dict):
            raise RowError(f"{place}: must be an object, not {kind(values)}")
        yield Record(values, place, number)
        number, at = number + 1, skip(at)
        if content[at : at + 1] == "]":
            break
        if content[at : at + 1] != ",":
            raise RowError(f"{place}: the file is not JSON (no ',' or ']' after the item)")
        at = skip(at + 1)
    if (rest := skip(at + 1)) < len(content):
        line += content.count("\n", counted, rest)
        raise RowError(f"{name}, line {line}: the file is not JSON (something follows the list)")


def _from_hub(name: str, config: str | None) -> Iterator[Record]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, config) if config else datasets.load_dataset(name)
    except Exception as error:  # the library has no common root for what can go wrong
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise HubError(
            f"cannot load '{name}' from the hub ({reason}): download its file where there is a "
            "network and give the path in place of the id; a configuration is given as "
            f"{name}:CONFIG, and '{name}' is no file here either"
        ) from error
    parts: Mapping[Any, Any] = loaded if isinstance(loaded, Mapping) else {"": loaded}
    for split, rows in parts.items():
        for number, row in enumerate(rows):
            values: Any = row
            said = f", split '{split}'" if split else ""
            yield Record(values, f"{name}{said}, row {number + 1}", number, str(split))
