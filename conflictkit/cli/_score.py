"""`conflictkit score`: a file of questions in, a file of conflict scores out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _ask, _inputs, _options, _output
from conflictkit.cli._options import ANSWERS, RUN, option
from conflictkit.cli._progress import Watch, watching
from conflictkit.errors import InvalidParameterError

if TYPE_CHECKING:
    from conflictkit.scoring import Summary

_COLUMNS = "Columns"


def score(
    rows: Annotated[str, typer.Argument(metavar="ROWS", help="A .jsonl, .csv or .parquet file.")],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="A .jsonl or .parquet to write.")
    ],
    detector: Annotated[
        list[str] | None,
        typer.Option("--detector", "-d", metavar="NAME", help="A score to take; repeat for more."),
    ] = None,
    no_tokens: Annotated[
        bool, typer.Option("--no-tokens", help="Leave the single tokens out of the output.")
    ] = False,
    question_field: Annotated[
        str, option(metavar="NAME", panel=_COLUMNS, help="Holds the question.")
    ] = "question",
    context_field: Annotated[
        str,
        option(metavar="NAME", panel=_COLUMNS, help="Holds the passage, or a list of them."),
    ] = "context",
    answer_field: Annotated[
        str | None,
        option(metavar="NAME", panel=_COLUMNS, help="Holds the answer; else 'answer', if there."),
    ] = None,
    id_field: Annotated[
        str | None,
        option(metavar="NAME", panel=_COLUMNS, help="Holds the row's name; else 'id', if there."),
    ] = None,
    generate: Annotated[
        bool,
        option("--generate", panel=ANSWERS, help="Score the model's own answers always."),
    ] = False,
    method: Annotated[
        str | None,
        option("--method", "-m", metavar="NAME", panel=ANSWERS, help="By default: plain."),
    ] = None,
    param: Annotated[
        list[str] | None,
        option("--param", "-p", metavar="NAME=VALUE", panel=ANSWERS, help="Of the method."),
    ] = None,
    when: Annotated[
        str | None,
        option(
            metavar="GATE",
            panel=ANSWERS,
            help="Flag answers there, and act only there: 'jsd > 0.3'.",
        ),
    ] = None,
    strength: Annotated[
        str | None,
        option(metavar="NUMBER", panel=ANSWERS, help="How strongly, or a detector's name."),
    ] = None,
    start_after: Annotated[
        str | None,
        option(metavar="TEXT", panel=ANSWERS, help="Act only behind this text."),
    ] = None,
    policy: Annotated[
        str | None,
        option(metavar="FILE", panel=ANSWERS, help="A saved policy, instead of all of these."),
    ] = None,
    max_new_tokens: _options.MaxNewTokens = None,
    stop: _options.Stop = None,
    model: _options.Model = "atlas",
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    pad_token: _options.PadToken = None,
    chat: _options.Chat = None,
    truncate: _options.Truncate = False,
    batch_size: Annotated[int, option(min=1, panel=RUN, help="Most rows in a batch.")] = 16,
    batch_tokens: Annotated[int, option(min=1, panel=RUN, help="Most tokens in a batch.")] = 16384,
    window: Annotated[
        int | None,
        option(
            min=1,
            panel=RUN,
            help="Rows to form batches among and save at once; else 16 batches.",
        ),
    ] = None,
    on_error: Annotated[
        str,
        option(
            metavar="stop|skip",
            panel=RUN,
            help="At a malformed row: stop, or set it aside in FILE.errors.jsonl.",
        ),
    ] = "stop",
    overwrite: Annotated[
        bool,
        option("--overwrite", panel=RUN, help="Replace FILE, or start over."),
    ] = False,
    as_json: _options.AsJson = False,
) -> None:
    """Score how far context and memory are apart, for every row of a file.

    Rows that hold an answer have that answer scored; for the others the model writes one. A run
    that was cut short goes on when the same command is given again.
    """
    if param and method is None:
        raise InvalidParameterError("--param belongs to a method: name it with --method")
    if on_error not in ("stop", "skip"):
        raise InvalidParameterError(f"--on-error must be stop or skip, not '{on_error}'")
    control = {
        "method": _ask._spec(method, param or ()),
        "policy": policy,
        "when": when,
        "strength": _ask._strength(strength),
        "start_after": start_after and _inputs.sound(start_after, "--start-after"),
    }
    options: dict[str, Any] = {
        "scores": detector,
        "max_new_tokens": max_new_tokens,
        "stop": _inputs.stops(stop),
        "chat": chat,
        "truncate": truncate or None,
    }
    columns = {
        "question": question_field,
        "context": context_field,
        "answer": answer_field,
        "id": id_field,
    }
    columns = {
        name: column and _inputs.sound(column, f"--{name}-field")
        for name, column in columns.items()
    }
    source = {"device": device, "dtype": dtype, "pad_token": pad_token}
    settings = {
        "generate": generate,
        "tokens": not no_tokens,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "window": window,
        "on_error": on_error,
        "overwrite": overwrite,
        **_options.given(options),
    }
    with watching("scoring", "rows") as watch:
        summary = _run(rows, out, columns, control, (model, source), settings, watch)
    if as_json:
        _output.write_json(summary.to_dict())
    else:
        _output.console().print(*_lines(summary), sep="\n", markup=False)


def _run(
    rows: str,
    out: str,
    columns: dict[str, str | None],
    control: dict[str, Any],
    source: tuple[str, dict[str, Any]],
    settings: dict[str, Any],
    watch: Watch,
) -> Summary:
    # Late: these import torch. Everything that may be wrong is found before a model is loaded.
    with contextlib.redirect_stdout(sys.stderr):
        from conflictkit import detectors, scoring, toolkit
        from conflictkit.policy import choose
        from conflictkit.scoring.reading import open_source
        from conflictkit.scoring.run import output

        fields = scoring.Fields(**columns)  # type: ignore[arg-type]
        output(out, rows, overwrite=settings["overwrite"])
        open_source(rows, fields)
        for name in settings.get("scores", ()):
            detectors.get(name)
        method = control.pop("method")
        bare = method is None and control["policy"] is None
        chosen = choose("plain" if bare else method, control.pop("policy"), control)
        model = toolkit.load(source[0], **source[1])
        return scoring.score_file(
            model, rows, out, policy=chosen, fields=fields, progress=watch, **settings
        )


def _lines(summary: Summary) -> Iterator[str]:
    """What a run did, for people."""
    yield (
        f"{summary.rows:,} rows scored ({summary.given:,} answers given, {summary.generated:,} "
        f"written), {summary.tokens:,} answer tokens -> {summary.out}"
    )
    if summary.errors is not None:
        yield f"{summary.skipped:,} malformed rows set aside -> {summary.errors}"
    done = f"{summary.seconds:,.1f} s, {summary.rows_per_second:,.1f} rows/s"
    if summary.resumed:
        done += f"; {summary.resumed:,} rows were there from before"
    yield done
