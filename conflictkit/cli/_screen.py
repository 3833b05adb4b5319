"""`conflictkit screen`: a file of questions in, tri-state cases for one model out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _inputs, _options, _output
from conflictkit.cli._options import ANSWERS, RUN, option
from conflictkit.cli._progress import Watch, watching

if TYPE_CHECKING:
    from conflictkit.evaluation.screening import Screened

_CASES = "Building the cases"
_LEAST = 1e-6


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
        int, option(min=1, panel=ANSWERS, help="Sampled answers per question.")
    ] = 10,
    temperature: Annotated[float, option(min=_LEAST, panel=ANSWERS, help="Of the samples.")] = 0.7,
    right_from: Annotated[
        float,
        option(min=0, max=1, panel=ANSWERS, help="Share of right samples that is knowing."),
    ] = 0.8,
    wrong_from: Annotated[
        float,
        option(
            min=_LEAST,
            max=1,
            panel=ANSWERS,
            help="Share of samples with the same wrong answer that is believing.",
        ),
    ] = 0.5,
    max_new_tokens: _options.MaxNewTokens = None,
    stop: _options.Stop = None,
    passages: Annotated[
        str | None,
        option(
            metavar="KINDS",
            panel=_CASES,
            help="Of bare, assertive, hedged, coherent, several, irrelevant-easy, irrelevant-hard; "
            "commas between. By default all but assertive and several.",
        ),
    ] = None,
    substitution: Annotated[
        str,
        option(
            metavar="KIND",
            panel=_CASES,
            help="Wrong answers: corpus, popularity, popularity-low, popularity-high, type-swap.",
        ),
    ] = "corpus",
    alias: Annotated[
        bool,
        option("--alias", panel=_CASES, help="Right passages use another name if there is."),
    ] = False,
    several_count: Annotated[
        int, option(min=2, panel=_CASES, help="Passages of a context of several.")
    ] = 4,
    several_wrong: Annotated[
        list[float] | None,
        option(
            metavar="SHARE",
            panel=_CASES,
            help="Share of wrong ones; repeat for more  [default: 0.25, 0.75]",
        ),
    ] = None,
    seed: Annotated[int, option(min=0, panel=_CASES, help="Of samples and passages.")] = 0,
    model: _options.Model = "atlas",
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    pad_token: _options.PadToken = None,
    chat: _options.Chat = None,
    batch_size: Annotated[int, option(min=1, panel=RUN, help="Most questions in a batch.")] = 16,
    cache: Annotated[
        str | None,
        option(
            metavar="DIR",
            panel=RUN,
            help="Where answers are kept; else $CONFLICTKIT_CACHE or ~/.cache/conflictkit.",
        ),
    ] = None,
    overwrite: Annotated[bool, option("--overwrite", panel=RUN, help="Replace FILE.")] = False,
    quiet: _options.Quiet = False,
    as_json: _options.AsJson = False,
) -> None:
    """Make tri-state cases for a model from any file of questions and answers.

    The model answers every question closed book, greedily and by sampling. Where its memory is
    right, right and wrong passages make cases of agreement and resistance; where it is wrong, right
    passages make cases of correction. Nothing is asked twice: a run that was cut short goes on when
    the same command is given again.
    """
    _options.check_output(as_json, quiet)
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
        "stop": _inputs.stops(stop),
        "chat": chat,
    }
    source = {"device": device, "dtype": dtype, "pad_token": pad_token}
    with watching("asking", "questions", quiet=quiet) as watch:
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
    if as_json:
        _output.write_json(summary.to_dict())
    elif not quiet:
        _output.console().print(*_lines(summary), sep="\n", markup=False)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return _options.given(options)


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
