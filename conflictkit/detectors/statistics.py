"""How skewed an activation is (Zhao et al. 2024, arXiv 2410.16090): statistics of one vector.

In middle and late layers the residual stream at the prompt's last position is more skewed (higher
kurtosis, Hoyer and Gini) when the model goes on to use the context. Released code is followed to
the letter: its Gini index is off by 1 / n from the usual one, so that a constant vector has -1 / n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["STATISTICS", "gini", "hoyer", "kurtosis", "l1_norm", "l2_norm"]


def kurtosis(values: Tensor) -> Tensor:
    """`m4 / m2^2`, central moments over the last dimension, biased; 3 for a normal sample.

    Args:
        values: `[..., width]`.

    Returns:
        `[...]` float32; NaN for a constant vector.
    """
    centred = values.float() - values.float().mean(-1, keepdim=True)
    return (centred**4).mean(-1) / (centred**2).mean(-1) ** 2


def hoyer(values: Tensor) -> Tensor:
    """`(sqrt(n) - l1 / l2) / (sqrt(n) - 1)`: 0 all parts alike, 1 one part alone.

    Args:
        values: `[..., width]`, width at least 2.

    Returns:
        `[...]` float32; NaN for the zero vector.
    """
    root = values.shape[-1] ** 0.5
    return (root - l1_norm(values) / l2_norm(values)) / (root - 1)


def gini(values: Tensor) -> Tensor:
    """`1 - (2 / n) sum_i (n - i + 1) |x|_(i) / sum |x|`, the parts in ascending order, i from 1.

    Args:
        values: `[..., width]`.

    Returns:
        `[...]` float32, -1 / n to 1 - 2 / n; NaN for the zero vector.
    """
    ordered = values.float().abs().sort(-1).values
    count = values.shape[-1]
    after = torch.arange(count, 0, -1, device=values.device, dtype=ordered.dtype)
    return 1 - 2 / count * (ordered * after).sum(-1) / ordered.sum(-1)


def l1_norm(values: Tensor) -> Tensor:
    """Sum of absolute parts of `[..., width]`: `[...]` float32."""
    return values.float().abs().sum(-1)


def l2_norm(values: Tensor) -> Tensor:
    """Euclidean length of `[..., width]`: `[...]` float32."""
    return values.float().norm(dim=-1)


STATISTICS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "kurtosis": kurtosis,
    "hoyer": hoyer,
    "gini": gini,
    "l1-norm": l1_norm,
    "l2-norm": l2_norm,
}
"""Name -> statistic of `[..., width]` activations."""
