"""The folder of a run: what was asked, what was answered, and how a run that was cut short goes on.

`run.json` says what the run is, `cases.jsonl` holds the cases, `rows.jsonl` one result per line,
`errors.jsonl` what could not be asked, `summary.json` the figures. Results are appended and brought
to the disk batch by batch; every other file appears whole, in one move.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from conflictkit.errors import OutputError, ResumeError
from conflictkit.evaluation.cases.io import read_cases, write_cases
from conflictkit.evaluation.metrics.summary import Summary
from conflictkit.evaluation.record import Result
from conflictkit.scoring.disk import (
    append,
    differences,
    json_line,
    lock,
    open_to_append,
    put,
    sync,
    writing,
)
from conflictkit.types import Case

FORMAT, VERSION = "conflictkit-run", 1
RUN, CASES, ROWS, ERRORS, SUMMARY = (
    "run.json", "cases.jsonl", "rows.jsonl", "errors.jsonl", "summary.json",
)  # fmt: skip

Pair = tuple[str, str | None]
"""Case and label of a method; None: all methods."""


@dataclass(frozen=True)
class Aside:
    """A case that could not be asked.

    Attributes:
        case: its id.
        error: name of the error.
        reason: what it says.
    """

    case: str
    error: str
    reason: str


@dataclass(frozen=True)
class Run:
    """A run, finished or not, as its folder holds it.

    Attributes:
        folder: where it is.
        info: `run.json`.
        cases: the cases that were asked, in order.
    """

    folder: Path
    info: Mapping[str, Any]
    cases: tuple[Case, ...]

    @cached_property
    def results(self) -> tuple[Result, ...]:
        """Every answer given so far, as it was written.

        Raises:
            OutputError: a line that is no result, or a finished run that lacks some.
        """
        entries, _ = _lines(self.folder / ROWS)
        try:
            found = tuple(Result.from_dict(entry) for entry in entries)
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"'{self.folder / ROWS}' holds a line that is no result") from error
        if self.finished:
            done: set[Pair] = {(one.case, one.method) for one in found}
            done |= {(one.case, None) for one in self.errors}
            _check_whole(self.folder, self.cases, self.info["methods"], done)
        return found

    @cached_property
    def errors(self) -> tuple[Aside, ...]:
        """The cases that could not be asked."""
        return tuple(Aside(**entry) for entry in _lines(self.folder / ERRORS)[0])

    @cached_property
    def summary(self) -> Summary | None:
        """The figures; None: the run is not finished."""
        path = self.folder / SUMMARY
        return Summary.from_dict(_json(path)) if path.exists() else None

    @property
    def finished(self) -> bool:
        """Whether every case was asked under every method."""
        return self.info["finished"] is not None


def load_run(folder: str | os.PathLike[str]) -> Run:
    """The run in a folder, finished or not.

    Raises:
        OutputError: no run is there, or a newer release wrote it.
        RowError: its cases are damaged.
    """
    place = Path(folder)
    if not (place / RUN).is_file():
        raise OutputError(f"there is no run in '{place}': it has no {RUN}")
    info = _json(place / RUN)
    if info.get("format") != FORMAT or info.get("version") != VERSION:
        raise OutputError(f"'{place / RUN}' was not written by this release of conflictkit")
    if not (place / CASES).exists():
        raise OutputError(f"the run in '{place}' has no {CASES}: give its command again")
    return Run(place, info, tuple(read_cases(place / CASES)))


class Folder:
    """The folder of a run while it is written; use it as a context manager.

    Args:
        place: the folder; made if it is not there.
        info: `run.json` without `started` and `finished`.
        cases: the cases.
        overwrite: throw a run away that differs, or that is finished.

    Attributes:
        done: what is finished: case and method, or a case that was set aside and None.
        finished: whether the whole run is.

    Raises:
        OutputError: other files of these names are there, another run is writing, or nothing can
            be written.
        ResumeError: another run is there.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        info: Mapping[str, Any],
        cases: Sequence[Case],
        *,
        overwrite: bool = False,
    ) -> None:
        self.place = Path(place)
        self._info = {"format": FORMAT, "version": VERSION, **info}
        self._cases, self._overwrite = cases, overwrite
        self._files: dict[str, BinaryIO] = {}
        self.done: set[Pair] = set()
        self.finished = False

    def __enter__(self) -> Folder:
        check_folder(self.place)
        try:
            with writing(self.place):
                self.place.mkdir(parents=True, exist_ok=True)
                for name in (ROWS, ERRORS):
                    self._files[name] = open_to_append(self.place / name)
                lock(self._files[ROWS], self.place)
                there = (self.place / RUN).exists()
                if there and self._agrees():
                    self._go_on()
                else:
                    self._begin()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, results: Iterable[Result], aside: Iterable[Aside] = ()) -> None:
        """Bring results to the disk, and what was set aside; those that are there are left out.

        Raises:
            OutputError: they could not be written; the same call goes on later.
        """
        new = [one for one in results if (one.case, one.method) not in self.done]
        out = [one for one in aside if (one.case, None) not in self.done]
        with writing(self.place):
            if out:
                append(self._files[ERRORS], b"".join(json_line(vars(one)) for one in out))
            if new:
                append(self._files[ROWS], b"".join(json_line(one.to_dict()) for one in new))
        self.done |= {(one.case, one.method) for one in new} | {(one.case, None) for one in out}

    def finish(self, summary: Summary) -> None:
        """Write the figures, then that the run is finished.

        Raises:
            OutputError: they could not be written, or results are missing.
        """
        _check_whole(self.place, self._cases, self._info["methods"], self.done)
        with writing(self.place):
            put(self.place / SUMMARY, _text(summary.to_dict()))
            self._info["finished"] = self._info["finished"] or _now()
            put(self.place / RUN, _text(self._info))
        self.finished = True

    def _begin(self) -> None:
        """Start over. While `run.json` says nothing, nothing else is believed."""
        nothing = {name: self._info[name] for name in ("format", "version")}
        put(self.place / RUN, _text(nothing))
        (self.place / SUMMARY).unlink(missing_ok=True)
        for file in self._files.values():
            file.truncate(0)
        write_cases(self.place / CASES, self._cases)
        sync(self.place / CASES)
        self._info |= {"started": _now(), "finished": None}
        put(self.place / RUN, _text(self._info))

    def _agrees(self) -> bool:
        """Whether the run that is there is this one; False: it may be thrown away."""
        old = _json(self.place / RUN)
        if "finished" not in old:  # a run that was about to begin
            return False
        differ = _differences(_identity(old), _identity(self._info))
        if not differ:
            self._info |= {name: old[name] for name in ("started", "finished")}
            return not (self._overwrite and old["finished"])
        if not self._overwrite:
            raise ResumeError(
                f"'{self.place}' holds a run that differs: {'; '.join(differ)}. Name another "
                "folder, or replace that run with overwrite=True (command line: --overwrite)"
            )
        return False

    def _go_on(self) -> None:
        ids = {case.id for case in self._cases}
        sizes: dict[str, int] = {}
        for name in self._files:
            entries, sizes[name] = _lines(self.place / name)
            labels = self._info["methods"] if name == ROWS else [None]
            for entry in entries:
                pair = (entry["case"], entry.get("method"))
                if pair[0] not in ids or pair[1] not in labels or pair in self.done:
                    raise ResumeError(
                        f"'{self.place / name}' holds a line that is not of this run, or twice: "
                        f"case '{pair[0]}', method '{pair[1]}'. Replace the run with "
                        "overwrite=True (command line: --overwrite)"
                    )
                self.done.add(pair)
        ended = self._info["finished"] is not None
        lacks = any(_missing(self._cases, self._info["methods"], self.done))
        self.finished = ended and not lacks
        if ended and lacks:
            # The figures go first: without them nothing takes the run for a finished one.
            (self.place / SUMMARY).unlink(missing_ok=True)
            self._info["finished"] = None
            put(self.place / RUN, _text(self._info))
        for name, file in self._files.items():
            file.truncate(sizes[name])

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}


def check_folder(place: str | os.PathLike[str]) -> None:
    """Refuse a folder that is none, or whose files are not of a run.

    Raises:
        OutputError: see above.
    """
    folder = Path(place)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot write a run to '{folder}': it is not a folder")
    if (folder / RUN).exists():
        if _json(folder / RUN).get("format") != FORMAT:
            raise OutputError(f"'{folder / RUN}' is not of a run: name another folder")
        return
    for name in (CASES, ROWS, ERRORS, SUMMARY):
        path = folder / name
        if path.exists() and path.stat().st_size:
            raise OutputError(f"'{path}' is there, but no {RUN}: name another folder")


def _identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs share if the second goes on with the first; how a case is called in a message
    is its key."""
    free = {
        ("options", "batch_size"), ("options", "batch_tokens"),
        ("cases", "spec"), ("model", "name"), ("versions", "python"),
    }  # fmt: skip
    flat: dict[str, Any] = {}
    for name, value in info.items():
        if name in ("started", "finished"):
            continue
        if isinstance(value, Mapping):
            parts = {f"{name}.{key}": one for key, one in value.items() if (name, key) not in free}
            flat |= parts
        else:
            flat[name] = value
    return flat


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two runs. Other methods are said once, by their labels: the policy of
    a method that only one of them has says nothing more."""
    if old.get("methods") != new.get("methods"):
        alone = {name for name in old.keys() ^ new.keys() if name.startswith("policies.")}
        old, new = ({k: v for k, v in one.items() if k not in alone} for one in (old, new))
    return differences(old, new)


def _missing(
    cases: Sequence[Case], methods: Sequence[str], done: Set[Pair]
) -> Iterator[tuple[str, str]]:
    """Case and method of every result that is not there; a case that was set aside has none."""
    for case in cases:
        if (case.id, None) not in done:
            yield from ((case.id, label) for label in methods if (case.id, label) not in done)


def _check_whole(
    place: Path, cases: Sequence[Case], methods: Sequence[str], done: Set[Pair]
) -> None:
    missing = list(_missing(cases, methods, done))
    for case, method in missing[:1]:
        raise OutputError(
            f"'{place / ROWS}' lacks {len(missing):,} of the results of a finished run, the first "
            f"of case '{case}' and method '{method}': give the run's command again to make them"
        )


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of lines, and where the last one ends: what a crash tore stands behind
    it, and was never finished.

    Raises:
        OutputError: the file cannot be read, or a line that is none has others behind it, so that
            it is not what a crash tore.
    """
    entries: list[dict[str, Any]] = []
    whole = torn = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read: {error.strerror or error}") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or "case" not in entry:
                torn = torn or number
                continue
            if torn:
                raise OutputError(
                    f"'{path}', line {torn} is damaged, and whole lines follow it: delete that "
                    "line and give the run's command again, which asks again what is missing"
                )
            entries.append(entry)
            whole += len(line)
    return entries, whole


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise OutputError(f"'{path}' is not a JSON object")
    return data


def _text(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
