"""Options that several commands share: said once, so that they read the same everywhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from conflictkit.errors import InvalidParameterError

ANSWERS = "Answers"
MODEL = "Model"
RUN = "Run"


def option(*names: str, panel: str, **settings: Any) -> Any:
    """An option under the heading `panel` of a command's help."""
    return typer.Option(*names, rich_help_panel=panel, **settings)


def check_output(as_json: bool, quiet: bool) -> None:
    """Refuse to print the result and nothing at once."""
    if as_json and quiet:
        raise InvalidParameterError("--json and --quiet exclude each other")


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were named on the command line, so that the others keep the library's default."""
    return {name: value for name, value in options.items() if value is not None}


Model = Annotated[
    str, option(metavar="NAME", panel=MODEL, help="atlas, a Hugging Face id, or a folder.")
]
Device = Annotated[str | None, option(panel=MODEL, help="Where it runs: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str | None, option(panel=MODEL, help="float32, bfloat16, float16 or auto.")]
PadToken = Annotated[str | None, option(panel=MODEL, help="For a tokenizer without one.")]
Chat = Annotated[
    bool | None,
    option(
        "--chat/--no-chat",
        panel=MODEL,
        help="Use the chat template or not; by default if there is one.",
    ),
]
Truncate = Annotated[
    bool,
    option(
        "--truncate",
        panel=MODEL,
        help="Cut a context that does not fit the window, instead of an error.",
    ),
]
Heads = Annotated[
    list[str] | None,
    option(
        metavar="FILE",
        panel=MODEL,
        help="Heads for methods that edit some: a ranking of rank-heads; repeat for more.",
    ),
]
Probe = Annotated[
    str | None,
    option(
        metavar="FILE",
        panel=MODEL,
        help="Probe for gates such as 'probe > 0.7': a file of fit-probe.",
    ),
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Only train, validation or test.")]
Replace = Annotated[bool, option("--overwrite", panel=RUN, help="Replace FILE if it exists.")]
MaxNewTokens = Annotated[int | None, option(panel=ANSWERS, help="Longest answer.")]
Stop = Annotated[list[str] | None, option(metavar="TEXT", panel=ANSWERS, help="End before this.")]
Match = Annotated[
    str | None,
    option(metavar="NAME", panel=RUN, help="How answers are recognised: exact, ck-plug, ..."),
]
Quiet = Annotated[
    bool, option("--quiet", "-q", panel=RUN, help="No progress bar, and no summary at the end.")
]
AsJson = Annotated[bool, option("--json", panel=RUN, help="Print the result as JSON.")]
