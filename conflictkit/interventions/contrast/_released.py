"""What the released code of CAD and AdaCAD does on the way, for `variant="released"`."""

from __future__ import annotations

import torch
from torch import Tensor

from conflictkit.types import Step

VARIANTS = ("mended", "released")
CONTEXT_FILL = -1000.0
MEMORY_FILL = 1000.0


def raw_logits(step: Step, stream: str) -> Tensor:
    """The stream's logits as handed in, `[batch, vocab]`; its log-probabilities if unknown."""
    return step.raw.get(stream, step.logprobs[stream])


def nucleus(logits: Tensor, mass: float = 1.0) -> Tensor:
    """The tokens a released stream filter leaves alone, `[batch, vocab]` bool.

    A token stays if the float32 probability mass of the tokens sorted before it is below `mass`;
    the top token always stays. With `mass` 1 this should be every token and is not, because the
    float32 sum reaches 1 before the tail does.
    """
    probabilities, order = logits.softmax(-1).sort(-1, descending=True)
    below = probabilities.cumsum(-1) < mass
    stays = torch.cat([torch.ones_like(below[:, :1]), below[:, :-1]], dim=-1)
    return torch.zeros_like(stays).scatter(-1, order, stays)


def filtered(
    step: Step, context_weight: Tensor, memory_weight: Tensor, mass: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights and the bias, `[batch, vocab]` each, that stand for the two stream filters.

    A token that a stream's filter drops gets weight 0 there and the weighted fill as bias.
    Released code overwrites raw logits, a mix holds log-probabilities: the fills are moved by the
    constant that separates the two in each row.
    """
    bias = torch.zeros_like(step.logits)
    left = []
    streams = (("context", context_weight, CONTEXT_FILL), ("memory", memory_weight, MEMORY_FILL))
    for stream, weight, fill in streams:
        raw, logprobs = raw_logits(step, stream), step.logprobs[stream]
        top = raw.masked_fill(~step.allowed, -torch.inf).argmax(-1, keepdim=True)
        constant = (raw.gather(-1, top) - logprobs.gather(-1, top)).clamp(-1e30, 1e30)
        stays = nucleus(raw, mass)
        left.append(weight * stays)
        bias = bias + weight * (fill - constant) * ~stays
    return left[0], left[1], bias
