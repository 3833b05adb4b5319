"""`conflictkit evaluate`: cases under several methods, and a table of what each of them does."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _inputs, _options, _output
from conflictkit.cli._options import ANSWERS, RUN, option
from conflictkit.cli._progress import Watch, watching
from conflictkit.errors import InvalidParameterError

if TYPE_CHECKING:
    from rich.table import Table

    from conflictkit.evaluation.folder import Run
    from conflictkit.evaluation.metrics.summary import Summary

_CASES = "Cases"
_SHOWN = {
    "correction": "corr.",
    "resistance": "resist.",
    "minimum": "min.",
    "harmonic": "harm.",
    "agreement": "agree.",
    "irrelevant": "irrel.",
    "other_rate": "other",
    "forwards_per_token": "forwards\n/token",
    "relative_seconds": "relative\nseconds",
}
"""Metric -> head of its column."""


def evaluate(
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Folder of this run; one for each.")
    ],
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "-m",
            metavar="LIST",
            help="a,b?x=1,c?alpha=0:1:0.1: names, parameters, sweeps from:to:step.",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A saved policy to evaluate too; repeat for more."),
    ] = None,
    cases: Annotated[
        str,
        option(metavar="SPEC", panel=_CASES, help="atlas, SOURCE:PATH, or a .jsonl of cases."),
    ] = "atlas",
    split: Annotated[
        str | None,
        option(metavar="NAME", panel=_CASES, help="Only train, validation or test."),
    ] = None,
    limit: Annotated[
        int | None,
        option(min=1, panel=_CASES, help="At most so many, in equal shares from the states."),
    ] = None,
    max_new_tokens: _options.MaxNewTokens = None,
    stop: _options.Stop = None,
    temperature: Annotated[
        float | None, option(panel=ANSWERS, help="0 is greedy (default).")
    ] = None,
    top_k: Annotated[int | None, option(panel=ANSWERS, help="Sample from the best k.")] = None,
    top_p: Annotated[float | None, option(panel=ANSWERS, help="Sample from this mass.")] = None,
    seed: Annotated[
        int,
        option(min=0, panel=ANSWERS, help="Of --limit, of the intervals and of sampling."),
    ] = 0,
    model: _options.Model = "atlas",
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    pad_token: _options.PadToken = None,
    chat: _options.Chat = None,
    truncate: _options.Truncate = False,
    heads: _options.Heads = None,
    probe: _options.Probe = None,
    batch_size: Annotated[int, option(min=1, panel=RUN, help="Most cases in a batch.")] = 32,
    batch_tokens: Annotated[int, option(min=1, panel=RUN, help="Most tokens in a batch.")] = 16384,
    top: Annotated[
        int,
        option(min=1, panel=RUN, help="Candidates of each stream to keep per token."),
    ] = 3,
    match: _options.Match = None,
    overwrite: Annotated[
        bool,
        option("--overwrite", panel=RUN, help="Replace another run, or a finished one."),
    ] = False,
    quiet: _options.Quiet = False,
    as_json: _options.AsJson = False,
) -> None:
    """Answer cases under several methods, and compare what comes out.

    A run that was cut short goes on when the same command is given again.
    """
    if methods is None and not policy:
        raise InvalidParameterError("name what to evaluate: --methods LIST or --policy FILE")
    options = {
        "max_new_tokens": max_new_tokens,
        "stop": _inputs.stops(stop),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "chat": chat,
        "truncate": truncate or None,
        "match": match,
        "heads": heads,
        "probe": probe,
    }
    settings = {
        "split": split,
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "top": top,
        "overwrite": overwrite,
        **_options.given(options),
    }
    source = {"device": device, "dtype": dtype, "pad_token": pad_token}
    with watching("evaluating", "answers", quiet=quiet) as watch:
        run = _run((model, source), cases, methods or (), policy or (), out, settings, watch)
    if run.errors:
        _output.note(
            f"{len(run.errors):,} of {len(run.cases):,} cases could not be asked: see "
            f"'{run.folder / 'errors.jsonl'}' (the first: {run.errors[0].reason})"
        )
    summary = run.summary
    if summary is None or (quiet and not as_json):
        return
    if as_json:
        _output.write_json(summary.to_dict())
    else:
        _draw(run, summary)


def _run(
    source: tuple[str, dict[str, Any]],
    cases: str,
    methods: Any,
    policies: Any,
    out: str,
    settings: dict[str, Any],
    watch: Watch,
) -> Run:
    # Late: these import torch. Everything that may be wrong is found before a model is loaded.
    with contextlib.redirect_stdout(sys.stderr):
        from conflictkit import toolkit
        from conflictkit.evaluation.runner import check_request
        from conflictkit.evaluation.runner import evaluate as run_all

        early = ("split", "limit", "seed", "match")
        known = {name: settings[name] for name in early if name in settings}
        _, chosen = check_request(cases, methods, out, policies=policies, **known)
        model = toolkit.load(source[0], **source[1])
        return run_all(
            model, chosen, methods, out, policies=policies, spec=cases, progress=watch, **settings
        )


def _draw(run: Run, summary: Summary) -> None:
    console = _output.console()
    console.print(_table(summary))
    states = ", ".join(f"{count:,} {state}" for state, count in run.info["cases"]["states"].items())
    console.print(
        f"{run.info['cases']['count']:,} cases ({states}), "
        f"{len(run.info['methods']):,} methods -> {Path(run.folder)}",
        markup=False,
    )


def _table(summary: Summary) -> Table:
    """A line per method; every figure above its interval."""
    from rich.table import Table
    from rich.text import Text

    from conflictkit.evaluation.report.numbers import bounds, is_share, mark, shown

    names = [
        name for name in _SHOWN if any(name in summary.cells[method] for method in summary.methods)
    ]
    marks = f"; ▲ ▼: differs from {summary.baseline} (paired, p < 0.05)" if summary.compared else ""
    table = Table(
        caption=f"figure above its 95 % interval{marks}",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("method", overflow="fold")
    for name in names:
        head = _SHOWN[name] + (" %" if is_share(name) else "")
        table.add_column(head, justify="right", no_wrap=True)
    for method in summary.methods:
        line = [Text(method)]
        for name in names:
            cell = summary.cells[method].get(name)
            if cell is None:
                line.append(Text("–"))
                continue
            ends = bounds(cell)
            places = 0 if is_share(name) else 2
            scale = 100 if is_share(name) else 1
            under = "" if ends is None else "–".join(f"{end * scale:.{places}f}" for end in ends)
            line.append(Text(f"{shown(cell.value, name)}{mark(cell)}\n{under}"))
        table.add_row(*line)
    return table
