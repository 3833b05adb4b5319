"""Attention written out in float64, with a bias on its logits or another query per head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests.anatomy import families

NAMES = ("llama", "gpt2", "gemma2", "mistral", "gpt-neox", "qwen3")
KERNELS = [
    (name, kernel)
    for name in NAMES
    for kernel in ("eager", "sdpa")
    if (name, kernel) != ("gemma2", "sdpa")  # its soft cap: transformers refuses
]

Query = Callable[[int, Tensor], Tensor]
"""Layer, `[batch, heads, new, head_dim]` queries -> what is used instead."""

_TRUTH: dict[str, Any] = {}


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    **rest: Any,
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1).double() for one in (key, value))
    query = _TRUTH["query"](module.layer_idx, query.double())
    scores = query @ key.transpose(-1, -2) * scaling
    if (cap := rest.get("softcap")) is not None:
        scores = (scores / cap).tanh() * cap
    probabilities = (scores + _TRUTH["bias"][module.layer_idx] + mask).softmax(-1)
    return (probabilities @ value).transpose(1, 2).to(mask.dtype).contiguous(), probabilities


@contextmanager
def kernel(hf: Any, name: str) -> Iterator[None]:
    """`hf` with another attention implementation."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation(name)
    try:
        yield
    finally:
        hf.set_attn_implementation(before)


@contextmanager
def by_definition(
    hf: Any, bias: Sequence[Any] = (0.0,) * 9, query: Query = lambda _, query: query
) -> Iterator[None]:
    """`hf` with a bias `[batch, heads, new or 1, keys]` in each layer, or with other queries."""
    AttentionInterface.register("by-definition", _attention)
    AttentionMaskInterface.register("by-definition", eager_mask)
    _TRUTH.update(bias=bias, query=query)
    with kernel(hf, "by-definition"):
        yield


def padded(*lengths: int, seed: int = 5) -> dict[str, Tensor]:
    """Rows of these lengths, padding on their left, as a model's forward takes them."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(3, families.VOCAB, (len(lengths), width), generator=generator)
    mask = torch.tensor([[0] * (width - one) + [1] * one for one in lengths])
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    return {
        "input_ids": ids * mask + 2 * (1 - mask),
        "attention_mask": mask,
        "position_ids": places,
    }


def logits(hf: Any, rows: dict[str, Tensor]) -> Tensor:
    """`[batch, width, vocab]`, zero at padding."""
    with torch.no_grad():
        found = hf(**rows).logits
    mask = rows.get("attention_mask")
    return found if mask is None else found * mask[..., None]
