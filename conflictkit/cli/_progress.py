"""How far a long run is, drawn on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from conflictkit.scoring import Progress

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
GOES_ON = "the same command goes on from here"
_STEPS = 1_000_000


Watch = Callable[["Progress"], None]


@contextlib.contextmanager
def watching(
    title: str,
    things: str,
    *,
    quiet: bool = False,
    kept: str = GOES_ON,
) -> Iterator[Watch]:
    """A bar with the time that is left, on standard error, only on a terminal; Ctrl-C ends both.

    Args:
        title: what is being done.
        things: what is counted.
        quiet: draw nothing on a terminal either.
        kept: what an interrupted run leaves, for the last line.

    Raises:
        typer.Exit: with `INTERRUPTED`, after Ctrl-C.
    """
    try:
        with _bar(title, things, quiet=quiet) as watch:
            yield watch
    except KeyboardInterrupt:
        typer.echo(f"conflictkit: interrupted: {kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def _bar(title: str, things: str, *, quiet: bool) -> Iterator[Watch]:
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda progress: None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn(title),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} " + things),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # The speed is that of so many seconds, in which two batches have to come to an end.
        speed_estimate_period=3600,
        # Standard output is redirected while a model is loaded: what rich puts back when the bar
        # ends would be that.
        redirect_stdout=False,
        redirect_stderr=False,
    )

    def draw(progress: Progress) -> None:
        done = round(progress.done * _STEPS)
        if not bars.tasks:
            # Begun where an earlier run stopped, so that its work does not count as speed.
            bars.add_task("", total=_STEPS, completed=done, rows=progress.rows)
            bars.start()
        bars.update(bars.task_ids[0], completed=done, rows=progress.rows)

    try:
        yield draw
    finally:
        bars.stop()
