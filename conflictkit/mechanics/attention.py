"""How much of its attention each head gives to the context.

The contextual-head score of Zhu et al. 2025, "Focus Directions Make Your Language Models Pay More
Attention to Relevant Contexts" (`score(l, h)`: mean over the answer's positions of the attention
mass on the relevant span), and, read at the last prompt position, what the literature on retrieval
heads looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import anatomy
from conflictkit._hf_attention import written_out
from conflictkit.errors import InvalidParameterError, UnsupportedError
from conflictkit.mechanics._runs import Progress, batches, hooked, need, network, read, tell
from conflictkit.mechanics.items import Item

if TYPE_CHECKING:
    from conflictkit.toolkit import Model


def contextual_score(attention: Tensor, span: tuple[int, int], read_at: tuple[int, int]) -> Tensor:
    """Mean attention mass on a span.

    Args:
        attention: `[..., positions, positions]` probabilities, query by key.
        span: keys that count, half-open.
        read_at: queries to average over, half-open.

    Returns:
        `[...]`, between 0 and 1.

    Raises:
        InvalidParameterError: a span that is empty or reaches beyond the positions.
    """
    for name, (start, stop) in (("span", span), ("read_at", read_at)):
        if not 0 <= start < stop <= attention.shape[-1]:
            raise InvalidParameterError(
                f"{name}={(start, stop)} is no span of {attention.shape[-1]} positions"
            )
    asked = attention[..., slice(*read_at), slice(*span)]
    return asked.float().sum(-1).mean(-1)


@torch.no_grad()
def attention_mass(
    model: Model | Module,
    items: Sequence[Item],
    *,
    answers: Sequence[Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Each head's attention mass on the context.

    The probabilities are those of transformers' eager attention, whatever kernel the model runs
    with; its configuration says so while this runs, and then what it said before.

    Args:
        model: a toolkit's model or a plain transformers model.
        items: what to read.
        answers: ids of an answer to append to each prompt; the mass is then the mean over the
            answer's positions. None: at the prompt's last position.
        progress: called with items done and all items.

    Returns:
        `[items, layers, heads]` float32, between 0 and 1; 0 in layers without heads.

    Raises:
        EmptyInputError: no item.
        InvalidParameterError: not one answer with at least one token for each item, or an item
            whose span is no part of its prompt.
        UnsupportedError: the model does not give its probabilities away, or an edit of its
            attention is attached.
    """
    need(items)
    if answers is not None and (len(answers) != len(items) or not all(map(len, answers))):
        raise InvalidParameterError("answers must hold at least one token for each item")
    hf = network(model)
    body = anatomy.find(hf)
    tails = answers if answers is not None else [()] * len(items)
    prompts = [(*item.ids, *tail) for item, tail in zip(items, tails, strict=True)]
    found = torch.zeros(len(items), len(body.layers), body.heads)
    done = 0
    with written_out(hf):
        for rows in batches(hf, list(map(len, prompts))):
            width = max(len(prompts[row]) for row in rows)

            def reduce(layer: int, some: list[int] = rows, width: int = width) -> Callable:
                def hook(_: Any, out: Any) -> None:
                    seen = probabilities(hf, layer, out)
                    for place, row in enumerate(some):
                        item, padded = items[row], width - len(prompts[row])
                        if item.span[1] > len(item.ids):
                            raise InvalidParameterError(f"item '{item.case_id}': span outside it")
                        start = len(item.ids) if tails[row] else len(item.ids) - 1
                        asked = (padded + start, width)
                        span = (padded + item.span[0], padded + item.span[1])
                        found[row, layer] = contextual_score(seen[place], span, asked).cpu()

                return hook

            looks = [
                (one, reduce(layer)) for layer, one in enumerate(body.attentions) if one is not None
            ]
            with hooked(after=looks):
                read(hf, [prompts[row] for row in rows])
            done += len(rows)
            tell(progress, done, len(items))
    return found


def probabilities(hf: Any, layer: int, out: Any) -> Tensor:
    """`[batch, heads, new, keys]` from what an attention module returned."""
    seen = out[1] if isinstance(out, tuple) and len(out) > 1 else None
    if isinstance(seen, Tensor) and seen.dim() == 4:
        # With learned sinks (GPT-OSS) the probabilities of a row add up to less than 1.
        sums = seen[:, :, -1].float().sum(-1)
        if bool((seen[:, :, -1] >= 0).all()) and float(sums.max()) < 1.01:
            return seen
    raise UnsupportedError(
        f"{type(hf).__name__}: the attention of layer {layer} does not return its probabilities"
    )
