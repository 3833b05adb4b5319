"""`conflictkit screen`: a file of questions in, tri-state cases for one model out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _output
from conflictkit.cli._progress import Watch, watching
from conflictkit.errors import InvalidParameterError

if TYPE_CHECKING:
    from conflictkit.evaluation.screening import Screened

_ASKING = "Asking the model"
_CASES = "Building the cases"
_MODEL = "Model"
_RUN = "Run"
_INTERRUPTED = 130
_LEAST = 1e-6


def _option(*names: str, panel: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


def screen(
    questions: Annotated[
        str,
        typer.Option(
            "--questions",
            metavar="FILE",
            help="A .jsonl, .json, .csv or .parquet file with question and answer.",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="A .jsonl of cases to write.")
    ],
    samples: Annotated[
        int, _option(min=1, panel=_ASKING, help="Sampled answers per question.")
    ] = 10,
    temperature: Annotated[float, _option(min=_LEAST, panel=_ASKING, help="Of the samples.")] = 0.7,
    right_from: Annotated[
        float,
        _option(min=0, max=1, panel=_ASKING, help="Share of right samples that is knowing."),
    ] = 0.8,
    wrong_from: Annotated[
        float,
        _option(
            min=_LEAST,
            max=1,
            panel=_ASKING,
            help="Share of samples with the same wrong answer that is believing.",
        ),
    ] = 0.5,
    max_new_tokens: Annotated[int | None, _option(panel=_ASKING, help="Longest answer.")] = None,
    stop: Annotated[
        list[str] | None, _option(metavar="TEXT", panel=_ASKING, help="End before this text.")
    ] = None,
    passages: Annotated[
        str | None,
        _option(
            metavar="KINDS",
            panel=_CASES,
            help="Of bare, assertive, hedged, coherent, several, irrelevant-easy, irrelevant-hard; "
            "commas between. By default all but assertive and several.",
        ),
    ] = None,
    substitution: Annotated[
        str,
        _option(
            metavar="KIND",
            panel=_CASES,
            help="Wrong answers: corpus, popularity, popularity-low, popularity-high, type-swap.",
        ),
    ] = "corpus",
    alias: Annotated[
        bool, _option("--alias", panel=_CASES, help="Right passages use another name if there is.")
    ] = False,
    several_count: Annotated[
        int, _option(min=2, panel=_CASES, help="Passages of a context of several.")
    ] = 4,
    several_wrong: Annotated[
        list[float] | None,
        _option(
            metavar="SHARE",
            panel=_CASES,
            help="Share of wrong ones; repeat for more  [default: 0.25, 0.75]",
        ),
    ] = None,
    seed: Annotated[int, _option(min=0, panel=_CASES, help="Of samples and passages.")] = 0,
    model: Annotated[
        str, _option(metavar="NAME", panel=_MODEL, help="atlas, a Hugging Face id, or a folder.")
    ] = "atlas",
    device: Annotated[str | None, _option(panel=_MODEL, help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[
        str | None, _option(panel=_MODEL, help="float32, bfloat16, float16 or auto.")
    ] = None,
    pad_token: Annotated[
        str | None, _option(panel=_MODEL, help="For a tokenizer without one.")
    ] = None,
    chat: Annotated[
        bool | None,
        _option(
            "--chat/--no-chat",
            panel=_MODEL,
            help="Use the chat template or not; by default if there is one.",
        ),
    ] = None,
    batch_size: Annotated[int, _option(min=1, panel=_RUN, help="Most questions in a batch.")] = 16,
    cache: Annotated[
        str | None,
        _option(
            metavar="DIR",
            panel=_RUN,
            help="Where answers are kept; else $CONFLICTKIT_CACHE or ~/.cache/conflictkit.",
        ),
    ] = None,
    overwrite: Annotated[bool, _option("--overwrite", panel=_RUN, help="Replace FILE.")] = False,
    quiet: Annotated[
        bool, _option("--quiet", "-q", panel=_RUN, help="No progress bar, no summary.")
    ] = False,
    as_json: Annotated[
        bool, _option("--json", panel=_RUN, help="Print the summary as JSON.")
    ] = False,
) -> None:
    """Make tri-state cases for a model from any file of questions and answers.

    The model answers every question closed book, greedily and by sampling. Where its memory is
    right, right and wrong passages make cases of agreement and resistance; where it is wrong, right
    passages make cases of correction. Nothing is asked twice: a run that was cut short goes on when
    the same command is given again.
    """
    if as_json and quiet:
        raise InvalidParameterError("--json and --quiet exclude each other")
    chosen = {
        "passages": None if passages is None else _kinds(passages),
        "wrong_shares": tuple(several_wrong) if several_wrong else None,
        "substitution": substitution,
        "alias": alias,
        "count": several_count,
        "seed": seed,
    }
    asking = {
        "samples": samples,
        "temperature": temperature,
        "right": right_from,
        "wrong": wrong_from,
        "max_new_tokens": max_new_tokens,
        "stop": stop,
        "chat": chat,
    }
    source = {"device": device, "dtype": dtype, "pad_token": pad_token}
    with watching("asking", "questions", quiet=quiet) as watch:
        try:
            summary = _run(
                questions,
                out,
                _given(chosen),
                (model, source),
                {
                    "seed": seed,
                    "batch_size": batch_size,
                    "cache": cache,
                    "overwrite": overwrite,
                    **_given(asking),
                },
                watch,
            )
        except KeyboardInterrupt:
            watch.close()
            typer.echo(
                "conflictkit: interrupted: the answers so far are kept, the same command goes on "
                "from here",
                err=True,
            )
            raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        _output.write_json(summary.to_dict())
    elif not quiet:
        _output.console().print(*_lines(summary), sep="\n", markup=False)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _kinds(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run(
    questions: str,
    out: str,
    chosen: dict[str, Any],
    source: tuple[str, dict[str, Any]],
    options: dict[str, Any],
    watch: Watch,
) -> Screened:
    # Late: these import torch. What may be wrong with the input is found before a model is loaded.
    with contextlib.redirect_stdout(sys.stderr):
        from conflictkit import toolkit
        from conflictkit.evaluation.questions import collection, read_questions
        from conflictkit.evaluation.screening import Plan, check_output
        from conflictkit.evaluation.screening import screen as screen_questions

        plan = Plan(**chosen)
        check_output(out, questions, overwrite=options["overwrite"])
        found = read_questions(questions)
        model = toolkit.load(source[0], **source[1])
        return screen_questions(
            model, found, out, plan, name=collection(questions), progress=watch, **options
        )


def _lines(summary: Screened) -> Iterator[str]:
    """What a screening did, for people."""
    priors = summary.priors
    unasked = f", {summary.unanswered:,} could not be asked" if summary.unanswered else ""
    yield (
        f"{summary.questions:,} questions: memory is right in {priors['right']:,}, wrong in "
        f"{priors['wrong']:,}, uncertain in {priors['uncertain']:,}{unasked}"
    )
    states = ", ".join(f"{state} {count:,}" for state, count in summary.states.items())
    yield f"{sum(summary.states.values()):,} cases ({states}) -> {summary.out}"
    for reason, count in summary.dropped.items():
        yield f"{count:,} cases could not be made: {reason}"
    yield (
        f"{summary.seconds:,.1f} s; {summary.asked:,} prompts asked, {summary.known:,} known from "
        "before"
    )
