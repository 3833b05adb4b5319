"""Activations of many cases, kept on the disk: what probes, directions and autoencoders learn from.

>>> import tempfile
>>> import conflictkit as ck
>>> from conflictkit.mechanics.capture import capture
>>> model = ck.load("atlas")
>>> cases = ck.atlas.cases("train", "resistance")[:6]
>>> kept = capture(model, cases, tempfile.mkdtemp() + "/acts", layers=[2, 3])
>>> kept.values("residual", 3).shape  # one row for each case: its last prompt position
torch.Size([6, 192])

The folder holds `capture.json`, which says what was captured, and `part-N.safetensors`, each
complete by itself. Cases are read part by part, so memory does not grow with their number, and a
run that was cut short goes on with the first part that is missing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conflictkit import __version__, anatomy, models
from conflictkit.detectors.probe import KINDS
from conflictkit.errors import (
    InvalidParameterError,
    LogitsError,
    unknown_name,
)
from conflictkit.evaluation.asking import CASE_ERRORS, Ready, prepare
from conflictkit.evaluation.cases import cases_hash
from conflictkit.mechanics import captured
from conflictkit.mechanics._runs import batches, first, hooked, network, read
from conflictkit.mechanics.captured import Captured
from conflictkit.scoring.run import Progress
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

POSITIONS = ("last", "prompt")
"""The prompt's last position, or all of them."""
_MOST_CASES = 1024
"""Cases in a part, however little each takes."""


def capture(
    model: Model,
    cases: Sequence[Case],
    out: str | os.PathLike[str],
    *,
    kinds: Sequence[str] = ("residual",),
    layers: Sequence[int] | None = None,
    positions: str = "last",
    stream: str = "context",
    shard_bytes: int = 64 * 2**20,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Captured:
    """Read cases and keep activations.

    Args:
        model: as `conflictkit.load` returns it.
        cases: what to read; one that cannot be asked is left out, and counted.
        out: the folder to write. A run that was cut short goes on; a finished one is returned.
        kinds: some of `KINDS`.
        layers: which, from 0; None: all.
        positions: one of `POSITIONS`.
        stream: the prompt to read, `context` or `memory`.
        shard_bytes: size from which a part is closed; memory holds one part.
        overwrite: throw away what is in the folder.
        progress: called with the cases read, after each part.
        options: `chat`, `template`, `truncate`, as in `Model.ask`.

    Returns:
        The folder.

    Raises:
        UnknownNameError, InvalidParameterError: a kind, layer, position or stream.
        EmptyInputError: no case can be asked.
        ResumeError: the folder is of another run.
        OutputError: it cannot be written, or holds something else.
        LogitsError: an activation that is not finite.
    """
    body = anatomy.find(network(model))
    wanted = list(range(len(body.layers))) if layers is None else list(layers)
    _check(kinds, wanted, positions, stream, shard_bytes, body)
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "tokenizer": models.tokenizer_fingerprint(model.tokenizer),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "width": body.width,
        "cases": len(cases),
        "cases_hash": cases_hash(cases),
        "kinds": list(kinds),
        "layers": wanted,
        "positions": positions,
        "stream": stream,
        "shard_bytes": shard_bytes,
        "options": {name: repr(value) for name, value in sorted(options.items())},
        "conflictkit": __version__,
    }
    _, wording = model._resolve("plain", {**options, "trace": False}, 1)
    folder = Path(out)
    with ExitStack() as stack:
        done = captured.open_folder(folder, settings, overwrite, stack)
        if done is not None:
            return done
        begun = captured.parts_of(folder)
        start = captured.end_of(begun[-1]) if begun else 0
        tell = progress or (lambda _: None)
        tell(Progress(start, start / max(1, len(cases))))
        per_position = 4 * len(wanted) * len(kinds) * body.width
        while start < len(cases):
            stop, ready, aside = _part(
                model, cases, start, (positions, stream), shard_bytes, per_position, wording
            )
            tensors = _read(model, ready, body, (kinds, wanted, positions, stream))
            captured.write(folder, tensors, {"stop": stop, "aside": aside})
            start = stop
            tell(Progress(start, start / len(cases)))
        return captured.finish(folder, settings)


def _check(
    kinds: Sequence[str],
    layers: Sequence[int],
    positions: str,
    stream: str,
    shard_bytes: int,
    body: anatomy.Anatomy,
) -> None:
    check_places(kinds, layers, body)
    if positions not in POSITIONS:
        raise unknown_name("positions", str(positions), POSITIONS)
    if stream not in ("context", "memory"):
        raise unknown_name("stream", str(stream), ("context", "memory"))
    if type(shard_bytes) is not int or shard_bytes < 1:
        raise InvalidParameterError(
            f"shard_bytes must be a whole number from 1, not {shard_bytes!r}"
        )


def check_places(kinds: Sequence[str], layers: Sequence[int], body: anatomy.Anatomy) -> None:
    """Whether a model has something of these kinds at these layers.

    Raises:
        UnknownNameError, InvalidParameterError: it does not.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of activations", str(kind), KINDS)
    if not kinds or not layers:
        raise InvalidParameterError("name at least one kind and one layer")
    for layer in layers:
        if type(layer) is not int or not 0 <= layer < len(body.layers):
            raise InvalidParameterError(
                f"the model has no layer {layer!r}: it has {len(body.layers)}, counted from 0"
            )
        if "attention" in kinds and body.attentions[layer] is None:
            raise InvalidParameterError(f"layer {layer} of the model has no attention")


def _part(
    model: Model,
    cases: Sequence[Case],
    start: int,
    what: tuple[str, str],
    shard_bytes: int,
    per_position: int,
    wording: Mapping[str, Any],
) -> tuple[int, list[Ready], Counter[str]]:
    """The cases of one part, and where the next one begins."""
    positions, stream = what
    ready: list[Ready] = []
    aside: Counter[str] = Counter()
    size, stop = 0, start
    while stop < len(cases) and stop - start < _MOST_CASES and size < shard_bytes:
        try:
            one = prepare(model, cases[stop], stop, wording)
        except CASE_ERRORS as error:
            aside[type(error).__name__] += 1
        else:
            if stream in one.prompts:
                ready.append(one)
                size += per_position * (len(one.prompts[stream]) if positions == "prompt" else 1)
            else:
                aside[f"no {stream}"] += 1
        stop += 1
    return stop, ready, aside


@torch.no_grad()
def _read(
    model: Model,
    ready: Sequence[Ready],
    body: anatomy.Anatomy,
    what: tuple[Sequence[str], Sequence[int], str, str],
) -> dict[str, Tensor]:
    """The tensors of a part, rows in the order of the cases."""
    kinds, layers, positions, stream = what
    hf = network(model)
    prompts = [one.prompts[stream] for one in ready]
    counts = [len(ids) if positions == "prompt" else 1 for ids in prompts]
    begins = [sum(counts[:place]) for place in range(len(counts))]
    total = sum(counts)
    found = {
        f"{kind}.{layer}": torch.empty(total, body.width) for kind in kinds for layer in layers
    }
    for rows in batches(hf, [len(ids) for ids in prompts]):

        def keep(name: str, rows: Sequence[int] = rows) -> Callable[[Any, Any], None]:
            def hook(_: Any, out: Any) -> None:
                values = first(out)
                # Some MLPs see the positions of all rows in one line.
                values = values.reshape(len(rows), -1, values.shape[-1])
                for place, row in enumerate(rows):
                    mine = values[place, -counts[row] :].float().cpu()
                    found[name][begins[row] : begins[row] + counts[row]] = mine

            return hook

        looks: list[Any] = [
            (body.writers(kind)[layer], keep(f"{kind}.{layer}"))
            for kind in kinds
            for layer in layers
        ]
        with hooked(after=looks):
            read(hf, [prompts[row] for row in rows])
    for name, values in found.items():
        if not bool(values.isfinite().all()):
            raise LogitsError(f"an activation of {name} is not finite: look at the model's dtype")
    found["case"] = torch.tensor([one.number for one, n in zip(ready, counts, strict=True)
                                  for _ in range(n)], dtype=torch.int64)  # fmt: skip
    found["position"] = torch.tensor(
        [place for ids, n in zip(prompts, counts, strict=True)
         for place in range(len(ids) - n, len(ids))], dtype=torch.int64)  # fmt: skip
    return found
