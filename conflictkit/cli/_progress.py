"""How far a long run is, drawn on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conflictkit.scoring import Progress

_STEPS = 1_000_000


class Watch:
    """Draws how far a run is, if there is anyone to see it."""

    def __init__(self, draw: Callable[[Progress], None], close: Callable[[], None]) -> None:
        self._draw, self.close = draw, close

    def __call__(self, progress: Progress) -> None:
        self._draw(progress)


@contextlib.contextmanager
def watching(title: str, things: str, *, quiet: bool = False) -> Iterator[Watch]:
    """A bar with the time that is left, on standard error, only on a terminal.

    Args:
        title: what is being done.
        things: what is counted.
        quiet: draw nothing on a terminal either.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Watch(lambda progress: None, lambda: None)
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
        yield Watch(draw, bars.stop)
    finally:
        bars.stop()
