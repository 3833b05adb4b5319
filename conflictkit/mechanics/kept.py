"""The tables of finished items, kept so that a kill at any moment loses one item and doubles none.

`PATH` is JSON lines: what must be the same for a run to go on, then a line for each item. A line is
appended whole and brought to the disk before the next item begins. A last line without its end was
never promised: it is cut off when the run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from conflictkit.errors import OutputError, ResumeError
from conflictkit.scoring import disk

Tables = Mapping[str, Tensor]
"""Name -> `[layers, heads]` float64."""

_DIGITS = 9
"""Significant digits kept: what float32 holds."""


def rounded(tables: Tables) -> dict[str, Tensor]:
    """What a line of the file gives back, so that a resumed run ends in the same numbers."""
    return {name: torch.tensor(_rows(table), dtype=torch.float64) for name, table in tables.items()}


class Kept:
    """What one run has finished; a context manager, held by one run at a time.

    Args:
        path: the file; made if it is not there.
        settings: what must be the same for a run to go on; JSON data.
        ids: of the items, in order.
        overwrite: begin anew where the file is of another run.

    Attributes:
        done: number of an item -> its tables.

    Raises:
        ResumeError: the file is of another run, or broken.
        OutputError: another run holds it, or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        ids: list[str],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path, self._settings, self._ids = path, dict(settings), ids
        self._overwrite = overwrite
        self._file: BinaryIO | None = None
        self.done: dict[int, dict[str, Tensor]] = {}

    def __enter__(self) -> Kept:
        try:
            self._file = disk.open_to_append(self.path)
            self._lock(self._file)
            self._read(self._file)
        except OSError as error:
            self.close()
            raise OutputError(f"cannot write '{self.path}': {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the file, which stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Take the file away: its run is finished."""
        self.path.unlink(missing_ok=True)
        self.close()

    def add(self, number: int, tables: Tables) -> None:
        """Keep the tables of item `number`, on the disk when this returns.

        Raises:
            OutputError: they cannot be written.
        """
        self._append({"item": number, "case": self._ids[number]} | _plain(tables))
        self.done[number] = rounded(tables)

    def _append(self, entry: Mapping[str, Any]) -> None:
        assert self._file is not None  # held from __enter__ to __exit__
        with disk.writing(self.path):
            disk.append(self._file, disk.json_line(entry))

    def _lock(self, file: BinaryIO) -> None:
        disk.lock(file, self.path)
        if not self.path.exists() or not os.path.samestat(
            os.fstat(file.fileno()), os.stat(self.path)
        ):
            raise OutputError(f"another run has just finished with '{self.path}': look at it first")

    def _read(self, file: BinaryIO) -> None:
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if lines and not self._agrees(self._entry(lines[0], 1)):
            lines, whole = [], b""
        for number, line in enumerate(lines[1:], 2):
            self._take(self._entry(line, number), number)
        file.truncate(len(whole))
        if not lines:
            self._append(self._settings)

    def _agrees(self, settings: Mapping[str, Any]) -> bool:
        """Whether the file goes on; False: it is to be begun anew."""
        differ = [
            name
            for name in dict.fromkeys([*settings, *self._settings])
            if settings.get(name) != self._settings.get(name)
        ]
        if differ and not self._overwrite:
            raise ResumeError(
                f"'{self.path}' is of another run (it differs in {', '.join(differ)}): give that "
                "run's command again, name another --out, or add --overwrite"
            )
        return not differ

    def _entry(self, line: bytes, number: int) -> Mapping[str, Any]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, Mapping):
            raise self._broken(number)
        return entry

    def _take(self, entry: Mapping[str, Any], number: int) -> None:
        item = entry.get("item")
        if type(item) is not int or not 0 <= item < len(self._ids) or item in self.done:
            raise self._broken(number)
        try:
            tables = {
                name: torch.tensor(rows, dtype=torch.float64)
                for name, rows in entry.items()
                if name not in ("item", "case")
            }
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise self._broken(number) from error
        like = next(iter(self.done.values()), tables)
        good = tables and all(one.dim() == 2 and one.isfinite().all() for one in tables.values())
        if entry.get("case") != self._ids[item] or not good or _shapes(tables) != _shapes(like):
            raise self._broken(number)
        self.done[item] = tables

    def _broken(self, number: int) -> ResumeError:
        return ResumeError(
            f"line {number} of '{self.path}' cannot be read: delete the file to begin anew"
        )


def _shapes(tables: Tables) -> dict[str, tuple[int, ...]]:
    return {name: tuple(table.shape) for name, table in tables.items()}


def _rows(table: Tensor) -> list[list[float]]:
    return [[float(f"{one:.{_DIGITS}g}") for one in row] for row in table.double().tolist()]


def _plain(tables: Tables) -> dict[str, Any]:
    return {name: _rows(table) for name, table in tables.items()}
