"""Several streams in one pass over the weights: projections and feed-forwards are computed for the
rows of all, attention for each by itself, over its own cache at its own length.

`_hf_attention` leads the model's attention and masks here while a pack is at work. What a model
does otherwise is noticed, and the pass refused, instead of computed wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from conflictkit import _hf
from conflictkit._hf_attention import PACK, attention_name
from conflictkit.errors import ConflictKitError, UnsupportedError
from conflictkit.narrow import narrow

RIDERS: ContextVar[tuple[Share, ...] | None] = ContextVar("riders", default=None)
"""The shares of the pass at work in this thread (context), if several streams ride in it."""

KERNELS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
"""Ways to attend that take each stream's queries, keys and mask by themselves."""


class RefusedError(Exception):
    """A model that does not attend in the way that a pack relies on."""


@dataclass(frozen=True, eq=False)
class Share:
    """What one stream reads in a pass.

    Attributes:
        ids, positions: `[rows, new]` tokens to read, and their positions.
        mask: `[rows, past + new]`, 0 at padding.
        padded: whether some of it is padding.
        cache: the stream's own, extended by the pass.
        owner: whose edits act on these rows alone.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    padded: bool
    cache: Any
    owner: Any = None


def split(values: Tensor, shares: Sequence[Share]) -> tuple[Tensor, ...]:
    """Each share's rows of `[all rows, ...]` values, or of `[all rows * new, ...]`.

    Raises:
        UnsupportedError: there are other numbers of rows.
    """
    sizes, new = [len(one.ids) for one in shares], shares[0].ids.shape[1]
    if len(values) == sum(sizes):
        return values.split(sizes)
    if len(values) == sum(sizes) * new:
        return values.split([size * new for size in sizes])
    raise UnsupportedError(
        f"a part of this model sees {len(values)} rows in a pass of {sum(sizes)}: pass "
        "road='sequential'"
    )


class Masks(tuple[Tensor | None, ...]):
    """The attention masks of the shares, where a model expects one mask."""


class Pack:
    """The shares of one pass, in the place of a cache of transformers.

    Attributes:
        shares: the streams' parts, all of the same `new`.
        part: which of them is being attended to; None: none.
    """

    layers: ClassVar[tuple[()]] = ()
    is_sliding: ClassVar[tuple[()]] = ()
    is_compileable: ClassVar[bool] = False

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = tuple(shares)
        self.part: int | None = None
        self._sizes = [len(one.ids) for one in shares]
        self._new = shares[0].ids.shape[1]
        self._past = [one.mask.shape[1] - self._new for one in shares]
        self._newest: tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]] | None = None
        self._counts = [0, 0]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Extend every share's cache by its rows; `attended` finds what each then holds."""
        several = zip(
            self.shares, key_states.split(self._sizes), value_states.split(self._sizes), strict=True
        )
        pairs = [
            one.cache.update(key, value, layer_idx, *rest, **named) for one, key, value in several
        ]
        self._newest = (key_states, value_states, pairs)
        self._counts[0] += 1
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the longest share: what a model sizes tables by that take positions."""
        return max(self._past)

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Of no consequence: `masks` knows each share's."""
        return max(self._past) + query_length, 0

    def masks(self, make: Callable[..., Tensor | None], **named: Any) -> Masks:
        """What a maker of masks makes for every share."""
        made = []
        for one, past in zip(self.shares, self._past, strict=True):
            sizes = {"batch_size": len(one.ids), "q_length": self._new, "q_offset": past}
            sizes |= {"kv_length": past + self._new, "kv_offset": 0}
            mask = one.mask.bool() if one.padded else None
            made.append(make(**{**named, **sizes, "attention_mask": mask}))
        return Masks(made)

    def attended(
        self,
        attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Any]],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
    ) -> tuple[Tensor, None]:
        """Each share's queries over its own keys."""
        if self._newest is None or self._newest[0] is not key or self._newest[1] is not value:
            raise RefusedError("keys or values are not what the cache was given")
        if not isinstance(mask, Masks):
            raise RefusedError("a mask that was not made for the streams")
        self._counts[1] += 1
        made = []
        for part, (rows, pair, own) in enumerate(
            zip(query.split(self._sizes), self._newest[2], mask, strict=True)
        ):
            self.part = part
            made.append(attend(rows, *pair, own)[0])
        self.part = self._newest = None
        return torch.cat(made), None

    def check(self) -> None:
        """Raise `RefusedError` if some layer went past the streams' own attention."""
        updates, attentions = self._counts
        if not updates or updates != attentions:
            raise RefusedError(f"{updates} layers kept keys, {attentions} attended to them")


@contextmanager
def riding(shares: Sequence[Share]) -> Iterator[None]:
    """Tell hooks that the pass inside reads the rows of several streams."""
    token = RIDERS.set(tuple(shares))
    try:
        yield
    finally:
        RIDERS.reset(token)


@contextmanager
def _at_work(pack: Pack) -> Iterator[None]:
    token = PACK.set(pack)
    try:
        yield
    finally:
        PACK.reset(token)


def packed_logits(
    model: Any, shares: Sequence[Share], *, keep: int, accepted: frozenset[str]
) -> list[Tensor]:
    """One pass over the weights for all shares; attention has to be led.

    Returns:
        For each share `[rows, keep, vocab]`, logits after each of its last `keep` tokens.

    Raises:
        RefusedError: the model does not attend as a pack needs it. Caches may then hold part of
            the pass.
    """
    pack = Pack(shares)
    arguments: dict[str, Any] = {"input_ids": torch.cat([one.ids for one in shares])}
    if "position_ids" in accepted:
        arguments["position_ids"] = torch.cat([one.positions for one in shares])
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = keep
    with torch.no_grad(), _at_work(pack), narrow(model, arguments["input_ids"].numel()):
        output = model(**arguments, past_key_values=pack, use_cache=True)
    pack.check()
    return list(output.logits[:, -keep:].split([len(one.ids) for one in shares]))


def joined(caches: Sequence[Any], lengths: Sequence[int]) -> Any:
    """One cache with the rows of several, the shorter ones with padding on the left.

    Raises:
        RefusedError: some layer holds something else than keys and values of all positions.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    whole = DynamicCache()
    layers = list(zip(*(cache.layers for cache in caches), strict=True))
    if any(type(layer) is not DynamicLayer for several in layers for layer in several):
        raise RefusedError("a cache with recurrent states")
    longest = max(lengths)

    def rows(tensors: Sequence[Tensor]) -> Tensor:
        pads = [(0, 0, longest - one.shape[-2], 0) for one in tensors]
        padded = [torch.nn.functional.pad(one, pad) for one, pad in zip(tensors, pads, strict=True)]
        return torch.cat(padded)

    for number, several in enumerate(layers):
        whole.update(
            rows([layer.keys for layer in several]),
            rows([layer.values for layer in several]),
            number,
        )
    return whole


_OWN = ("transformers", "torch", "conflictkit")


def is_refusal(error: BaseException) -> bool:
    """Whether an error of a packed pass tells that the model cannot be packed: its own code tripped
    over a cache, a mask or a length; not a user's hook, nor memory, nor what we refuse by name."""
    if isinstance(error, ConflictKitError | torch.OutOfMemoryError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(error, RefusedError):
        return True
    raised = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return raised in _OWN or isinstance(trace.tb_frame.f_locals.get("self"), torch.nn.Module)


def binds_rows(model: Any) -> bool:
    """Whether what a row computes depends on rows beside it, or on how long they are: recurrent
    layers, positions counted from the cache's length, rotary frequencies and attention temperatures
    that follow the longest row."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One set for all layers, or one for each kind of layer.
    several = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    follows = any(one.get("rope_type", one.get("type")) in _FOLLOW for one in several)
    tempered = bool(getattr(config, "attn_temperature_tuning", False))
    counted = _hf.has_recurrent_layers(model) or _hf.misplaces_padded_rows(model)
    return counted or follows or tempered


_FOLLOW = ("dynamic", "longrope")


def led_configs(model: Any) -> dict[int, Any] | None:
    """The configs by which a model's attention can be led to a pack; None: it cannot."""
    text = model.config.get_text_config()
    # Chunked masks depend on where padding stands, which a pack cannot tell the model's maker of
    # masks; a compiled graph would be made anew for every length.
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()) or _hf.is_compiled(model):
        return None
    found = {}
    with _hf.turn_to_pass(model):
        for module in _hf.unwrapped(model).modules():
            name = attention_name(module) if hasattr(module, "config") else None
            if name is not None:
                if name not in KERNELS:
                    return None
                found[id(module.config)] = module.config
    return found or None
