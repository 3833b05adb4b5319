"""`conflictkit report`: finished runs in, a page and tables out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _inputs, _output
from conflictkit.errors import InvalidParameterError, OutputError

_LARGE = 30e6
"""Bytes from which on browsers take their time to open a page."""

if TYPE_CHECKING:
    from conflictkit.evaluation.report import Source


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders that 'evaluate' wrote.")
    ],
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="One page that needs nothing else.")
    ] = None,
    markdown: Annotated[
        str | None, typer.Option("--markdown", metavar="FILE", help="The tables as Markdown.")
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE|FOLDER",
            help="All figures in a .csv file, or in a folder with one file per table.",
        ),
    ] = None,
    no_traces: Annotated[
        bool,
        typer.Option("--no-traces", help="Leave the answers' tokens out: a much smaller page."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summaries and what was written as JSON.")
    ] = False,
) -> None:
    """Show what runs of 'evaluate' found: tables with intervals, charts, every case and trace.

    Without --html, --markdown, --csv and --json the tables are printed as Markdown.
    """
    if no_traces and html is None:
        raise InvalidParameterError("--no-traces is about the page: name it with --html")
    wanted = {"html": html, "markdown": markdown, "csv": csv}
    targets = {name: _target(value, name) for name, value in wanted.items() if value is not None}
    if len({path.resolve() for path in targets.values()}) < len(targets):
        raise InvalidParameterError("two outputs have the same name: name each file once")
    # Late: these import torch and numpy.
    with contextlib.redirect_stdout(sys.stderr):
        from conflictkit.evaluation import report as reports

        sources = reports.read(runs)
        with _output.working("writing the report"):
            written = _write(sources, targets, traces=not no_traces)
        told = reports.markdown(sources) if not targets and not as_json else ""
    if as_json:
        _output.write_json({"runs": [_data(source) for source in sources], "written": written})
    elif targets:
        for path in written:
            typer.echo(path)
    else:
        typer.echo(told, nl=False)


def _target(name: str, kind: str) -> Path:
    """Where to write, checked before any work is done."""
    if kind != "csv" or name.lower().endswith(".csv"):
        return _inputs.writable(name)
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise InvalidParameterError(
            f"--csv '{name}' is neither a .csv file nor a folder: name one of them"
        )
    if not folder.exists() and not folder.absolute().parent.is_dir():
        raise InvalidParameterError(f"cannot write '{name}': there is no folder to put it in")
    return folder


def _write(sources: list[Source], targets: dict[str, Path], *, traces: bool) -> list[str]:
    from conflictkit.evaluation import report as reports

    made: dict[Path, str] = {}
    for name, path in targets.items():
        if name == "html":
            made[path] = reports.page(sources, traces=traces)
        elif name == "markdown":
            made[path] = reports.markdown(sources)
        elif path.suffix.lower() == ".csv":
            made[path] = reports.figures(sources)
        else:
            made |= {path / file: text for file, text in reports.files(sources).items()}
    for path, text in made.items():
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make '{path.parent}': {error.strerror or error}") from error
        _inputs.write_whole(path, text)
    if "html" in targets and traces and (size := len(made[targets["html"]])) > _LARGE:
        _output.note(f"the page has {size / 1e6:.0f} MB: --no-traces makes it much smaller")
    return [str(path) for path in made]


def _data(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "folder": str(source.run.folder),
        "run": dict(source.run.info),
        "summary": source.summary.to_dict(),
    }
