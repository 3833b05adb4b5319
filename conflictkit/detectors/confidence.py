"""How sure each stream is of its prediction, and which of the two is surer.

Every function takes log-probabilities `[batch, vocab]` (float32, natural log) and returns
`[batch]` float32. A token at -inf contributes 0; rows never influence each other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SELECT_TOP = 10
RELATIVE_TOP = 0.01


def entropy(logprobs: Tensor) -> Tensor:
    """Shannon entropy in nats, `[batch]`; exactly 0 for a one-hot row.

    Sums the tokens other than the top one, relative to it: the top token's own term is a
    difference of nearly equal numbers in a sharp row, where gates and ratios of entropies need
    every digit.
    """
    top = logprobs.argmax(-1, keepdim=True)
    gap = logprobs.gather(-1, top) - logprobs
    odds = gap.neg().exp().scatter(-1, top, 0.0)
    surprise = (odds * gap).masked_fill(odds == 0, 0.0).sum(-1)
    total = odds.sum(-1)
    return total.log1p() + surprise / (1.0 + total)


def confidence_gain(context_logprobs: Tensor, memory_logprobs: Tensor) -> Tensor:
    """Entropy that the context takes away, H_m - H_c, `[batch]`; negative where it confuses."""
    return entropy(memory_logprobs) - entropy(context_logprobs)


def kept_set(
    context_logprobs: Tensor,
    memory_logprobs: Tensor,
    select_top: int = SELECT_TOP,
    relative_top: float = RELATIVE_TOP,
) -> Tensor:
    """The tokens CK-PLUG decides about: plausible to at least one of the streams.

    A token is plausible to a stream if it is among its `select_top` most probable tokens (ties
    included) or has at least `relative_top` times the probability of its most probable token.

    Args:
        context_logprobs, memory_logprobs: `[batch, vocab]` log-probabilities.
        select_top: how many top tokens of each stream; capped at `vocab`.
        relative_top: share of the top probability, from 0 (every token) to 1 (the top only).

    Returns:
        `[batch, vocab]` bool.
    """
    share = math.log(relative_top) if relative_top > 0 else -math.inf

    def plausible(logprobs: Tensor) -> Tensor:
        top = logprobs.topk(min(select_top, logprobs.shape[-1]), dim=-1).values
        return logprobs >= torch.minimum(top[..., -1:], top[..., :1] + share)

    return plausible(context_logprobs) | plausible(memory_logprobs)


def restrict(logprobs: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities `[batch, vocab]` renormalised over the `kept` tokens, -inf elsewhere."""
    return logprobs.masked_fill(~kept, -torch.inf).log_softmax(-1)


def kept_confidence_gain(
    context_logprobs: Tensor,
    memory_logprobs: Tensor,
    select_top: int = SELECT_TOP,
    relative_top: float = RELATIVE_TOP,
) -> Tensor:
    """Confidence gain of the two distributions renormalised over `kept_set`, `[batch]`."""
    h_c, h_m = kept_entropies(context_logprobs, memory_logprobs, select_top, relative_top)
    return h_m - h_c


def kept_entropies(
    context_logprobs: Tensor,
    memory_logprobs: Tensor,
    select_top: int = SELECT_TOP,
    relative_top: float = RELATIVE_TOP,
) -> tuple[Tensor, Tensor]:
    """Entropies H_c, H_m of both distributions renormalised over `kept_set`, `[batch]` each."""
    kept = kept_set(context_logprobs, memory_logprobs, select_top, relative_top)
    h_c, h_m = (entropy(restrict(stream, kept)) for stream in (context_logprobs, memory_logprobs))
    return h_c, h_m


def confidence(logprobs: Tensor) -> Tensor:
    """Probability of the most probable token, `[batch]` in (0, 1]."""
    return logprobs.amax(-1).exp().clamp(max=1.0)


def top_disagreement(context_logprobs: Tensor, memory_logprobs: Tensor) -> Tensor:
    """1 where the streams' most probable tokens differ, else 0, `[batch]`; first index on ties."""
    return (context_logprobs.argmax(-1) != memory_logprobs.argmax(-1)).float()
