"""How attention reaches transformers' kernels: the other file, beside `_hf`, that touches its
internals. Each assumption has a test of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import _hf, turns
from conflictkit.errors import UnsupportedError

Attend = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""`[batch, heads, new, head_dim]` queries, mask -> what the model's own attention returns: output
`[batch, new, heads, head_dim]`, and probabilities `[batch, heads, new, keys]` or None."""

OnAttention = Callable[[Module, Tensor, int, Tensor | None, bool, Attend], Any]
"""Attention module, queries, how many keys, mask, whether without a mask the kernel hides what is
to come, how to attend -> what `Attend` returns."""

_OURS = "conflictkit-"

PACK: ContextVar[Any] = ContextVar("pack", default=None)
"""The `_hf_packed.Pack` at work in this thread (context), if there is one."""


def attention_name(module: Module) -> str | None:
    """What computes an attention module's attention; None: itself, not through the interface."""
    if _interface(type(module)) is None:
        return None
    name = str(getattr(module.config, "_attn_implementation", None)).removeprefix(_OURS)
    own = name == "eager" and getattr(module, "reorder_and_upcast_attn", False)  # GPT-2
    return f"{name} with reorder_and_upcast_attn" if own else name


def lead_attention(config: Any, handler: OnAttention | None) -> None:
    """Lead the attention of all modules that have `config` through `handler`; None: no longer.

    They look up at every call what their config names, and so do the makers of masks. The masks
    under our names are the original's, so who changes nothing leaves the logits bit for bit.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    name = config._attn_implementation.removeprefix(_OURS)
    if handler is not None:
        # A compiled graph would keep the edits that were at work when it was made.
        led = torch.compiler.disable(partial(_led, name, handler))
        AttentionInterface.register(_OURS + name, led)
        masks = partial(_led_mask, AttentionMaskInterface()[name])
        AttentionMaskInterface.register(_OURS + name, masks)
    # The setter would also write to the configs of other parts.
    config._attn_implementation_internal = name if handler is None else _Led(_OURS + name)


def enter_names(names: Iterable[str]) -> None:
    """Enter what `lead_attention` would, so that it changes no table any more: a compiled graph is
    made anew where one grows."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name in names:
        for table in (AttentionInterface, AttentionMaskInterface):
            if _OURS + name not in table() and name in table():
                table.register(_OURS + name, table()[name])


class _Led(str):
    """A name of ours in a config; copies and pickles of the config hold the model's own."""

    def __deepcopy__(self, _: Any) -> str:
        return self.removeprefix(_OURS)

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        return str, (self.removeprefix(_OURS),)


def is_led(config: Any) -> bool:
    """Whether attention is led through a handler: another choice made meanwhile ends that."""
    return str(config._attn_implementation).startswith(_OURS)


@contextmanager
def written_out(model: Any) -> Iterator[None]:
    """Let a model compute its attention eagerly. Modules and makers of masks look the way up in
    their configs at every call.

    Raises:
        UnsupportedError: its attention is led through a handler.
    """
    holders = [_hf.unwrapped(model), *_hf.unwrapped(model).modules()]
    configs = {id(one.config): one.config for one in holders if hasattr(one, "config")}
    before = {
        key: name
        for key, one in configs.items()
        if isinstance(name := getattr(one, "_attn_implementation_internal", None), str)
    }
    with turns.to_write(before):
        names = {key: configs[key]._attn_implementation_internal for key in before}
        if any(name.startswith(_OURS) for name in names.values()):
            raise UnsupportedError("an edit of this model's attention is attached: detach it first")
        try:
            for key in names:
                configs[key]._attn_implementation_internal = "eager"
            yield
        finally:
            for key, name in names.items():
                configs[key]._attn_implementation_internal = name


@cache
def _interface(kind: type) -> tuple[Any, Any] | None:
    """Where a class looks attention functions up, and what it uses as `eager`."""
    forward = inspect.unwrap(kind.forward)
    names = forward.__code__.co_names
    eager = [name for name in names if name.endswith("eager_attention_forward")]
    if "ALL_ATTENTION_FUNCTIONS" not in names or len(eager) != 1:
        return None
    return forward.__globals__["ALL_ATTENTION_FUNCTIONS"], forward.__globals__[eager[0]]


def _led(
    name: str,
    handler: OnAttention,
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **named: Any,
) -> Any:
    functions, eager = _interface(type(module)) or ({}, None)
    original: Any = functions.get(name, eager)
    given = named.get("is_causal")
    causal = getattr(module, "is_causal", True) if given is None else given

    def one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
        def attend(query: Tensor, mask: Tensor | None) -> Any:
            return original(module, query, key, value, mask, **named)

        return handler(module, query, key.shape[-2], mask, causal and name == "sdpa", attend)

    pack = PACK.get()
    run = one if pack is None else partial(pack.attended, one)
    return run(query, key, value, attention_mask)


def _led_mask(make: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A mask, or one for each stream of a pack."""
    pack = PACK.get()
    return make(*arguments, **named) if pack is None else pack.masks(make, **named)
