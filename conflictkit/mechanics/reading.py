"""Heads that read: weighed, then corrected, until what they write says the passage's answer.

>>> import torch
>>> import conflictkit as ck
>>> from conflictkit.mechanics.reading import along, weigh
>>> model = ck.load("atlas")
>>> learnt, others = (ck.atlas.cases(split, "resistance")[:20] for split in ("train", "test"))
>>> weights = weigh(model, learnt, layers=[4])
>>> weights[4].shape  # 16 heads of the layers 4 and 5, and a correction: 32 x (2 x 192 + 192)
torch.Size([18448])
>>> along(model, others, weights)[4].shape  # a number for each case: the largest of its answer
torch.Size([20])

`fit_probes(..., kinds=["heads"])` makes a probe of it; the score is `detectors.reading.surprise`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conflictkit import anatomy
from conflictkit.detectors.reading import surprise
from conflictkit.errors import EmptyInputError, InvalidParameterError
from conflictkit.evaluation.asking import CASE_ERRORS, prepare
from conflictkit.interventions.taps import Reader
from conflictkit.mechanics._runs import batches, hooked, network, read
from conflictkit.scoring.run import Progress
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

_MOST = 5000
"""Cases that weights are learnt from, at most."""
_STEPS, _ROWS, _RATE = 300, 512, 0.05
_MEND_STEPS, _MEND_RATE, _MEND_DECAY, _DROPPED = 1200, 3e-3, 0.1, 0.3
"""Of the correction: AdamW's, and the share of heads' outputs that it does not see at a step."""

Seen = tuple[Sequence[int], dict[int, Tensor], Tensor, Tensor]
"""Numbers of the cases of a batch, layer -> `[tokens, heads * head_dim]`, the tokens that follow
there, and whose they are (places among the numbers)."""


def weigh(
    model: Model,
    cases: Sequence[Case],
    *,
    layers: Sequence[int] | None = None,
    rank: int = 32,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> dict[int, Tensor]:
    """A weight for every head of a layer and all behind it, so that together they say, token by
    token, what the passage answers; then a correction of low rank of the map they write by:
    cross-entropy, by Adam.

    A tuned lens (Belrose et al. 2023, arXiv 2303.08112) is such a correction of the whole stream.

    Args:
        model: as `conflictkit.load` returns it.
        cases: with passages and what those answer; whether memory agrees does not matter.
        layers: the first layers to try; None: every one.
        rank: of the correction; 0: weights alone.
        seed: of the batches.
        progress: called with the share of the cases that is read.
        options: `chat`, `template`, `truncate`, as in `Model.ask`.

    Returns:
        First layer -> float32s in one line: of every head from it on its weight, then the
        correction (`interventions.taps.Reader`).

    Side effects:
        Holds what all heads from the lowest layer on put out before every token of at most 5,000
        answers (numbers of the model's dtype), and once more in float32 for a correction.

    Raises:
        EmptyInputError: no case can be read.
        InvalidParameterError, UnsupportedError: a rank below 0, no layer or one that the model does
            not have, or heads that cannot be read by themselves.
    """
    if type(rank) is not int or rank < 0:
        raise InvalidParameterError(f"rank must be a whole number from 0, not {rank!r}")
    body = anatomy.find(network(model))
    with_heads = [layer for layer, one in enumerate(body.outputs) if one is not None]
    wanted = with_heads if layers is None else list(layers)
    if not wanted:
        raise InvalidParameterError("name at least one layer, or leave layers out")
    read_from = {one: Reader(body, one, _even(body, one)) for one in wanted}
    cases = random.Random(seed).sample(list(cases), min(_MOST, len(cases)))
    kept: dict[int, list[Tensor]] = {}
    said: list[Tensor] = []
    for _, heads, tokens, _ in _seen(model, cases, "context", min(wanted), options, progress):
        for layer, values in heads.items():
            kept.setdefault(layer, []).append(values)
        said.append(tokens)
    if not said:
        raise EmptyInputError("no case has a passage and its answer")
    values, tokens = {layer: torch.cat(parts) for layer, parts in kept.items()}, torch.cat(said)
    found = {}
    for one, reader in read_from.items():
        found[one] = _weighed(reader, values, tokens, seed)
        if rank:
            found[one] = _mended(Reader(body, one, found[one]), values, tokens, rank, seed)
    return found


@torch.no_grad()
def along(
    model: Model,
    cases: Sequence[Case],
    weights: Mapping[int, Tensor],
    *,
    first: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> dict[int, Tensor]:
    """How unlikely the heads make memory's answer.

    Args:
        model, progress, options: as `weigh`.
        cases: with passages and memory's answer.
        weights: what `weigh` returned, or some of it.
        first: at the prompt's last position alone; otherwise the largest along memory's answer.

    Returns:
        First layer -> `[cases]` float32, in nats; NaN where a case cannot be read.
    """
    if not weights:
        raise InvalidParameterError("no weights to read with: pass what weigh returned")
    body = anatomy.find(network(model))
    readers = {layer: Reader(body, layer, own) for layer, own in weights.items()}
    found = {layer: torch.full((len(cases),), torch.nan) for layer in weights}
    for numbers, heads, tokens, whose in _seen(
        model, cases, "memory", min(weights), options, progress
    ):
        for layer, reader in readers.items():
            there = surprise(_said(reader, heads, slice(None)), tokens)
            for place, number in enumerate(numbers):
                own = there[whose == place]
                found[layer][number] = float(own[0] if first else own.max())
    return found


def _even(body: anatomy.Anatomy, first: int) -> Tensor:
    layers = len(body.layers) - first if type(first) is int else 0  # `Reader` says what is wrong
    return torch.ones(max(0, layers) * body.heads)


def _said(reader: Reader, heads: Mapping[int, Tensor], rows: Any) -> Tensor:
    wrote = [reader.wrote(layer, heads[layer][rows]) for layer in reader.layers]
    return reader.say(torch.stack([one.to(wrote[0].device) for one in wrote]).sum(0))


def _weighed(reader: Reader, heads: Mapping[int, Tensor], tokens: Tensor, seed: int) -> Tensor:
    reader.gains = reader.gains.clone().requires_grad_()
    way = torch.optim.Adam([reader.gains], lr=_RATE)
    _descend(way, _STEPS, tokens, seed, lambda rows: _said(reader, heads, rows))
    return reader.gains.detach().flatten().cpu()


def _mended(
    reader: Reader, heads: Mapping[int, Tensor], tokens: Tensor, rank: int, seed: int
) -> Tensor:
    """The same weights and a correction of some rank behind them."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        wrote = [reader.wrote(layer, heads[layer]) for layer in reader.layers]
    first = wrote[0].device
    kind, total = wrote[0].dtype, torch.stack([one.float().to(first) for one in wrote]).sum(0)
    every = torch.cat([heads[layer].float().to(first) for layer in reader.layers], -1)
    down = torch.randn(every.shape[-1], rank, generator=draw) * every.shape[-1] ** -0.5
    down, up = down.to(first).requires_grad_(), torch.zeros(rank, reader.body.width, device=first)
    up.requires_grad_()
    way = torch.optim.AdamW([down, up], lr=_MEND_RATE, weight_decay=_MEND_DECAY)

    def said(rows: Tensor) -> Tensor:
        own = every[rows]
        seen = torch.rand(own.shape, generator=draw).to(first) >= _DROPPED
        return reader.say((total[rows] + own * seen / (1 - _DROPPED) @ down @ up).to(kind))

    _descend(way, _MEND_STEPS, tokens, seed, said)
    whole = torch.zeros(len(reader.gains), every.shape[-1] // len(reader.layers), rank)
    for place, part in enumerate(down.detach().cpu().chunk(len(reader.layers))):
        whole[reader.layers[place] - reader.first] = part
    parts = (reader.gains.flatten().cpu(), whole.flatten(), up.detach().cpu().flatten())
    return torch.cat(parts)


def _descend(
    way: Any, steps: int, tokens: Tensor, seed: int, said: Callable[[Tensor], Tensor]
) -> None:
    """Cross-entropy of the tokens, on rows drawn anew at every step; the rate falls to 0."""
    draw = torch.Generator().manual_seed(seed)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(way, steps)
    for _ in range(steps):
        rows = torch.randperm(len(tokens), generator=draw)[:_ROWS].to(tokens.device)
        with torch.enable_grad():
            loss = torch.nn.functional.nll_loss(said(rows), tokens[rows])
        way.zero_grad()
        own = [one for group in way.param_groups for one in group["params"]]
        torch.autograd.backward(loss, inputs=own)
        way.step()
        slower.step()


@torch.no_grad()
def _seen(
    model: Model,
    cases: Sequence[Case],
    side: str,
    lowest: int,
    options: Mapping[str, Any],
    progress: Callable[[Progress], None] | None,
) -> Iterator[Seen]:
    """What heads put out before every token of one side's answer, in the context stream."""
    hf = network(model)
    body = anatomy.find(hf)
    _, wording = model._resolve("plain", {**options, "trace": False}, 1)
    ready: list[tuple[int, Sequence[int], Sequence[int]]] = []
    for number, case in enumerate(cases):
        answers = getattr(case, f"{side}_answers")
        if not answers:
            continue
        try:
            one = prepare(model, replace(case, choices=answers[:1]), number, wording)
        except CASE_ERRORS:
            continue
        if "context" in one.prompts:
            ready.append((number, one.prompts["context"], one.choices[0]))
    modules = {layer: one for layer, one in enumerate(body.outputs) if layer >= lowest and one}
    done = 0
    for group in batches(hf, [len(prompt) + len(ids) - 1 for _, prompt, ids in ready]):
        mine = [ready[row] for row in group]
        longest, caught = max(len(ids) for *_, ids in mine), dict[int, Tensor]()

        def keep(
            layer: int, most: int = longest, caught: dict[int, Tensor] = caught
        ) -> Callable[[Any, Any], None]:
            return lambda arguments, _: caught.update({layer: arguments[0][:, -most:].clone()})

        with hooked(after=[(module, keep(layer)) for layer, module in modules.items()]):
            read(hf, [[*prompt, *ids[:-1]] for _, prompt, ids in mine])
        heads = {
            layer: torch.cat([v[place, -len(mine[place][2]) :] for place in range(len(mine))])
            for layer, v in caught.items()
        }
        device = next(iter(heads.values())).device
        tokens = torch.tensor([one for *_, ids in mine for one in ids], device=device)
        whose = torch.tensor([n for n, (*_, ids) in enumerate(mine) for _ in ids], device=device)
        done += len(mine)
        yield [number for number, *_ in mine], heads, tokens, whose
        if progress is not None:
            progress(Progress(done, done / len(ready)))
