"""How far apart the two streams' predictions are.

Every function takes log-probabilities `[batch, vocab]` (float32, natural log) and returns
`[batch]` float32. A token at -inf contributes 0; rows never influence each other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN2 = math.log(2)
# The largest float32 that is not above ln 2 (float32(ln 2) itself is, by 2e-9).
_JSD_MAX = 0.6931471228599548


def kl(p_logprobs: Tensor, q_logprobs: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p || q), in nats.

    Args:
        p_logprobs, q_logprobs: `[batch, vocab]` log-probabilities.

    Returns:
        `[batch]`, at least 0; +inf where q excludes a token that p allows.
    """
    terms = p_logprobs.exp() * (p_logprobs - q_logprobs)
    # 0 * (-inf - x) and -inf - -inf are NaN; a token without probability adds nothing.
    terms = terms.masked_fill(p_logprobs == -torch.inf, 0.0)
    return terms.sum(-1).clamp(min=0.0)


def jsd(p_logprobs: Tensor, q_logprobs: Tensor) -> Tensor:
    """Jensen-Shannon divergence, in nats: symmetric, in [0, ln 2], exactly 0 for equal rows.

    Args:
        p_logprobs, q_logprobs: `[batch, vocab]` log-probabilities.

    Returns:
        `[batch]` in [0, ln 2].
    """
    middle = torch.logaddexp(p_logprobs, q_logprobs) - LN2
    value = 0.5 * (kl(p_logprobs, middle) + kl(q_logprobs, middle))
    equal = (p_logprobs == q_logprobs).all(-1)
    return value.clamp(max=_JSD_MAX).masked_fill(equal, 0.0)


def pairwise_jsd(logprobs: Tensor) -> Tensor:
    """Jensen-Shannon divergence between any two of several distributions per row, in nats.

    Args:
        logprobs: `[batch, n, vocab]` log-probabilities.

    Returns:
        `[batch, n, n]` in [0, ln 2], symmetric, 0 on the diagonal.
    """
    count = logprobs.shape[1]
    found = logprobs.new_zeros(logprobs.shape[0], count, count)
    # One against all that follow: all pairs at once would hold n * n vocabularies.
    for first in range(count - 1):
        values = jsd(logprobs[:, first : first + 1], logprobs[:, first + 1 :])
        found[:, first, first + 1 :] = values
        found[:, first + 1 :, first] = values
    return found


def total_variation(p_logprobs: Tensor, q_logprobs: Tensor) -> Tensor:
    """Total variation distance: half the summed absolute difference of probabilities.

    Args:
        p_logprobs, q_logprobs: `[batch, vocab]` log-probabilities.

    Returns:
        `[batch]` in [0, 1].
    """
    return (0.5 * (p_logprobs.exp() - q_logprobs.exp()).abs().sum(-1)).clamp(0.0, 1.0)
