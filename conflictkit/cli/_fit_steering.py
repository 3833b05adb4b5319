"""`conflictkit fit-steering`: conflicts in, a policy that steers representations out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _inputs, _options, _output
from conflictkit.cli._fit_probe import numbers
from conflictkit.cli._options import RUN, option
from conflictkit.cli._progress import Watch, watching
from conflictkit.errors import InvalidParameterError

if TYPE_CHECKING:
    from conflictkit.mechanics.steering import Fitted


def fit_steering(
    cases: Annotated[
        str,
        typer.Option(
            "--cases",
            metavar="SPEC",
            help="atlas:train, SOURCE:PATH, or a .jsonl of cases: conflicts, for refusal-region "
            "those that the model answers.",
        ),
    ],
    method: Annotated[
        str, typer.Option(metavar="NAME", help="spare, caa, repe, iti or refusal-region.")
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="The policy; by default METHOD.json."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="As in 3,4,8, from 0; by default the middle third, or the SAEs'."
        ),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(metavar="PLACES", help="For spare: folders, or release:id, joined by +."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="spare: of the mutual information (0.07); refusal-region: of dimensions."
        ),
    ] = None,
    variant: Annotated[str, typer.Option(help="corrected, or released.")] = "corrected",
    budget: Annotated[
        float | None, typer.Option(help="Directions: nats that alpha = 1 moves the next token by.")
    ] = None,
    refused: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="For refusal-region: cases that the model declines."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only train, validation or test.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many cases, in equal shares from states.")
    ] = None,
    keep: Annotated[
        str | None,
        option(metavar="FOLDER", panel=RUN, help="Keeps answers: a run that was cut goes on."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    model: _options.Model = "atlas",
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    pad_token: _options.PadToken = None,
    overwrite: Annotated[
        bool, option("--overwrite", panel=RUN, help="Replace FILE if it exists.")
    ] = False,
    quiet: _options.Quiet = False,
    as_json: _options.AsJson = False,
) -> None:
    """Fit a method that steers representations to a model; ask with --policy FILE.

    Fit on other cases than those that the method is measured on.
    """
    _options.check_output(as_json, quiet)
    out = f"{method}.json" if out is None else out
    path = _inputs.new_file(out, overwrite)
    if (refused is not None) != (method == "refusal-region"):
        raise InvalidParameterError("--refused belongs to --method refusal-region, which needs it")
    settings: dict[str, Any] = {"variant": variant}
    settings |= {} if share is None else {"share": share}
    if refused is None:
        settings |= {"method": method, "sae": sae, "keep": keep, "seed": seed}
        settings |= {} if budget is None else {"budget": budget}
        settings["layers"] = None if layers is None else numbers("--layers", layers)
    source = (model, {"device": device, "dtype": dtype, "pad_token": pad_token})
    with watching("reading", "cases", quiet=quiet) as watch:
        fitted = _run(source, (cases, refused), (split, limit, seed), settings, watch)
    fitted.policy.save(path)
    if as_json:
        _output.write_json({"about": dict(fitted.about), "policy": fitted.policy.to_dict()})
    elif not quiet:
        _output.console().print(*_lines(fitted, out), sep="\n", markup=False)


def _run(
    source: tuple[str, dict[str, Any]],
    specs: tuple[str, str | None],
    which: tuple[str | None, int | None, int],
    settings: dict[str, Any],
    watch: Watch,
) -> Fitted:
    with contextlib.redirect_stdout(sys.stderr):  # late: these import torch
        from conflictkit import toolkit
        from conflictkit.evaluation.asking import pick
        from conflictkit.evaluation.cases import load_cases
        from conflictkit.mechanics import steering

        found = [pick(load_cases(spec), *which) for spec in specs if spec is not None]
        model = toolkit.load(source[0], **source[1])
        if len(found) == 2:
            return steering.fit_refusal(model, *found, progress=watch, **settings)
        return steering.fit_steering(model, found[0], progress=watch, **settings)


def _lines(fitted: Fitted, out: str) -> Iterator[str]:
    """What was fitted, for people."""
    about = dict(fitted.about)
    yield f"{about.pop('method')} for {fitted.policy.model.name if fitted.policy.model else 'any'}"
    for name, value in about.items():
        inside = value.items() if isinstance(value, dict) else None
        text = value if inside is None else ", ".join(f"{k} {_short(v)}" for k, v in inside)
        yield f"  {name:<9} {_short(text)}"
    yield f"-> {out}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
