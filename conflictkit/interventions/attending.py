"""How a change to attention reaches the model's own kernel: the query and a bias on the logits."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import _hf_attention as _hf
from conflictkit import turns
from conflictkit.errors import UnsupportedError
from conflictkit.interventions.places import Pass

Spread = Callable[[Tensor], Tensor]
"""`[rows, ...]` values of the prompts -> `[batch, ...]` of the rows that a pass reads."""


@dataclass(frozen=True)
class Attention:
    """What one layer's attention computes from.

    Attributes:
        query: `[batch, heads, new, head_dim]`, positions already turned in.
        keys: how many keys there are.
        bias: `[batch, 1 or heads, 1 or new, keys]` added to the attention logits; None: nothing.
    """

    query: Tensor
    keys: int
    bias: Tensor | None = None


@dataclass(frozen=True)
class At:
    """Where in a pass a change of attention acts.

    Attributes:
        mine: `[batch, new]` bool, the positions to change; None: all.
        where: what the pass reads, if that is known.
        lengths: `[rows]` tokens of each row's prompt, if they are known.
        spread: from `[rows, ...]` to `[batch, ...]`.
    """

    mine: Tensor | None
    where: Pass | None
    lengths: Tensor | None
    spread: Spread


class AttentionChange(ABC):
    """What is done to one layer's attention.

    Attributes:
        rows: `[rows]` bool, whose attention it changes at all; None: everybody's.
        reads_keys: whether it has to know which token each key belongs to.
    """

    rows: Tensor | None = None
    reads_keys: bool = False

    @abstractmethod
    def __call__(self, given: Attention, at: At) -> Attention:
        """The changed attention, or `given` itself if there is nothing to do."""


class Leading:
    """Leads the attention of all modules with some configs through a handler, until closed.

    Args:
        configs: id -> config.
    """

    _users: ClassVar[dict[int, int]] = {}  # id of a config -> how many lead it and keep it alive
    _lock: ClassVar[Any] = threading.RLock()

    def __init__(self, configs: Mapping[int, Any]) -> None:
        self._configs = configs

    def open(self, handler: _hf.OnAttention) -> None:
        """Begin."""
        with self._lock:
            for key, config in self._configs.items():
                self._users[key] = self._users.get(key, 0) + 1
                _hf.lead_attention(config, handler)

    def check(self) -> None:
        """Refuse to go on where somebody has chosen another implementation meanwhile."""
        if not all(map(_hf.is_led, self._configs.values())):
            raise UnsupportedError(
                "the model's attention implementation was changed while an edit of its attention "
                "was attached, which would drop the edit: change it before attaching"
            )

    @contextmanager
    def during(self, handler: _hf.OnAttention) -> Iterator[None]:
        """For one pass, which nobody's choice of another attention comes between."""
        with turns.to_pass(self._configs):
            self.open(handler)
            try:
                yield
            finally:
                self.close()

    def close(self) -> None:
        """Stop, once; the last to stop leaves the config as it was."""
        with self._lock:
            for key, config in self._configs.items():
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key]
                    _hf.lead_attention(config, None)


class Route(Leading):
    """Leads attention modules through a handler, as long as some edit needs it.

    Raises:
        UnsupportedError: a module that computes its attention itself, or by a kernel that takes no
            bias.
    """

    def __init__(self, modules: Iterable[Module]) -> None:
        configs: dict[int, Any] = {}
        for module in modules:
            name = _hf.attention_name(module)
            if name is None:
                raise UnsupportedError(
                    f"{type(module).__name__} does not call its attention through the attention "
                    "interface of transformers: it cannot be edited (heads can: HeadScale)"
                )
            if name not in ("sdpa", "eager"):
                raise UnsupportedError(
                    f"attention cannot be edited under '{name}': "
                    "use model.set_attn_implementation('sdpa'), or 'eager'"
                )
            configs[id(module.config)] = module.config
        super().__init__(configs)


def computed(
    plain: Attention,
    given: Attention,
    touched: Sequence[Tensor | None],
    mask: Tensor | None,
    causal: bool,
    attend: _hf.Attend,
) -> Any:
    """Attention as changed, by the model's own kernel.

    Args:
        plain: before any change.
        given: after all.
        touched: of each change, `[batch, new]` bool where it acted; None: everywhere.
        mask: the model's; None: none.
        causal: whether the kernel hides what is to come if it gets no mask.
        attend: the kernel.
    """
    if given.bias is None:
        return attend(given.query, mask)
    edited = attend(given.query, _masked(given.bias, mask, given.query.shape[-2], causal))
    if any(mine is None for mine in touched):
        return edited
    # A mask takes another road through the kernel: who is not edited keeps the plain one's bits.
    here = torch.stack([mine for mine in touched if mine is not None]).any(0)
    other = attend(plain.query, mask)
    output = torch.where(here[:, :, None, None], edited[0], other[0])
    if edited[1] is None or other[1] is None:
        return output, None
    return output, torch.where(here[:, None, :, None], edited[1], other[1])


def _masked(bias: Tensor, mask: Tensor | None, new: int, causal: bool) -> Tensor:
    """`bias` that also hides what `mask`, or the kernel without one, would hide."""
    floor = torch.finfo(bias.dtype).min
    if mask is None:
        if not causal or new == 1:
            return bias
        # The kernel counts queries and keys from the same first token (a static cache has room
        # behind the last key).
        order = torch.arange(max(new, bias.shape[-1]), device=bias.device)
        mask = order[:new, None] >= order[None, : bias.shape[-1]]
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, floor)
    # Below the smallest number a row without any visible key would become NaN.
    return (mask + bias).clamp(min=floor)
