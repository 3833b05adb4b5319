"""`conflictkit fit-auto`: cases of known state in, a policy for one model out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _inputs, _options, _output
from conflictkit.cli._options import RUN, option
from conflictkit.cli._progress import GOES_ON, Watch, watching

if TYPE_CHECKING:
    from conflictkit.evaluation.auto import Fitted


def fit_auto(
    cases: Annotated[
        str,
        typer.Option(
            "--cases", metavar="SPEC", help="atlas:validation, SOURCE:PATH, or a .jsonl of cases."
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="The policy to write.")
    ] = "policy.json",
    reach: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            metavar="WEIGHT",
            help="Of a context surely right; repeat for more to choose from  "
            "[default: 1, 1.1, 1.25, 1.5, 2]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds and of --limit.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many cases, in equal shares from states.")
    ] = None,
    max_new_tokens: _options.MaxNewTokens = None,
    stop: _options.Stop = None,
    match: _options.Match = None,
    model: _options.Model = "atlas",
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    pad_token: _options.PadToken = None,
    chat: _options.Chat = None,
    truncate: _options.Truncate = False,
    answers: Annotated[
        str | None,
        option(
            metavar="DIR",
            panel=RUN,
            help="Keep the answers here: the same command then goes on where it was cut short.",
        ),
    ] = None,
    batch_size: Annotated[int, option(min=1, panel=RUN, help="Most cases in a batch.")] = 32,
    overwrite: Annotated[bool, option("--overwrite", panel=RUN, help="Replace FILE.")] = False,
    quiet: _options.Quiet = False,
    as_json: _options.AsJson = False,
) -> None:
    """Fit `auto` to a model, from cases whose state is known, and save it as a policy.

    The policy is tied to the model's weights. Measure it on cases that it was not fitted on.
    """
    _options.check_output(as_json, quiet)
    options = {
        "max_new_tokens": max_new_tokens,
        "stop": _inputs.stops(stop),
        "match": match,
        "chat": chat,
        "truncate": truncate or None,
        "reaches": tuple(reach) if reach else None,
        "answers": answers,
    }
    settings = {
        "seed": seed,
        "batch_size": batch_size,
        **_options.given(options),
    }
    source = {"device": device, "dtype": dtype, "pad_token": pad_token}
    kept = GOES_ON if answers else "nothing was kept"
    with watching("answering", "answers", quiet=quiet, kept=kept) as watch:
        fitted = _run((model, source), cases, limit, out, overwrite, settings, watch)
    if as_json:
        _output.write_json(fitted.to_dict())
    elif not quiet:
        _output.console().print(*_lines(fitted, out), sep="\n", markup=False)


def _run(
    source: tuple[str, dict[str, Any]],
    spec: str,
    limit: int | None,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
    watch: Watch,
) -> Fitted:
    # Late: these import torch. What may be wrong with the input is found before a model is loaded.
    with contextlib.redirect_stdout(sys.stderr):
        from conflictkit import toolkit
        from conflictkit.evaluation import auto
        from conflictkit.evaluation.asking import pick
        from conflictkit.evaluation.cases import load_cases

        path = _inputs.new_file(out, overwrite)
        early = {
            name: settings[name] for name in ("reaches", "match", "answers") if name in settings
        }
        found = pick(load_cases(spec), None, limit, settings["seed"])
        auto.check_request(found, **early)
        model = toolkit.load(source[0], **source[1])
        fitted = auto.fit(model, found, progress=watch, **settings)
        fitted.policy.save(path)
        return fitted


def _lines(fitted: Fitted, out: str) -> Iterator[str]:
    """What a fit found, for people."""
    cases = ", ".join(
        f"{count:,} {state} ({fitted.judged.get(state, 0):,} with a disagreement)"
        for state, count in fitted.cases.items()
    )
    yield f"cases: {cases}"
    yield (
        f"judgement: AUROC {fitted.auroc:.3f} ({fitted.auroc_low:.3f}-{fitted.auroc_high:.3f}) on "
        "subjects left out"
    )
    yield "log odds per standard deviation:"
    for name, value in sorted(fitted.coefficients.items(), key=lambda pair: -abs(pair[1])):
        yield f"  {name:<19}{value:+.2f}"
    yield (
        f"chosen: sharpness {fitted.sharpness:g}, shift {fitted.shift:g}, reach {fitted.reach:g}; "
        "on these cases, which it was chosen on:"
    )
    yield f"  {'%':<12}{'plain':>6}{'auto':>7}"
    for name, value in fitted.chosen.items():
        yield f"  {name:<12}{100 * fitted.plain[name]:6.1f}{100 * value:7.1f}"
    yield f"-> {out}"
