"""Parquet: reading rows from it by row groups, and writing it from finished records in parts."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from conflictkit.errors import InvalidParameterError
from conflictkit.scoring.reading import Place
from conflictkit.scoring.record import schema
from conflictkit.scoring.rows import BadRow, Malformed, Reader

T = TypeVar("T")
_ROWS = 256
_PART = 8 * 2**20
"""Bytes of records that become one row group."""
_RAW = 64 * 2**10
_BUFFER = 2**20
"""Bytes of a column that are read at a time."""


class ParquetSource(Generic[T]):
    """The columns named in a Parquet file, a few hundred rows at a time."""

    def __init__(self, name: str, fields: Reader[T]) -> None:
        self.name, self.fields = name, fields
        with _refusals(name), self._open() as file:
            self.total = file.metadata.num_rows
            columns = file.schema_arrow.names
        self._columns = fields.columns(name, columns)
        self._hashed, self._to_hash = 0, None

    def _open(self) -> Any:
        import pyarrow.parquet as parquet

        # Without a buffer Arrow reads a row group's columns whole, however few rows are asked for.
        return parquet.ParquetFile(self.name, pre_buffer=False, buffer_size=_BUFFER)

    def rows(self, start: Place) -> Iterator[tuple[T | BadRow, Place]]:
        for batch, index, number in self._cells(start.offset):
            yield self._row(batch, index, number), Place(number, number)

    def _cells(self, start: int) -> Iterator[tuple[Any, int, int]]:
        """Rows after the first `start`: a record batch, the place in it, and the row's number."""
        with _refusals(self.name), self._open() as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            first, group = 0, 0
            while group < len(sizes) and first + sizes[group] <= start:
                first, group = first + sizes[group], group + 1
            number = first
            groups = list(range(group, len(sizes)))
            for batch in file.iter_batches(_ROWS, row_groups=groups, columns=self._columns):
                for index in range(batch.num_rows):
                    number += 1
                    if number > start:
                        yield batch, index, number

    def _row(self, batch: Any, index: int, number: int) -> T | BadRow:
        values: dict[str, Any] = {}
        try:
            for column in self._columns:
                try:
                    values[column] = batch.column(column)[index].as_py()
                except UnicodeDecodeError as error:
                    raise Malformed(column, "is not UTF-8 text") from error
            return self.fields.read(values, number)
        except Malformed as fault:
            raw = json.dumps(values, ensure_ascii=True, default=repr)[:_RAW]
            return BadRow(number, fault.field, fault.reason, raw)

    def digest(self) -> Any:
        return hashlib.blake2b(digest_size=32)

    def absorb(self, digest: Any, start: int, stop: int) -> None:
        """Values, not bytes: a row that is written anew may move every byte of the file."""
        if start != self._hashed or self._to_hash is None:
            # Kept from call to call: to find a row, Arrow reads its row group from the beginning.
            self._to_hash = self._cells(start)
        for batch, index, _ in islice(self._to_hash, stop - start):
            values = {column: _exact(batch.column(column)[index]) for column in self._columns}
            digest.update(json.dumps(values, default=repr).encode() + b"\n")
        self._hashed = stop

    def grew(self, place: Place) -> bool:
        """Never: rows of a table have an end."""
        return False


def _exact(cell: Any) -> Any:
    """An Arrow scalar as Python has it; text that is not UTF-8 as its bytes, alone or in a list."""
    import pyarrow as pa

    try:
        return cell.as_py()
    except UnicodeDecodeError:
        if isinstance(cell, pa.ListScalar) and not isinstance(cell, pa.MapScalar):
            return [_exact(part) for part in cell]
        return cell.as_buffer().to_pybytes() if hasattr(cell, "as_buffer") else None


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidParameterError(f"'{name}' cannot be read as Parquet: {reason}") from error


def write_parquet(records: Path, target: Path, names: Sequence[str], *, tokens: bool) -> None:
    """Write a file of records, one JSON object per line, as Parquet; holds one part at a time.

    Args:
        records: the file of records.
        target: the file to write.
        names, tokens: as `schema`.

    Raises:
        OSError: the disk is full, or the folder closed.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    whole = all(_whole(record["id"]) for part in _parts(records) for record in part)
    layout = schema(names, tokens=tokens, whole_ids=whole)
    with parquet.ParquetWriter(target, layout) as writer:
        for part in _parts(records):
            for record in part:
                if not whole and record["id"] is not None:
                    record["id"] = str(record["id"])
            writer.write_table(pa.Table.from_pylist(part, schema=layout))


def _whole(name: object) -> bool:
    return name is None or (isinstance(name, int) and -(2**63) <= name < 2**63)


def _parts(records: Path) -> Iterator[list[dict[str, Any]]]:
    part, size = [], 0
    with records.open("rb") as file:
        for line in file:
            part.append(json.loads(line))
            size += len(line)
            if size >= _PART:
                yield part
                part, size = [], 0
    if part:
        yield part
