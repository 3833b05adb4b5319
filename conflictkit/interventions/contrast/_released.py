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


def filter_bias(
    step: Step, context_weight: Tensor, memory_weight: Tensor, mass: float = 1.0
) -> Tensor:
    """What the two stream filters add to the mix, `[batch, vocab]`; 0 where both leave a token.

    Released code overwrites raw logits, a mix holds log-probabilities: the fills are moved by the
    constant that separates the two in each row.
    """
    bias = torch.zeros_like(step.logits)
    streams = (("context", context_weight, CONTEXT_FILL), ("memory", memory_weight, MEMORY_FILL))
    for stream, weight, fill in streams:
        raw, logprobs = raw_logits(step, stream), step.logprobs[stream]
        top = logprobs.argmax(-1, keepdim=True)
        constant = raw.gather(-1, top) - logprobs.gather(-1, top)
        change = weight * (fill - constant - logprobs)
        bias = bias + change.masked_fill(nucleus(raw, mass) | ~step.allowed, 0.0)
    return bias
