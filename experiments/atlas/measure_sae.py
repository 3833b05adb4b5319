"""What the card of Atlas's autoencoders says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import stream
import torch
import train
from documents import Writer
from torch import Tensor

from conflictkit import anatomy
from conflictkit.evaluation.metrics.intervals import draw_subjects, percentiles
from conflictkit.interventions.features import Reconstruction
from conflictkit.interventions.sae import SAE
from conflictkit.types import Case

HELD = 10_000
"""Chunks of documents from this one on are for measuring."""
TOGETHER = 32
"""Questions asked at once."""
RESAMPLES = 2000


@torch.no_grad()
def activations(
    model: Any, writer: Writer, layers: Sequence[int], count: int, start: int = HELD
) -> tuple[dict[int, Tensor], Tensor]:
    """The stream behind layers at every token of documents as Atlas was trained on.

    Returns:
        Layer -> `[count, width]`, and `[count]`: 0 for a document's first token, 2 where an
        answer's token comes next, 1 elsewhere.
    """
    body = anatomy.find(model.model)
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    places: list[Tensor] = []
    seen: dict[int, Tensor] = {}
    hooks = [
        body.layers[layer].register_forward_hook(
            lambda _, __, out, layer=layer: seen.__setitem__(
                layer, out[0] if isinstance(out, tuple) else out
            )
        )
        for layer in layers
    ]
    got, chunk = 0, start
    try:
        while got < count:
            documents = stream.documents_of(writer, 0, chunk, train.STEPS)
            for batch in stream.batches_of(
                documents, model.tokenizer, train.TOKENS, 0, chunk, train.STEPS
            ):
                model.model(input_ids=batch.ids, use_cache=False)
                real = batch.ids != model.tokenizer.pad_token_id
                place = torch.ones_like(batch.ids)
                place[:, :-1] += batch.weights == stream.ANSWER_WEIGHT
                place[:, 0] = 0
                places.append(place[real])
                for layer in layers:
                    found[layer].append(seen[layer][real].float())
                got += int(real.sum())
            chunk += 1
            print(f"\r{min(got, count):,} of {count:,} tokens read", end="", flush=True)
    finally:
        for hook in hooks:
            hook.remove()
    print()
    return {at: torch.cat(parts)[:count] for at, parts in found.items()}, torch.cat(places)[:count]


@torch.no_grad()
def sparsity(sae: SAE, held: Tensor, places: Tensor) -> dict[str, Any]:
    """L0, explained variance and dead features on held-out tokens.

    First tokens are one vector, far from all others: variance is that of the rest.
    """
    later = places > 0
    fires, alive, left = [], torch.zeros(sae.features, dtype=torch.bool), 0.0
    for part, mine in zip(held.split(8192), later.split(8192), strict=True):
        codes = sae.encode(part)
        fires.append((codes > 0).sum(-1).double())
        alive |= (codes > 0).any(0)
        left += float((part - sae.decode(codes))[mine].square().sum())
    counts, values = torch.cat(fires), held[later]
    return {
        "layer": sae.layer,
        "features": sae.features,
        "digest": sae.digest,
        "l0": float(counts.mean()),
        "l0_at_answers": float(counts[places == 2].mean()),
        "explained_variance": 1 - left / float((values - values.mean(0)).square().sum()),
        "dead": float((~alive).double().mean()),
        "tokens": len(held),
    }


def kept(saes: Sequence[SAE], model: Any, cases: Sequence[Case], plain: list[str]) -> dict:
    """Share of greedy answers that stay when reconstructions replace the stream, at every token.

    By state, and with a 95 % interval by subject (bootstrap).
    """
    with Reconstruction(saes).attach(model.model):
        replaced = both(model, cases)
    same = np.array([a == b for a, b in zip(plain, replaced, strict=True)], dtype=float)
    states = [case.state for case in cases] + ["closed book"] * len(cases)
    names = sorted({case.subject for case in cases})
    rows = np.array([names.index(case.subject) for case in cases] * 2)
    sums = np.stack([np.bincount(rows, same), np.bincount(rows)], 1)
    drawn = draw_subjects(len(names), RESAMPLES, np.random.default_rng(0)) @ sums
    low, high, _ = percentiles(drawn[:, :1] / drawn[:, 1:], np.array([len(names)]))
    return {
        "answers": len(plain),
        "answers_kept": float(same.mean()),
        "answers_kept_low": float(low[0]),
        "answers_kept_high": float(high[0]),
        "by_state": {
            state: float(same[[one == state for one in states]].mean())
            for state in sorted(set(states), key=str)
        },
    }


def both(model: Any, cases: Sequence[Case]) -> list[str]:
    """Plain greedy answers, with contexts and then without."""
    return [*answers(model, cases, closed=False), *answers(model, cases, closed=True)]


def answers(model: Any, cases: Sequence[Case], closed: bool) -> list[str]:
    """Plain greedy answers, to the questions alone or with their contexts."""
    said: list[str] = []
    for start in range(0, len(cases), TOGETHER):
        part = cases[start : start + TOGETHER]
        contexts = None if closed else [list(case.contexts) for case in part]
        made = model.ask_batch([case.question for case in part], contexts, "plain", trace=False)
        said += [one.text for one in made]
    return said
