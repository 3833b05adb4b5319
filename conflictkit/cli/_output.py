"""Standard output and standard error: one for the result, the other for everything else."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_A_FILE = 100


def console() -> Console:
    """Where results are drawn; wider than rich's guess where there is no terminal to fit."""
    from rich.console import Console

    free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=WIDTH_OF_A_FILE if free else None, highlight=False, soft_wrap=False)


def write_json(data: Any) -> None:
    """One JSON value on standard output: strict, and whole in any encoding."""
    from conflictkit.trace.text import plain_data

    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(plain_data(data), indent=2, ensure_ascii=not utf8, allow_nan=False))


def note(text: str) -> None:
    """Something worth knowing that is no error, on standard error."""
    typer.echo(f"conflictkit: note: {text}", err=True)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something is going on, and keep what libraries print out of the result."""
    from rich.console import Console

    with contextlib.redirect_stdout(sys.stderr), Console(stderr=True).status(what):
        yield
