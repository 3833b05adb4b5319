"""What a run has finished, kept so that a crash at any moment loses no row and doubles none.

While a run goes on there are three files beside the one that is asked for, `OUT`: the records so
far (`OUT.partial`), the rows set aside so far (`OUT.errors.jsonl.partial`) and a journal
(`OUT.journal`). Records are appended first and brought to the disk; then a line in the journal says
how long both files are now and how far the input has been read. What lies beyond the lengths in the
last whole line of the journal was never promised, and is cut off when the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from conflictkit.errors import OutputError, ResumeError
from conflictkit.scoring.disk import (
    Settings,
    append,
    differences,
    flush,
    json_line,
    lock,
    open_to_append,
    sync,
    writing,
)
from conflictkit.scoring.reading import Place, Source


@dataclass(frozen=True)
class Mark:
    """A moment at which everything was on the disk.

    Attributes:
        line, offset: how far the input has been read.
        digest: hash of the input up to there, in hexadecimal digits.
        out, errors: bytes of the records, and of the rows set aside.
        scored, skipped: rows in them.
        given, tokens: rows whose answer was given, and answer tokens, among those scored.
        ended: whether the input was read to its end.
    """

    line: int = 0
    offset: int = 0
    digest: str = ""
    out: int = 0
    errors: int = 0
    scored: int = 0
    skipped: int = 0
    given: int = 0
    tokens: int = 0
    ended: bool = False


class Ledger:
    """The files of one run.

    Use it as a context manager; only one run at a time may hold the ledger of an output.

    Args:
        out: the file that will be there in the end.
        source: the input.
        settings: what must be the same for a run to go on; JSON data.
        overwrite: replace a finished file, and an unfinished run with other settings.

    Attributes:
        mark: what is finished.
        resumed: rows that were finished by an earlier run.
        complete: whether an earlier run put the output in its place.

    Raises:
        OutputError: a finished file is there, another run is writing, or nothing can be written.
        ResumeError: an unfinished run differs in its settings or in the rows it has read.
    """

    def __init__(
        self, out: Path, source: Source, settings: Settings, *, overwrite: bool = False
    ) -> None:
        self.out = out
        self.partial = _beside(out, ".partial")
        self.errors = _beside(out, ".errors.jsonl")
        self._errors_partial = _beside(out, ".errors.jsonl.partial")
        self._journal_path = _beside(out, ".journal")
        self._source, self._settings, self._overwrite = source, settings, overwrite
        self.mark = Mark()
        self.resumed = 0
        self.complete = False
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> Ledger:
        try:
            with writing(self._journal_path):
                there = self._journal_path.exists()
                if not there:
                    refuse_finished(self.out, self._overwrite)
                journal = self._open("journal", self._journal_path)
                self._lock(journal)
            settings, mark = _last_mark(journal)
            if settings is None:
                if there:
                    refuse_finished(self.out, self._overwrite)
                self._begin()
            elif self._agrees(settings, mark):
                self._go_on(mark)
            else:
                self._begin()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def place(self) -> Place:
        """Where the input goes on."""
        return Place(self.mark.line, self.mark.offset)

    def commit(
        self, records: bytes, errors: bytes, place: Place, counts: Mapping[str, int]
    ) -> None:
        """Bring finished rows to the disk, all or none of them.

        Args:
            records: lines for the output.
            errors: lines about rows set aside.
            place: where the last of these rows ends in the input.
            counts: how many of `scored`, `skipped`, `given` and `tokens` there were.

        Raises:
            OutputError: they could not be written; nothing is lost of what was there before.
        """
        self._source.absorb(self._digest, self.mark.offset, place.offset)
        was = self.mark
        mark = replace(
            was,
            line=place.line,
            offset=place.offset,
            digest=self._digest.hexdigest(),
            out=was.out + len(records),
            errors=was.errors + len(errors),
            ended=False,
            **{name: getattr(was, name) + value for name, value in counts.items()},
        )
        for name, data in (("partial", records), ("errors", errors)):
            if data:
                self._append(name, data)
        self._note(mark)

    def finish(self, convert: Callable[[Path, Path], None] | None) -> None:
        """Put the output in its place, in one move, and take the other files away.

        Args:
            convert: makes the output (second path) of the records (first path); None: the records
                are the output.

        Raises:
            OutputError: the output could not be written; the same run may be tried again.
        """
        if not self.mark.ended:
            self._note(replace(self.mark, ended=True))
        draft = _beside(self.out, ".draft")
        with writing(self.out):
            if self.partial.exists():
                ready = self.partial
                if convert is not None:
                    ready = draft
                    try:
                        convert(self.partial, draft)
                        sync(draft)
                    except BaseException:
                        draft.unlink(missing_ok=True)
                        raise
                self._put_errors()
                os.replace(ready, self.out)
                sync(self.out.parent)
            self.partial.unlink(missing_ok=True)
            self._close()
            self._journal_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._close()
        for path in (self.partial, self._errors_partial, self._journal_path):
            path.unlink(missing_ok=True)

    def _put_errors(self) -> None:
        if self.mark.errors:
            os.replace(self._errors_partial, self.errors)
        else:
            self._errors_partial.unlink(missing_ok=True)
            self.errors.unlink(missing_ok=True)

    def _lock(self, journal: BinaryIO) -> None:
        lock(journal, self.out)
        if not self._journal_path.exists():  # that run finished in between
            raise OutputError(f"another run was writing '{self.out}': look at it first")

    def _begin(self) -> None:
        self._digest = self._source.digest()
        self.mark = Mark(digest=self._digest.hexdigest())
        with writing(self.partial):
            journal = self._files["journal"]
            journal.seek(0)
            journal.truncate()
            flush(journal)
            for name, path in (("partial", self.partial), ("errors", self._errors_partial)):
                self._open(name, path).truncate(0)
            self._append("journal", json_line({"settings": self._settings}))
            sync(self.out.parent)
        self._note(self.mark)

    def _agrees(self, settings: Settings, mark: Mark) -> bool:
        """Whether a run may go on; False: it may be thrown away."""
        differ = differences(settings, self._settings)
        self._digest = self._source.digest()
        if not differ:
            if mark.offset <= self._source.total:
                self._source.absorb(self._digest, 0, mark.offset)
            if mark.offset > self._source.total or self._digest.hexdigest() != mark.digest:
                differ = [f"the rows of '{self._source.name}' that were read"]
        if not differ:
            differ = self._shortened(mark) or self._lengthened(mark)
        if differ and not self._overwrite:
            raise ResumeError(
                f"'{self.out}' was begun by a run that differs: {'; '.join(differ)}. Run it as it "
                "was, or start over with overwrite=True (command line: --overwrite)"
            )
        return not differ

    def _shortened(self, mark: Mark) -> list[str]:
        """Files that somebody else has cut or taken away since."""
        if self._finished(mark):
            return []  # everything is where it belongs, but for the journal
        aside = self._errors_partial if self._errors_partial.exists() else self.errors
        sizes = {self.partial: mark.out, aside: mark.errors}
        return [
            f"the length of '{path}'"
            for path, size in sizes.items()
            if size > (path.stat().st_size if path.exists() else 0)
        ]

    def _lengthened(self, mark: Mark) -> list[str]:
        """What was added to the input since, where it can no longer be scored."""
        place = Place(mark.line, mark.offset)
        if self._source.grew(place):
            return [f"line {place.line} of '{self._source.name}' has become longer"]
        if self._finished(mark) and next(iter(self._source.rows(place)), None) is not None:
            return [f"rows were added to '{self._source.name}' after the last was scored"]
        return []

    def _finished(self, mark: Mark) -> bool:
        """Whether only the journal was left to be taken away."""
        return mark.ended and self.out.exists() and not self.partial.exists()

    def _go_on(self, mark: Mark) -> None:
        self.mark, self.resumed = mark, mark.scored + mark.skipped
        self.complete = self._finished(mark)
        if self.complete:
            return
        with writing(self.partial):
            if not self._errors_partial.exists() and self.errors.exists():
                # The end of the run was cut short between two moves.
                os.replace(self.errors, self._errors_partial)
            kept = (
                ("partial", self.partial, mark.out),
                ("errors", self._errors_partial, mark.errors),
            )
            for name, path, length in kept:
                file = self._open(name, path)
                file.truncate(length)
                file.seek(length)

    def _open(self, name: str, path: Path) -> BinaryIO:
        file = self._files[name] = open_to_append(path)
        return file

    def _append(self, name: str, data: bytes) -> None:
        with writing(self.out):
            append(self._files[name], data)

    def _note(self, mark: Mark) -> None:
        self._append("journal", json_line({"mark": asdict(mark)}))
        self.mark = mark

    def _close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # of a write that failed, and was reported
                file.close()
        self._files = {}


def refuse_finished(out: Path, overwrite: bool) -> None:
    """Raise OutputError if a finished run's files are there and must not be replaced."""
    for path in (out, _beside(out, ".errors.jsonl")):
        if path.exists() and not overwrite:
            raise OutputError(
                f"'{path}' is there already: name another file, or replace it with "
                "overwrite=True (command line: --overwrite)"
            )


def unfinished(out: Path) -> bool:
    """Whether a run that writes `out` was begun and not finished."""
    return _beside(out, ".journal").exists()


def _last_mark(journal: BinaryIO) -> tuple[Settings | None, Mark]:
    """Settings and last mark of a journal, cut behind its last whole line; None: it holds none."""
    journal.seek(0)
    settings, mark, end = None, None, 0
    for line in journal:
        try:
            entry = json.loads(line) if line.endswith(b"\n") else {}
            settings = entry.get("settings", settings)
            mark = Mark(**entry["mark"]) if "mark" in entry else mark
        except (ValueError, TypeError, AttributeError):
            break  # torn by a crash: nothing after it was promised
        if not entry:
            break
        end += len(line)
    journal.truncate(end)
    return (settings, mark) if settings is not None and mark is not None else (None, Mark())


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
