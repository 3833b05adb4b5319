"""`conflictkit rank-heads`: cases in, a ranking of one model's heads out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _options, _output
from conflictkit.cli._options import RUN, option
from conflictkit.cli._progress import Watch, watching
from conflictkit.errors import EmptyInputError

if TYPE_CHECKING:
    from conflictkit.interventions.ranking import HeadRanking

_SHOWN = 5
"""Heads of each kind that the table shows."""


def rank_heads(
    cases: Annotated[
        str,
        typer.Option(
            "--cases", metavar="SPEC", help="atlas:train, SOURCE:PATH, or a .jsonl of cases."
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="The ranking to write.")
    ] = "heads.json",
    by: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="attribution, attention-mass, focus, activation-patching, path-patching, "
            "path-patching-exact, juice or juice-gentle; with options as attribution?norm=ignored.",
        ),
    ] = "path-patching",
    split: _options.Split = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many conflicts, in equal shares from states."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --limit.")] = 0,
    model: _options.Model = "atlas",
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    pad_token: _options.PadToken = None,
    overwrite: Annotated[
        bool,
        option("--overwrite", panel=RUN, help="Replace FILE, and an unfinished run of another."),
    ] = False,
    quiet: _options.Quiet = False,
    as_json: _options.AsJson = False,
) -> None:
    """Find the heads that carry context and memory, and save them for the methods that edit heads.

    Find heads on other cases than those that the methods are measured on. A run that was cut short
    goes on when the same command is given again.
    """
    _options.check_output(as_json, quiet)
    source = {"device": device, "dtype": dtype, "pad_token": pad_token}
    settings = {"by": by, "out": out, "overwrite": overwrite, "limit": limit, "seed": seed}
    with watching("ranking heads", "cases", quiet=quiet) as watch:
        ranking = _run((model, source), cases, split, settings, watch)
    if as_json:
        _output.write_json(ranking.to_dict())
    elif not quiet:
        _output.console().print(*_lines(ranking, out), sep="\n", markup=False)


def _run(
    source: tuple[str, dict[str, Any]],
    spec: str,
    split: str | None,
    settings: dict[str, Any],
    watch: Watch,
) -> HeadRanking:
    # Late: these import torch. What may be wrong with the input is found before a model is loaded.
    with contextlib.redirect_stdout(sys.stderr):
        from conflictkit import toolkit
        from conflictkit.evaluation.asking import pick
        from conflictkit.evaluation.cases import load_cases
        from conflictkit.mechanics.items import gives_another
        from conflictkit.mechanics.ranking import check_request, rank
        from conflictkit.scoring import Progress

        check_request(settings["by"], settings["out"], overwrite=settings["overwrite"])
        found = list(filter(gives_another, pick(load_cases(spec), split, None, 0)))
        if not found:
            raise EmptyInputError(f"no case in '{spec}' has a context that contradicts memory")
        model = toolkit.load(source[0], **source[1])

        def report(done: int, every: int) -> None:
            watch(Progress(rows=done, done=done / every))

        return rank(model, found, progress=report, **settings)


def _lines(ranking: HeadRanking, out: str) -> Iterator[str]:
    """What a ranking found, for people."""
    kinds = [kind for kind in ("context", "memory") if kind in ranking.scores]
    lists = [name for name in ("enlarge", "suppress") if getattr(ranking, name) is not None]
    columns = {
        kind: [_scored(ranking, kind, head) for head in ranking.top(kind, _SHOWN)] for kind in kinds
    }
    columns |= {name: [_named(head) for head in ranking.top(name, _SHOWN)] for name in lists}
    widths = {name: max(len(name), *map(len, cells), 1) for name, cells in columns.items()}
    yield "     " + "   ".join(name.ljust(widths[name]) for name in columns).rstrip()
    for place in range(max(map(len, columns.values()), default=0)):
        cells = (
            (column[place] if place < len(column) else "").ljust(widths[name])
            for name, column in columns.items()
        )
        yield f"{place + 1:>3}  " + "   ".join(cells).rstrip()
    yield (
        f"{ranking.layers * ranking.heads:,} heads by {ranking.by}; L.H is layer.head, with its "
        "mean score and standard error"
    )
    every = ranking.cases + sum(ranking.dropped.values())
    yield f"{ranking.cases:,} of {every:,} conflicts -> {Path(out)}"
    for reason, count in sorted(ranking.dropped.items(), key=lambda pair: -pair[1]):
        yield f"{count:>7,}  {reason}"


def _scored(ranking: HeadRanking, kind: str, head: tuple[int, int]) -> str:
    layer, number = head
    error = ranking.errors.get(kind)
    beside = "" if error is None else f" ± {error[layer][number]:.2g}"
    return f"{_named(head)} {ranking.scores[kind][layer][number]:.3g}{beside}"


def _named(head: tuple[int, int]) -> str:
    return f"{head[0]}.{head[1]}"
