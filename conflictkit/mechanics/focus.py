"""Focus directions (Zhu et al. 2025, arXiv 2503.23306): what makes a head look at the context.

For every head one vector is trained that, added to its queries, raises the attention that an
answer's tokens give to the context:

    loss = - mean over heads and the answer's positions of the attention mass on the span
    q_h <- q_h + d_h                        AdamW, one prompt at a time

Each layer by itself: what the heads put out stays as it was, so no layer sees what an earlier one
was trained to. Only the queries get a direction; one for the keys adds the same number to all
logits of a query, and the softmax takes it out again (released code trains both, and its keys'
directions stay noise).

The released code keeps the states of all prompts; here a prompt is read again in every epoch, so
memory does not grow with their number. Its span is the one passage that answers among others; here
it is the whole context.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from conflictkit import anatomy
from conflictkit._hf_attention import Attend, written_out
from conflictkit.errors import InvalidParameterError, LogitsError
from conflictkit.interventions.attending import Route
from conflictkit.mechanics._runs import Progress, need, network, read, tell
from conflictkit.mechanics.items import Item

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

EPOCHS, RATE = 10, 1e-3
"""As released."""
_SPREAD = 0.01
"""Standard deviation of a direction before training."""


@torch.no_grad()
def focus_directions(
    model: Model | Module,
    items: Sequence[Item],
    *,
    epochs: int = EPOCHS,
    rate: float = RATE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Train a direction for every head.

    The model itself is not trained or changed; while this runs its configuration names eager
    attention, and then what it named before.

    Args:
        model: a toolkit's model or a plain transformers model.
        items: prompts with the context's answer.
        epochs: how often each prompt is read.
        rate: AdamW's learning rate.
        seed: of the first directions and of the order of prompts.
        progress: called with prompts read and prompts to read.

    Returns:
        `[layers, heads, head_dim]` float32, for `FocusDirections`; 0 in layers without heads.

    Raises:
        EmptyInputError: no item.
        InvalidParameterError: an item without an answer.
        UnsupportedError: attention that cannot be edited, or is being edited.
        LogitsError: training ended in numbers that are not finite.
    """
    need(items)
    for item in items:
        if not item.answer:
            raise InvalidParameterError(f"item '{item.case_id}': no answer to read")
    hf = network(model)
    body = anatomy.find(hf)
    trained = _Training(body, rate, seed)
    done, total = 0, epochs * len(items)
    with written_out(hf):
        route = Route(trained.layers)
        route.open(trained.attend)
        try:
            for _ in range(epochs):
                order = torch.randperm(len(items), generator=trained.generator)
                for place in order.tolist():
                    item = items[place]
                    trained.begin(item)
                    read(hf, [(*item.ids, *item.answer)])
                    trained.step()
                    done += 1
                    tell(progress, done, total)
        finally:
            route.close()
    return trained.directions()


class _Training:
    """The directions of all layers while they are trained."""

    def __init__(self, body: anatomy.Anatomy, rate: float, seed: int) -> None:
        self.layers = {one: at for at, one in enumerate(body.attentions) if one is not None}
        self.generator = torch.Generator().manual_seed(seed)
        self._body, self._rate = body, rate
        self._owner = threading.get_ident()
        self._made: dict[Module, Parameter] = {}
        self._optimizers: dict[Module, torch.optim.Optimizer] = {}
        self._start, self._span = 0, slice(0, 0)

    def begin(self, item: Item) -> None:
        """What the next pass reads."""
        self._start, self._span = len(item.ids), slice(*item.span)

    def attend(
        self,
        module: Module,
        query: Tensor,
        keys: int,
        mask: Tensor | None,
        causal: bool,
        attend: Attend,
    ) -> Any:
        """Attention as it is; in passing, the loss of one layer and its gradient."""
        if module in self.layers and threading.get_ident() == self._owner:
            asked = query[:, :, self._start :]
            if mask is None:
                places = torch.arange(keys, device=query.device)
                hidden = places > places[-asked.shape[2] :, None]
                floor = torch.finfo(query.dtype).min
                seen = torch.zeros_like(hidden, dtype=query.dtype).masked_fill(hidden, floor)
            else:
                seen = mask[..., self._start :, :]
            direction = self._direction(module, query)
            with torch.enable_grad():
                added = direction.to(query.device, query.dtype)[None, :, None]
                weights = attend(asked + added, seen)[1]
                assert weights is not None  # eager attention tells its weights
                mass = weights[..., self._span].float().sum(-1)
                (-mass.mean()).backward()
        return attend(query, mask)

    def step(self) -> None:
        """Follow the gradients of one prompt."""
        for one in self._optimizers.values():
            one.step()
            one.zero_grad()

    def directions(self) -> Tensor:
        """`[layers, heads, head_dim]`."""
        width = max(one.shape[-1] for one in self._made.values())
        found = torch.zeros(len(self._body.layers), self._body.heads, width)
        for module, one in self._made.items():
            found[self.layers[module], :, : one.shape[-1]] = one.detach().cpu()
        if not found.isfinite().all():
            raise LogitsError("training focus directions ended in numbers that are not finite")
        return found

    def _direction(self, module: Module, query: Tensor) -> Parameter:
        if module not in self._made:
            shape = (query.shape[1], query.shape[-1])
            start = _SPREAD * torch.randn(shape, generator=self.generator)
            made = self._made[module] = Parameter(start.to(query.device))
            self._optimizers[module] = torch.optim.AdamW([made], lr=self._rate)
        return self._made[module]
