"""`conflictkit fit-probe`: cases in, a probe of one model's activations out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conflictkit.cli import _inputs, _options, _output
from conflictkit.cli._options import RUN, option
from conflictkit.cli._progress import Watch, watching
from conflictkit.errors import InvalidParameterError

if TYPE_CHECKING:
    from conflictkit.mechanics.probing import Probed


def fit_probe(
    cases: Annotated[
        str,
        typer.Option(
            "--cases", metavar="SPEC", help="atlas:train, SOURCE:PATH, or a .jsonl of cases."
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="The probe to write.")
    ] = "probe.safetensors",
    target: Annotated[
        str,
        typer.Option(
            help="conflict: do they disagree? source: will the answer follow the context?"
        ),
    ] = "conflict",
    kinds: Annotated[
        str, typer.Option(metavar="LIST", help="Some of residual,attention,mlp,heads.")
    ] = "residual",
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="As in 3,4,8; by default all, from 0.")
    ] = None,
    penalty: Annotated[str, typer.Option(help="l2 or l1.")] = "l2",
    optimiser: Annotated[str, typer.Option(help="scikit-learn, or paper.")] = "scikit-learn",
    split: _options.Split = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many cases, in equal shares from states.")
    ] = None,
    keep: Annotated[
        str | None,
        option(metavar="FOLDER", panel=RUN, help="Keeps activations: a run that was cut goes on."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split by subject.")] = 0,
    model: _options.Model = "atlas",
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    pad_token: _options.PadToken = None,
    overwrite: _options.Replace = False,
    quiet: _options.Quiet = False,
    as_json: _options.AsJson = False,
) -> None:
    """Fit probes that tell a conflict, or who will win, from what each layer writes; keep the best.

    A quarter of the subjects is held out to choose layer and penalty. The probe gates any method:
    conflictkit ask ... --when "probe > 0.7" --probe FILE
    """
    _options.check_output(as_json, quiet)
    path = _inputs.new_file(out, overwrite)
    source = {"device": device, "dtype": dtype, "pad_token": pad_token}
    settings: dict[str, Any] = {
        "target": target,
        "kinds": tuple(kinds.split(",")),
        "layers": None if layers is None else numbers("--layers", layers),
        "penalty": penalty,
        "optimiser": optimiser,
        "keep": keep,
        "seed": seed,
    }
    with watching("reading", "cases", quiet=quiet) as watch:
        probed = _run((model, source), cases, (split, limit), settings, watch)
    probed.probe.save(path)
    if as_json:
        scores = [asdict(score) for score in probed.scores]
        told = {"target": probed.target, "scores": scores, "dropped": dict(probed.dropped)}
        _output.write_json({**told, "probe": probed.probe.to_dict()})
    elif not quiet:
        _output.console().print(*_lines(probed, out), sep="\n", markup=False)


def numbers(name: str, text: str) -> list[int]:
    """Whole numbers with commas between them.

    Raises:
        InvalidParameterError: something else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InvalidParameterError(f"{name} takes whole numbers, as in 3,4,8, not {text!r}")
    return [int(part) for part in parts]


def _run(
    source: tuple[str, dict[str, Any]],
    spec: str,
    which: tuple[str | None, int | None],
    settings: dict[str, Any],
    watch: Watch,
) -> Probed:
    with contextlib.redirect_stdout(sys.stderr):  # late: these import torch
        from conflictkit import toolkit
        from conflictkit.calibration import CONFLICTING, QUIET
        from conflictkit.evaluation.asking import pick
        from conflictkit.evaluation.cases import load_cases
        from conflictkit.mechanics.probing import fit_probes

        found = [one for one in load_cases(spec) if one.state in (*CONFLICTING, *QUIET)]
        found = pick(found, *which, settings["seed"])
        model = toolkit.load(source[0], **source[1])
        return fit_probes(model, found, progress=watch, **settings)


def _lines(probed: Probed, out: str) -> Iterator[str]:
    """How each layer does, for people."""
    yield "kind       layer   AUROC (95 % interval)     AUPRC   accuracy   penalty"
    best = (probed.probe.kind, probed.probe.layer)
    for one in probed.scores:
        low, high = (
            "?" if end is None else f"{end:.3f}" for end in (one.auroc_low, one.auroc_high)
        )
        mark = "  <- kept" if (one.kind, one.layer) == best else ""
        penalty = f"{'-':>7}" if one.strength is None else f"{one.strength:>7g}"
        yield (
            f"{one.kind:<10} {one.layer:>5}   {one.auroc:.3f} ({low} to {high})   {one.auprc:.3f}"
            f"   {one.accuracy:>8.3f}   {penalty}{mark}"
        )
    first = probed.scores[0]
    yield (
        f"target {probed.target}, on subjects held out: {first.positives} yes, "
        f"{first.negatives} no; what was chosen looks better here than it is"
    )
    for reason, count in probed.dropped.items():
        yield f"{count:>7,}  {reason}"
    yield f"-> {out}"
