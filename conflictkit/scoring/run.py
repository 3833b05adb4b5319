"""A file of rows in, a file of scores out: windows of rows, batches of like length, none twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conflictkit import __version__
from conflictkit.errors import (
    BoundaryError,
    ConflictKitError,
    ContextTooLongError,
    EmptyInputError,
    InvalidParameterError,
    LogitsError,
    OutputError,
)
from conflictkit.models import config_fingerprint, tokenizer_fingerprint
from conflictkit.scoring.disk import json_line
from conflictkit.scoring.ledger import Ledger, refuse_finished, unfinished
from conflictkit.scoring.reading import Place, open_source
from conflictkit.scoring.record import Score
from conflictkit.scoring.rows import BadRow, Fields, Row
from conflictkit.scoring.scorer import Ready, Scorer, batches

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

_BATCHES = 16
"""Batches to a window, unless its length is given."""
_TEXT = 64 * 2**20
"""Characters of text to a window at most; a longer row is a window by itself."""
_RAW = 64 * 2**10

# What one row may be at fault for; any other error would meet every row.
_ROW_ERRORS = (EmptyInputError, ContextTooLongError, BoundaryError, LogitsError)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: rows finished, those of earlier runs included.
        done: share of the input finished, from 0 to 1.
    """

    rows: int
    done: float


@dataclass(frozen=True)
class Summary:
    """What a finished run did.

    Attributes:
        out: the file of scores.
        errors: the file of rows set aside; None: there were none.
        model, method: who answered where no answer was given, and by which method.
        scores: the scores taken.
        rows: rows in the output.
        skipped: rows set aside.
        given, generated: rows whose answer was given, and written.
        tokens: answer tokens scored.
        resumed: rows, set aside ones included, that an earlier run had finished.
        seconds: time that this run took.
        rows_per_second: rows that this run finished, per second.
    """

    out: str
    errors: str | None
    model: str
    method: str
    scores: tuple[str, ...]
    rows: int
    skipped: int
    given: int
    generated: int
    tokens: int
    resumed: int
    seconds: float
    rows_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON data."""
        return asdict(self)


def score_file(
    model: Model,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    method: Any = None,
    *,
    fields: Fields | None = None,
    generate: bool = False,
    tokens: bool = True,
    batch_size: int = 16,
    batch_tokens: int = 16384,
    window: int | None = None,
    on_error: str = "stop",
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Summary:
    """Score every row of a file.

    Neither the input nor the output is ever held whole. Called again after it was cut short, by
    whatever means, it goes on after the last window of rows that was finished; only the batch
    sizes, `on_error` and the rows not read yet may differ then.

    Args:
        model: as `conflictkit.load` returns it.
        source: a `.jsonl`, `.csv` or `.parquet` file with the columns question, context (text or
            a list of texts) and, where wanted, answer and id.
        out: a `.jsonl` or `.parquet` file to write; it appears once it is whole, with a record per
            row in the order of the input: `line`, `id` and what `Score.to_dict` returns.
        method: writes the answers of rows without one; see `Scorer`.
        fields: which columns to read.
        generate: score the model's own answers, also where rows have one.
        tokens: False leaves the single tokens out of the output.
        batch_size: most rows in a batch.
        batch_tokens: most tokens of the longer stream in a batch, padding included.
        window: rows among which batches are formed, and which are saved at once; None: 16 batches.
        on_error: at a malformed row, `stop` (the rows before it are kept), or `skip`: set it aside
            in `OUT.errors.jsonl` with line, field, reason and the row as it was read.
        overwrite: replace a finished file, or start an unfinished run with other settings over.
        progress: called before the first batch and after each.
        options: `scores` and the options of `Scorer`.

    Side effects: while it runs, writes `OUT.partial`, `OUT.errors.jsonl.partial` and `OUT.journal`;
    what they hold survives any crash.

    Raises:
        RowError: a malformed row, with its file, line and field.
        InvalidParameterError: an option, or a file that cannot be read at all.
        EmptyInputError: a file without rows.
        OutputError: the output is there already, or cannot be written.
        ResumeError: an unfinished run with other settings, another model or other rows.
        ConflictKitError: what `Scorer` raises.
    """
    fields = fields or Fields()
    if on_error not in ("stop", "skip"):
        raise InvalidParameterError(f"on_error must be 'stop' or 'skip', not {on_error!r}")
    window = window if window is not None else _BATCHES * _whole("batch_size", batch_size)
    for name, value in (("batch_tokens", batch_tokens), ("window", window)):
        _whole(name, value)
    target = output(out, source, overwrite=overwrite)
    rows = open_source(source, fields)
    scorer = Scorer(model, method, **options)
    settings = _settings(scorer, fields, target, tokens=tokens, generate=generate)
    run = _Run(scorer, fields, generate, tokens, batch_size, batch_tokens, on_error == "skip")
    began = time.monotonic()
    with Ledger(target, rows, settings, overwrite=overwrite) as ledger:

        def tell(finished: int = 0, until: int | None = None) -> None:
            """So many rows of the window that ends at `until` are finished."""
            if progress is not None:
                share = finished / len(part) if part else 0.0
                here = ledger.place.offset
                offset = here + share * ((until or here) - here)
                before = ledger.mark.scored + ledger.mark.skipped
                progress(Progress(before + finished, offset / max(rows.total, 1)))

        part: list[Item] = []
        tell()
        items = iter(()) if ledger.complete else rows.rows(ledger.place)
        while part := run.read(items, window):
            run.finish(part, ledger, rows.name, partial(tell, until=part[-1][1].offset))
        if not ledger.mark.scored + ledger.mark.skipped:
            ledger.discard()
            raise EmptyInputError(f"'{rows.name}' holds no rows")
        ledger.finish(_converter(target, scorer, tokens))
    seconds = time.monotonic() - began
    mark = ledger.mark
    done = mark.scored + mark.skipped - ledger.resumed
    return Summary(
        out=str(target),
        errors=str(ledger.errors) if mark.errors else None,
        model=model.name,
        method=str(scorer.policy),
        scores=scorer.names,
        rows=mark.scored,
        skipped=mark.skipped,
        given=mark.given,
        generated=mark.scored - mark.given,
        tokens=mark.tokens,
        resumed=ledger.resumed,
        seconds=seconds,
        rows_per_second=done / seconds if seconds else 0.0,
    )


def output(
    out: str | os.PathLike[str], source: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """The file to write, checked before any work is done.

    Raises:
        OutputError: it is there already and no run is unfinished; it is no `.jsonl` or `.parquet`
            file, no regular file, or its folder is missing; it is the input, or would overwrite it
            on the way.
    """
    name = os.fspath(out)
    try:
        path = Path(os.path.realpath(name))
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write '{name}': it is not a regular file")
        if path.suffix.lower() not in (".jsonl", ".parquet"):
            raise OutputError(f"cannot write '{name}': its name must end in .jsonl or .parquet")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write '{name}': there is no folder '{path.parent}'")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write '{name}': no permission in '{path.parent}'")
        if Path(os.path.realpath(source)) in (path, path.with_name(path.name + ".errors.jsonl")):
            raise OutputError(f"'{name}' would overwrite the input: name another file")
        if not unfinished(path):
            refuse_finished(path, overwrite)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write '{name}': {error}") from error
    return path


Item = tuple[Row | BadRow, Place]


@dataclass(frozen=True)
class _Run:
    """How the rows of a window are read, scored and written."""

    scorer: Scorer
    fields: Fields
    generate: bool
    tokens: bool
    batch_size: int
    batch_tokens: int
    skip: bool

    def read(self, items: Iterator[Item], window: int) -> list[Item]:
        """The next rows: as many as a window holds, or up to the first bad one in a run that is to
        stop there."""
        part: list[Item] = []
        size = 0
        for row, place in items:
            part.append((row, place))
            if isinstance(row, BadRow) and not self.skip:
                break
            size += _size(row)
            if len(part) == window or size > _TEXT:
                break
        return part

    def finish(
        self, part: list[Item], ledger: Ledger, name: str, tell: Callable[[int], None]
    ) -> None:
        """Score the rows of a window and commit them; raise RowError at a bad one, if told to."""
        results = self._results([row for row, _ in part], tell)
        records: list[bytes] = []
        errors: list[bytes] = []
        counts = {"scored": 0, "skipped": 0, "given": 0, "tokens": 0}
        place, bad = ledger.place, None
        for (row, end), result in zip(part, results, strict=True):
            if isinstance(result, BadRow):
                if not self.skip:
                    bad = result
                    break
                errors.append(json_line(asdict(result)))
                counts["skipped"] += 1
            elif isinstance(row, Row):
                data = result.to_dict(tokens=self.tokens)
                records.append(json_line({"line": row.line, "id": row.id, **data}))
                counts["scored"] += 1
                counts["given"] += result.method is None
                counts["tokens"] += len(result.tokens)
            place = end
        if records or errors:
            ledger.commit(b"".join(records), b"".join(errors), place, counts)
        if bad is not None:
            raise bad.error(name)

    def _results(
        self, rows: list[Row | BadRow], tell: Callable[[int], None]
    ) -> list[Score | BadRow]:
        """A score, or what is wrong, for every row."""
        results: dict[int, Score | BadRow] = {}
        ready: list[tuple[int, Ready]] = []
        for place, row in enumerate(rows):
            if isinstance(row, BadRow):
                results[place] = row
                continue
            try:
                ready.append((place, self.scorer.prepare(self._asked(row))))
            except _ROW_ERRORS as error:
                results[place] = self._bad(row, error)
        for batch in batches([one.size for _, one in ready], self.batch_size, self.batch_tokens):
            some = [ready[index] for index in batch]
            for (place, one), result in zip(some, self._scores(some), strict=True):
                results[place] = result if isinstance(result, Score) else self._bad(one.row, result)
            tell(len(results))
        return [results[place] for place in range(len(rows))]

    def _scores(
        self, some: list[tuple[int, Ready]]
    ) -> list[Score] | list[Score | ConflictKitError]:
        """Scores of a batch; where it fails over a row, the others are scored without it."""
        try:
            return self.scorer.score([one for _, one in some])
        except _ROW_ERRORS as error:
            if len(some) == 1:
                return [error]
            return [result for row in some for result in self._scores([row])]

    def _asked(self, row: Row) -> Row:
        if not self.generate or row.answer is None:
            return row
        return Row(row.question, row.contexts, None, row.id, row.line)

    def _bad(self, row: Row, error: ConflictKitError) -> BadRow:
        raw = json.dumps({**asdict(row), "line": None}, ensure_ascii=False)[:_RAW]
        part = self.scorer.at_fault(self._asked(row), error)
        names = self.fields.names
        field = names[("question", "context", "answer").index(part)] if part else None
        return BadRow(row.line or 0, field, str(error), raw)


def _settings(
    scorer: Scorer, fields: Fields, target: Path, *, tokens: bool, generate: bool
) -> Mapping[str, Any]:
    """What a run must share with the one that it goes on with, as JSON holds it."""
    settings = {
        "version": __version__,
        "model": scorer.model.fingerprint,
        "dtype": str(scorer.model.model.dtype),
        "config": config_fingerprint(scorer.model.model),
        "tokenizer": tokenizer_fingerprint(scorer.model.tokenizer),
        "window": scorer.model.window,
        "ends": scorer.model._end_ids,
        "method": scorer.policy.to_dict(),
        "decoding": asdict(scorer.decoding),
        "wording": {
            name: asdict(value) if name == "template" and value is not None else value
            for name, value in scorer.wording.items()
        },
        "scores": scorer.names,
        "fields": asdict(fields),
        "tokens": tokens,
        "generate": generate,
        "format": target.suffix.lower(),
    }
    return json.loads(json.dumps(settings))


def _converter(target: Path, scorer: Scorer, tokens: bool) -> Callable[[Path, Path], None] | None:
    if target.suffix.lower() != ".parquet":
        return None

    def convert(records: Path, draft: Path) -> None:
        from conflictkit.scoring.tables import write_parquet

        write_parquet(records, draft, scorer.names, tokens=tokens)

    return convert


def _size(row: Row | BadRow) -> int:
    if isinstance(row, BadRow):
        return len(row.raw)
    return len(row.question) + sum(map(len, row.contexts)) + len(row.answer or "")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidParameterError(f"{name} must be a whole number from 1, not {value!r}")
    return value
