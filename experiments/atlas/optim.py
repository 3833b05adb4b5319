"""Muon for the matrices of a small model: momentum whose update is orthogonalised.

Matrices of one shape are stacked and orthogonalised together, in bfloat16: on a CPU that is
several times faster than one by one.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

# The quintic of Keller Jordan's Muon: fast to singular values near 1, not exact.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Replace the singular values of `[n, rows, columns]` by values near 1."""
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.bfloat16()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.mT if tall else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for two-dimensional parameters only."""

    def __init__(self, params, lr: float = 0.01, momentum: float = 0.95, decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for (rows, columns), params in by_shape.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                stack = orthogonalise(torch.stack(updates))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update in zip(params, stack, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-scale)
