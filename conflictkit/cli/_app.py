"""The program: its commands, and what it does when one of them fails."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from conflictkit import __version__
from conflictkit.cli._ask import ask
from conflictkit.cli._evaluate import evaluate
from conflictkit.cli._fit_auto import fit_auto
from conflictkit.cli._fit_probe import fit_probe
from conflictkit.cli._fit_steering import fit_steering
from conflictkit.cli._methods import methods
from conflictkit.cli._rank_heads import rank_heads
from conflictkit.cli._report import report
from conflictkit.cli._score import score
from conflictkit.cli._screen import screen
from conflictkit.errors import ConflictKitError

BAD_INPUT = 2
_WRITING = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF}
INTERRUPTED = 130

app = typer.Typer(
    name="conflictkit",
    help="Score, control and show conflicts between a model's context and its memory.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(ask)
app.command()(score)
app.command()(evaluate)
app.command()(screen)
app.command()(report)
app.command("fit-auto")(fit_auto)
app.command("fit-probe")(fit_probe)
app.command("fit-steering")(fit_steering)
app.command("rank-heads")(rank_heads)
app.command()(methods)

# typer ships its own copy of click or uses the installed one, by version: this is either's.
_UsageProblem: type[BaseException] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"conflictkit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; None: what the process was started with.

    Returns:
        0; 2 for bad input, after one line on standard error; 130 when interrupted.
    """
    if arguments is None:  # a process of its own: its streams and warnings are ours to settle
        _settle_streams()
        _quiet_libraries()
    try:
        code = typer.main.get_command(app).main(
            args=list(sys.argv[1:] if arguments is None else arguments),
            prog_name="conflictkit",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except ConflictKitError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except OSError as error:
        if error.errno not in _WRITING:
            raise
        # A full disk, or a reader (`| head`) that has what it wanted and is owed no message.
        if not isinstance(error, BrokenPipeError):
            _complain(f"cannot write the result: {error.strerror or error}")
        # Python flushes once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _UsageProblem as problem:
        return _complain(_message(problem))
    return code if isinstance(code, int) else 0


def _message(problem: BaseException) -> str:
    describe = getattr(problem, "format_message", None)
    return describe() if describe is not None else str(problem)


def _complain(message: str) -> int:
    from conflictkit.trace.text import visible

    line = visible(" ".join(message.split()))
    typer.echo(f"conflictkit: error: {line}", err=True)
    return BAD_INPUT


def _settle_streams() -> None:
    """Never fail over a closed stream or a character that the terminal's encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _quiet_libraries() -> None:
    """Keep standard error for people: one line per problem, bars only where someone looks."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
