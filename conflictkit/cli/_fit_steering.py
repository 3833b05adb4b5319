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
from conflictkit.errors import InvalidParameterError, unknown_name

if TYPE_CHECKING:
    from conflictkit.mechanics.steering import Fitted

_REGION = "refusal-region"
_ALONG = ("caa", "repe", "iti")
_FITTED = ("spare", *_ALONG)
_METHODS = (*_FITTED, _REGION)
_WHOSE = {
    "layers": _FITTED,
    "keep": _FITTED,
    "sae": ("spare",),
    "share": ("spare", _REGION),
    "variant": ("spare", _REGION),
    "budget": _ALONG,
    "refused": (_REGION,),
}
"""Which methods an option is for."""


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
    variant: Annotated[
        str | None, typer.Option(help="spare, refusal-region: corrected (default), or released.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Directions: nats that alpha = 1 moves the next token by.")
    ] = None,
    refused: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="For refusal-region: cases that the model declines."),
    ] = None,
    split: _options.Split = None,
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
    overwrite: _options.Replace = False,
    quiet: _options.Quiet = False,
    as_json: _options.AsJson = False,
) -> None:
    """Fit a method that steers representations to a model; ask with --policy FILE.

    Fit on other cases than those that the method is measured on.
    """
    _options.check_output(as_json, quiet)
    if method not in _METHODS:
        raise unknown_name("method to fit", method, _METHODS)
    given: dict[str, Any] = _options.given(
        {"layers": layers, "keep": keep, "sae": sae, "share": share, "variant": variant}
        | {"budget": budget, "refused": refused}
    )
    for name in given:
        if method not in _WHOSE[name]:
            raise InvalidParameterError(f"--{name} is for {', '.join(_WHOSE[name])}: leave it out")
    if method == _REGION and refused is None:
        raise InvalidParameterError("--method refusal-region needs --refused")
    out = f"{method}.json" if out is None else out
    path = _inputs.new_file(out, overwrite)
    settings = {name: value for name, value in given.items() if name != "refused"}
    if layers is not None:
        settings["layers"] = numbers("--layers", layers)
    settings |= {} if method == _REGION else {"method": method, "seed": seed}
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
        from conflictkit.calibration import CONFLICTING
        from conflictkit.evaluation.asking import pick
        from conflictkit.evaluation.cases import load_cases
        from conflictkit.mechanics import steering

        found = [load_cases(spec) for spec in specs if spec is not None]
        if len(found) == 1:
            found = [[one for one in found[0] if one.state in CONFLICTING]]
        found = [pick(some, *which) for some in found]
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
