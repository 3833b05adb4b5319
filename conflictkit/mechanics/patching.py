"""What a head does for an answer, by putting in its output from a prompt where it cannot do it.

`path_patching` (PH3: Jin et al. 2024, "Cutting Off the Head Ends the Conflict"; the procedure is
that of Wang et al. 2023 and Goldowsky-Dill et al. 2023) lets the change reach the logits alone, not
other heads: its direct effect. `activation_patching` lets everything behind the head see it: its
total effect. Both patch the last prompt position, where the answer's first token is read off.

With `x` the prompt, `x*` a corrupted one (see `items`), `P*` after patching head (l, h) from `x*`:

    D_y(l, h) = (P*(y) - P(y)) / P(y)                      (or the difference of y's logits)
    S_m = D_c - D_m with x* without memory                 (high: a memory head)
    S_c = D_m - D_c with x* without the context's answer   (high: a context head)

The paper's own corruption and normalisation are not public: these are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import _hf, anatomy
from conflictkit.anatomy import Anatomy
from conflictkit.errors import InvalidParameterError, UnsupportedError
from conflictkit.interventions.heads import Head
from conflictkit.mechanics._linear import Unembedding, added, check_sum, freeze, writes
from conflictkit.mechanics._replay import Replay
from conflictkit.mechanics._runs import (
    Progress,
    Snapshot,
    batches,
    head_outputs,
    hooked,
    need,
    network,
    snapshot,
    tell,
)
from conflictkit.mechanics.items import Item
from conflictkit.streams import Stream

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

_ROWS = 8192
"""Most vectors that are carried through the layers at once."""
_COPIES = 128
"""Most copies of a prompt's cache that exist at once."""
_LARGEST = 80.0  # exp of more is no float32


@torch.no_grad()
def path_patching(
    model: Model | Module,
    items: Sequence[Item],
    *,
    mlps: Literal["frozen", "recomputed"] = "frozen",
    measure: Literal["probability", "logit"] = "probability",
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Direct effects of all heads on the two answers' first tokens.

    Args:
        model: a toolkit's model or a plain transformers model.
        items: what to read, with both corrupted prompts.
        mlps: `frozen`: MLPs and the scales of all norms stay as they were, two passes per corrupted
            prompt and matrix products; `recomputed`: later MLPs and norms see the change (as in the
            IOI paper), only the outputs of other heads stay, exact.
        measure: of an effect; `probability`: relative change, cut off at e^80; `logit`: difference.
        progress: called with items done and all items.

    Returns:
        `(S_memory, S_context)`, each `[items, layers, heads]` float32; 0 in layers without heads.

    Raises:
        EmptyInputError: no item.
        InvalidParameterError: another `mlps` or `measure`, or an item without corrupted prompts.
        UnsupportedError: the model's layers cannot be computed from frozen parts.
    """
    need(items)
    if mlps not in ("frozen", "recomputed") or measure not in ("probability", "logit"):
        raise InvalidParameterError(
            "path_patching: mlps must be 'frozen' or 'recomputed', measure 'probability' or "
            f"'logit', not {mlps!r} and {measure!r}"
        )
    without = {name: _corrupted(items, name) for name in ("no_memory", "no_context")}
    hf = network(model)
    body = anatomy.find(hf)
    if mlps == "recomputed" and None in body.outputs:
        raise UnsupportedError(
            f"{type(hf).__name__} has layers without heads, whose state cannot be frozen"
        )
    shape = len(items), len(body.layers), body.heads
    memory, context = torch.zeros(shape), torch.zeros(shape)
    most = max(1, _ROWS // (2 * len(body.layers) * body.heads))
    done = 0
    for rows in batches(hf, [len(item.ids) for item in items], rows=most):
        seen = snapshot(hf, body, [items[row].ids for row in rows])
        others = [
            head_outputs(hf, body, [prompts[row] for row in rows]) for prompts in without.values()
        ]
        tokens = torch.tensor([[items[row].memory_id, items[row].context_id] for row in rows])
        reader = Unembedding.of(hf, body, seen)
        work = _frozen if mlps == "frozen" else _recomputed
        effects = work(hf, body, seen, others, reader, tokens, measure == "probability")
        memory[rows] = (effects[:, :, 0, :, 1] - effects[:, :, 0, :, 0]).cpu()
        context[rows] = (effects[:, :, 1, :, 0] - effects[:, :, 1, :, 1]).cpu()
        done += len(rows)
        tell(progress, done, len(items))
    return memory, context


def _corrupted(items: Sequence[Item], name: str) -> list[tuple[int, ...]]:
    """One corrupted prompt for each item."""
    found: list[tuple[int, ...]] = []
    for item in items:
        prompt = getattr(item, name)
        if prompt is None or len(prompt) != len(item.ids):
            raise InvalidParameterError(
                f"item '{item.case_id}' has no prompt '{name}' of its length: build the items with "
                "require_corrupted=True"
            )
        found.append(prompt)
    return found


def _effects(after: Tensor, before: Tensor, relative: bool) -> Tensor:
    """D of the two answers from their logits, or log-probabilities if the effect is relative."""
    change = after - before
    return torch.expm1(change.clamp_max(_LARGEST)) if relative else change


def _frozen(
    hf: Any,
    body: Anatomy,
    seen: Snapshot,
    others: Sequence[Sequence[Any]],
    reader: Unembedding,
    tokens: Tensor,
    relative: bool,
) -> Tensor:
    """`[rows, layers, corruptions, heads, 2]`: the change goes straight to the logits."""
    check_sum(hf, body, seen)
    norm = freeze(body.norm, seen.final)
    before = reader.of_tokens(seen.normed[:, None], tokens, logprobs=relative)
    shape = len(tokens), len(seen.heads), len(others), body.heads, 2
    found = torch.zeros(shape, device=before.device)
    for layer, heads in enumerate(seen.heads):
        if heads is None:
            continue
        for kind, other in enumerate(others):
            change = added(body, seen, layer, other[layer] - heads).to(norm.gain.device)
            moved = seen.normed[:, None].float() + norm.change(change)
            after = reader.of_tokens(moved.to(seen.normed.dtype), tokens, logprobs=relative)
            found[:, layer, kind] = _effects(after, before, relative)
    return found


def _recomputed(
    hf: Any,
    body: Anatomy,
    seen: Snapshot,
    others: Sequence[Sequence[Any]],
    reader: Unembedding,
    tokens: Tensor,
    relative: bool,
) -> Tensor:
    """`[rows, layers, corruptions, heads, 2]`: later MLPs see the change, other heads do not.

    Only the last position changes, and no frozen head reads it, so the residual stream of that
    position alone is carried through the layers.
    """
    replay = Replay(hf, body, seen)
    changes = [
        torch.cat([writes(body, layer, other[layer] - heads) for other in others], 1)
        for layer, heads in enumerate(seen.heads)
    ]
    final = replay.run(changes)
    layers, rows, several, width = final.shape
    normed = final if body.norm is None else body.norm.forward(final)
    flat = normed.transpose(0, 1).reshape(rows, layers * several, width)
    after = reader.of_tokens(flat, tokens, logprobs=relative)
    before = reader.of_tokens(seen.normed[:, None], tokens, logprobs=relative)
    found = _effects(after, before, relative)
    return found.reshape(rows, layers, len(others), body.heads, 2)


@torch.no_grad()
def activation_patching(
    model: Model | Module,
    items: Sequence[Item],
    *,
    site: Literal["head"] = "head",
    corrupted: Literal["no_context", "no_memory"] = "no_context",
    progress: Progress | None = None,
) -> Tensor:
    """Total effects of all heads on the logit difference of the two answers' first tokens.

    A head's output at the last position is replaced by what it was after the corrupted prompt, and
    everything behind it is computed anew.

    Args:
        model: a toolkit's model or a plain transformers model.
        items: what to read, with the corrupted prompt.
        site: what is patched; heads are all there is.
        corrupted: `no_context`: the effect is how far the difference moves to memory, high for
            context heads; `no_memory`: how far it moves to the context, high for memory heads.
        progress: called with items done and all items.

    Returns:
        `[items, layers, heads]` float32, in logits; 0 in layers without heads.

    Raises:
        EmptyInputError: no item.
        InvalidParameterError: another `site` or `corrupted`, or an item without that prompt.
        UnsupportedError: the model keeps no key-value cache.
    """
    need(items)
    if site != "head" or corrupted not in ("no_context", "no_memory"):
        raise InvalidParameterError(
            "activation_patching: site must be 'head', corrupted 'no_context' or 'no_memory', not "
            f"{site!r} and {corrupted!r}"
        )
    prompts = _corrupted(items, corrupted)
    hf = network(model)
    body = anatomy.find(hf)
    if (reason := _hf.own_memory(hf)) is not None:
        raise UnsupportedError(f"activation_patching: {reason}")
    if short := [item.case_id for item in items if len(item.ids) < 2]:
        raise InvalidParameterError(f"item '{short[0]}' has a prompt of one token")
    found = torch.zeros(len(items), len(body.layers), body.heads)
    sign = 1.0 if corrupted == "no_context" else -1.0
    done = 0
    for rows in batches(hf, [len(item.ids) for item in items], rows=_COPIES):
        chosen = [items[row] for row in rows]
        other = head_outputs(hf, body, [prompts[row] for row in rows])
        # All but the last token are read once; nothing in them changes.
        start = Stream(hf, [item.ids[:-1] for item in chosen], pad_id=0)
        start.prefill()
        last = torch.tensor([item.ids[-1] for item in chosen])
        pair = torch.tensor([[item.memory_id, item.context_id] for item in chosen])
        plain = _difference(start.fork().step(last), pair)
        for heads in _some(body.names(), max(1, _COPIES // len(rows))):
            stream = start.fork()
            stream.select(torch.arange(len(rows)).repeat_interleave(len(heads)))
            with hooked(before=_patches(body, heads, other)):
                logits = stream.step(last.repeat_interleave(len(heads)))
            moved = _difference(logits, pair.repeat_interleave(len(heads), 0))
            change = sign * (moved.unflatten(0, (len(rows), -1)) - plain[:, None])
            for place, (layer, head) in enumerate(heads):
                found[rows, layer, head] = change[:, place].cpu()
        done += len(rows)
        tell(progress, done, len(items))
    return found


def _difference(logits: Tensor, pair: Tensor) -> Tensor:
    """`[rows]`: the logit of memory's token minus that of the context's."""
    both = logits.float().gather(-1, pair.to(logits.device))
    return both[:, 0] - both[:, 1]


def _some(heads: Sequence[Head], count: int) -> list[Sequence[Head]]:
    return [heads[start : start + count] for start in range(0, len(heads), count)]


def _patches(body: Anatomy, heads: Sequence[Head], other: Sequence[Any]) -> list[Any]:
    """Hooks that give copy number n of each row head number n of the corrupted prompt."""

    def hook(layer: int) -> Any:
        mine = [(n, body.slice_of(head)) for n, (at, head) in enumerate(heads) if at == layer]

        def put(arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            values = arguments[0].clone().unflatten(0, (-1, len(heads)))
            for place, part in mine:
                values[:, place, -1, part] = other[layer][:, part]
            return (values.flatten(0, 1), *arguments[1:]), named

        return put

    layers = dict.fromkeys(layer for layer, _ in heads)
    return [(body.outputs[layer], hook(layer)) for layer in layers]
