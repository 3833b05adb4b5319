"""Direct logit attribution of heads: what each head itself says for one answer or the other.

Paper: Yu, Merullo and Pavlick 2023, "Characterizing Mechanisms for Factual Recall in Language
Models": `A(l, h) = (U_m - U_c) . o_{l,h}[last]`, where `o_{l,h}` is what the head writes into the
residual stream at the last prompt position and `U` the unembedding's rows of the first tokens of
the memory and the context answer. Positive: a memory head; negative: a context head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import anatomy
from conflictkit.errors import InvalidParameterError
from conflictkit.mechanics._linear import Unembedding, added, check_sum, freeze
from conflictkit.mechanics._runs import Progress, batches, need, network, snapshot, tell
from conflictkit.mechanics.items import Item

if TYPE_CHECKING:
    from conflictkit.toolkit import Model


@torch.no_grad()
def attribution(
    model: Model | Module,
    items: Sequence[Item],
    *,
    norm: Literal["frozen", "ignored"] = "frozen",
    progress: Progress | None = None,
) -> Tensor:
    """Each head's share in the logit of the memory answer minus that of the context answer.

    With `norm="frozen"` the shares of all heads, MLPs, biases and the embedding add up to that
    difference (before a soft cap, where the model has one). A norm behind the attention is held at
    its scale either way, since without it a head's write is not defined (Gemma 2 and 3, OLMo 2).

    Args:
        model: a toolkit's model or a plain transformers model.
        items: what to read.
        norm: `frozen`: the final norm with the scale it had; `ignored`: as in the paper, the write
            meets the unembedding as it stands, so layers are on different scales.
        progress: called with items done and all items.

    Returns:
        `[items, layers, heads]` float32, in logits; 0 in layers without heads.

    Raises:
        EmptyInputError: no item.
        InvalidParameterError: another `norm`.
        UnsupportedError: the model's stream is no sum of what heads and MLPs write.
    """
    need(items)
    if norm not in ("frozen", "ignored"):
        raise InvalidParameterError(f"norm must be 'frozen' or 'ignored', not {norm!r}")
    hf = network(model)
    body = anatomy.find(hf)
    found = torch.zeros(len(items), len(body.layers), body.heads)
    done = 0
    for rows in batches(hf, [len(item.ids) for item in items]):
        chosen = [items[row] for row in rows]
        seen = snapshot(hf, body, [item.ids for item in chosen])
        check_sum(hf, body, seen)
        up, down = (
            torch.tensor([getattr(item, name) for item in chosen], device=seen.final.device)
            for name in ("memory_id", "context_id")
        )
        direction = Unembedding.of(hf, body, seen).direction(up, down)
        if norm == "frozen":
            direction = freeze(body.norm, seen.final).back(direction)
        for layer, heads in enumerate(seen.heads):
            if heads is not None:
                wrote = added(body, seen, layer, heads)
                score = torch.einsum("rhw,rw->rh", wrote, direction.to(wrote.device))
                found[rows, layer] = score.cpu()
        done += len(rows)
        tell(progress, done, len(items))
    return found
