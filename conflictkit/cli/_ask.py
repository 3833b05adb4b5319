"""`conflictkit ask`: one question, what each source says, and why the method decided as it did."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _inputs, _options, _output
from conflictkit.errors import InvalidParameterError

if TYPE_CHECKING:
    from conflictkit.answers import Answer

_DECODING = "Decoding"
_OUTPUT = "Output"


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="TEXT", help="A passage; repeat for several."),
    ] = None,
    context_file: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A file with a passage (UTF-8); - is standard input."),
    ] = None,
    per_passage: Annotated[
        bool,
        typer.Option(
            "--per-passage",
            help="Read every passage by itself too: which one does the answer follow?",
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="Method, or name?parameter=value&parameter=value  [default: adacad]",
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="Parameter of the method."),
    ] = None,
    when: Annotated[
        str | None,
        typer.Option(
            metavar="GATE", help="Act only there: 'jsd > 0.3', 'jsd > 0.3 until 0.2 at prompt'."
        ),
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="How strongly to act (1), or a detector's name."),
    ] = None,
    start_after: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Act only behind this text, such as </think>."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A saved policy, instead of all of these."),
    ] = None,
    save_policy: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also write what was asked for as a policy."),
    ] = None,
    model: _options.Model = "atlas",
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    pad_token: _options.PadToken = None,
    chat: _options.Chat = None,
    truncate: _options.Truncate = False,
    heads: _options.Heads = None,
    probe: _options.Probe = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer.", rich_help_panel=_DECODING)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy (default).", rich_help_panel=_DECODING)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from the best k.", rich_help_panel=_DECODING)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from this mass.", rich_help_panel=_DECODING)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling.", rich_help_panel=_DECODING)
    ] = None,
    num_beams: Annotated[
        int | None, typer.Option(help="Width of the beam search.", rich_help_panel=_DECODING)
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text.", rich_help_panel=_DECODING),
    ] = None,
    drafts: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Tokens to guess ahead from what was read, or auto: the same answer, sooner.",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUTPUT),
    ] = False,
    html: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Also write the trace as an HTML page.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    no_trace: Annotated[
        bool,
        typer.Option("--no-trace", help="Leave the trace out.", rich_help_panel=_OUTPUT),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print the answer only.", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:
    """Ask a question against a context, and see where it meets the model's memory.

    Without --context and --context-file the passage is read from standard input, if piped in.
    Without any, the model answers from memory (closed book).
    """
    question = _inputs.question_text(question)
    found = _inputs.passages(context or (), context_file or ())
    if html is not None and no_trace:
        raise InvalidParameterError("--html draws the trace: leave --no-trace out")
    _options.check_output(as_json, quiet)
    if per_passage:
        _check_per_passage(found, shown=not no_trace and (not quiet or html is not None))
    page = _inputs.writable(html) if html is not None else None
    control = {
        "method": _spec(method, param or ()),
        "when": when,
        "strength": _strength(strength),
        "start_after": start_after and _inputs.sound(start_after, "--start-after"),
        "policy": policy,
    }
    saved = _inputs.writable(save_policy) if save_policy is not None else None
    decoding = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "num_beams": num_beams,
        "stop": _inputs.stops(stop),
        "drafts": _drafts(drafts),
    }
    answer = _answer(
        question,
        found,
        control,
        saved,
        source={"name": model, "device": device, "dtype": dtype, "pad_token": pad_token},
        options=_options.given({**decoding, "heads": heads, "probe": probe})
        | {"chat": chat, "truncate": truncate, "trace": not no_trace}
        | {"per_passage": per_passage}
        # The page shows all three answers, even when only one is printed.
        | {"compare": page is not None or not quiet},
    )
    if answer.trace is not None and not answer.trace.acted:
        _output.note("the method never acted: its gate stayed shut, or its marker was not written")
    if page is not None and answer.trace is not None:
        _inputs.write_whole(page, answer.trace.to_html())
    if as_json:
        _output.write_json(answer.to_dict())
    elif quiet:
        typer.echo(answer.text)
    else:
        _draw(answer)


def _check_per_passage(found: list[str], shown: bool) -> None:
    if not found:
        raise InvalidParameterError(
            "--per-passage reads the passages one by one, but there are none: give --context"
        )
    if not shown:
        raise InvalidParameterError(
            "--per-passage shows in the trace: leave --no-trace out, and --quiet too unless there "
            "is an --html"
        )


def _drafts(text: str | None) -> int | str | None:
    """A number if it is one; else what the run makes of it."""
    return int(text) if text is not None and text.isdecimal() else text


def _strength(text: str | None) -> float | str | None:
    """A number if it is one, else a detector's name."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _spec(method: str | None, params: tuple[str, ...] | list[str]) -> str | None:
    """The method with its parameters as one line, however they were given."""
    for pair in params:
        name, equals, value = pair.partition("=")
        if not (name and equals and value) or "&" in pair:
            raise InvalidParameterError(f"--param '{pair}': write it as name=value")
    if not params:
        return method
    if method is None:
        method = "adacad"
    return f"{method}{'&' if '?' in method else '?'}{'&'.join(params)}"


def _answer(
    question: str,
    found: list[str],
    control: dict[str, Any],
    saved: Path | None,
    source: dict[str, Any],
    options: dict[str, Any],
) -> Answer:
    # Late: these import torch, and most mistakes have been found by now.
    with contextlib.redirect_stdout(sys.stderr):
        from conflictkit import toolkit
        from conflictkit.policy import choose

        # Before a model is loaded for minutes.
        chosen = choose(control.pop("method"), control.pop("policy"), control)
        if (file := options.get("probe")) is not None:
            from conflictkit.detectors.probe import LayerProbe

            chosen = chosen.reading(LayerProbe.load(file))
        if saved is not None:
            chosen.save(saved)
        name = source.pop("name")
        model = toolkit.load(name, **source)
    with _output.working("answering"):
        return model.ask(question, found or None, policy=chosen, **options)


def _draw(answer: Answer) -> None:
    from conflictkit.trace import Trace
    from conflictkit.trace.terminal import summary

    if answer.trace is not None:
        _output.console().print(answer.trace)
        return
    without_tokens = Trace(
        question=answer.question,
        contexts=answer.contexts,
        method=answer.method,
        params=answer.params,
        answer=answer.text,
        tokens=(),
        model=answer.model,
        plain_answer=answer.plain_answer,
        memory_answer=answer.memory_answer,
    )
    _output.console().print(summary(without_tokens))
