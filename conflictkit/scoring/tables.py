"""Parquet: reading rows from it by row groups, and writing it from finished records in parts."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
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


class ParquetSource(Generic[T]):
    """The columns named in a Parquet file, a few hundred rows at a time."""

    def __init__(self, name: str, fields: Reader[T]) -> None:
        self.name, self.fields = name, fields
        with _refusals(name), self._open() as file:
            self.total = file.metadata.num_rows
            columns = file.schema_arrow.names
        self._columns = fields.columns(name, columns)

    def _open(self) -> Any:
        import pyarrow.parquet as parquet

        return parquet.ParquetFile(self.name, pre_buffer=False)

    def rows(self, start: Place) -> Iterator[tuple[T | BadRow, Place]]:
        with _refusals(self.name), self._open() as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            first, group = 0, 0
            while group < len(sizes) and first + sizes[group] <= start.offset:
                first, group = first + sizes[group], group + 1
            number = first
            groups = list(range(group, len(sizes)))
            for batch in file.iter_batches(_ROWS, row_groups=groups, columns=self._columns):
                for index in range(batch.num_rows):
                    number += 1
                    if number > start.offset:
                        yield self._row(batch, index, number), Place(number, number)

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
        """The whole file's: rows of a Parquet file do not lie one after the other."""
        digest = hashlib.blake2b(digest_size=32)
        with Path(self.name).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest

    def absorb(self, digest: Any, start: int, stop: int) -> None:
        """Nothing: everything is in already."""


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
