"""The packed step with caches of fixed size, compiled: one graph for all streams, without a look at
the host, which on a GPU becomes a CUDA graph.

A `StaticStep` belongs to a number of streams, of rows and of positions. It is made once, and taken
over by the runs that fit it one after the other, so that nothing is compiled again. While a step
runs, other threads that pass through the model by conflictkit wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, functional

from conflictkit import _hf, turns
from conflictkit._hf_attention import attention_name, enter_names
from conflictkit._hf_packed import KERNELS, binds_rows, led_configs
from conflictkit.errors import UnsupportedError
from conflictkit.narrow import narrow

ROOM = 256
"""Capacities are multiples of it; long ones are rounded up further, by at most a quarter."""
_NUMBERS = itertools.count()
IDLE = 8
"""Steps that wait for a run; each holds caches of its size."""


def check_static(model: Any) -> None:
    """Raise `UnsupportedError` if the packed step of a model cannot be compiled."""
    modules = _hf.unwrapped(model).modules()
    with _hf.turn_to_pass(model):
        names = {attention_name(one) for one in modules if hasattr(one, "config")}
    why = (
        "is compiled already" if _hf.is_compiled(model)
        else "has layers whose state or positions cannot be kept in a fixed place"
        if binds_rows(model) or led_configs(model) is None or _latent(model)
        else "has sliding windows" if _hf.has_windows(model)
        else "" if names - {None} == {"sdpa"}
        else "does not attend by 'sdpa': use model.set_attn_implementation('sdpa')"
    )  # fmt: skip
    if why:
        raise UnsupportedError(f"compile=True: {type(model).__name__} {why}")


def _latent(model: Any) -> bool:
    """Whether keys are made longer, or otherwise changed, behind the cache."""
    return getattr(model.config.get_text_config(), "kv_lora_rank", None) is not None


class _Keys:
    """Keys and values of all streams, in the place of a cache of transformers."""

    is_compileable = True
    is_sliding = layers = ()

    def __init__(self, sizes: Sequence[int], cursors: Tensor) -> None:
        self.sizes = list(sizes)  # rows of each stream
        self.cursors = cursors
        self.keys: list[list[Tensor]] = []  # layer, stream -> [rows, heads, capacity, head_dim]
        self.values: list[list[Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one position of every stream."""
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            for stream, rows in enumerate(new.split(self.sizes)):
                place = self.cursors[stream : stream + 1]
                held[layer_idx][stream].index_copy_(2, place, rows)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Of no consequence: positions are given."""
        return 0


class StaticStep:
    """One compiled step of several streams.

    Args:
        model: one that `check_static` approves.
        capacities: positions of each stream.
        rows: of each stream.
        caches: caches of transformers with what the streams have read: models of the tensors.
    """

    def __init__(
        self, model: Any, capacities: Sequence[int], rows: int, caches: Sequence[Any]
    ) -> None:
        device = model.get_input_embeddings().weight.device
        self.capacities, self.rows = tuple(capacities), rows
        self.kept_as = _kept_as(model, caches)
        self.model = model
        self._configs = led_configs(model) or {}
        self._name = f"static-{next(_NUMBERS)}"
        sizes = [rows] * len(capacities)
        self._cursors = torch.zeros(len(capacities), dtype=torch.long, device=device)
        self._masks = [
            torch.zeros(rows, capacity, dtype=torch.bool, device=device) for capacity in capacities
        ]
        self._positions = torch.zeros(sum(sizes), 1, dtype=torch.long, device=device)
        self._cache = _Keys(sizes, self._cursors)
        for pairs in zip(*map(_hf.cache_layers, caches), strict=True):
            for held, tensors in zip(
                (self._cache.keys, self._cache.values), zip(*pairs, strict=True), strict=True
            ):
                held.append(
                    [
                        one.new_zeros(rows, one.shape[1], capacity, one.shape[3])
                        for one, capacity in zip(tensors, capacities, strict=True)
                    ]
                )
        enter_names(KERNELS)
        import torch._dynamo as dynamo

        for one in self._tensors():
            dynamo.mark_static_address(one)
        mode = "reduce-overhead" if device.type == "cuda" else None
        own = _own(StaticStep._pass, self._name)
        self._compiled = torch.compile(
            MethodType(own, self), fullgraph=True, dynamic=False, mode=mode
        )

    @property
    def bytes(self) -> int:
        """Of keys and values, in use or not."""
        held = itertools.chain.from_iterable([*self._cache.keys, *self._cache.values])
        return sum(one.nbytes for one in held)

    def _tensors(self) -> list[Tensor]:
        held = [*self._cache.keys, *self._cache.values, self._masks]
        return [self._cursors, self._positions, *itertools.chain.from_iterable(held)]

    def take_over(self, caches: Sequence[Any], masks: Sequence[Tensor]) -> None:
        """Begin where some streams are.

        Args:
            caches: what each has read.
            masks: `[rows, length]` of each, 0 at padding.
        """
        for stream, (cache, mask) in enumerate(zip(caches, masks, strict=True)):
            length = mask.shape[1]
            self._cursors[stream] = length
            self._masks[stream].zero_()
            self._masks[stream][:, :length] = mask.bool()
            rows = slice(stream * self.rows, (stream + 1) * self.rows)
            self._positions[rows, 0] = mask.sum(-1)
            for layer, (key, value) in enumerate(_hf.cache_layers(cache)):
                # What a run before has left there is not attended to, but NaN times 0 is NaN.
                for held, new in ((self._cache.keys, key), (self._cache.values, value)):
                    held[layer][stream].zero_()
                    held[layer][stream][:, :, :length] = new

    def step(self, tokens: Tensor) -> Tensor:
        """Append `tokens` `[rows]` to every stream; `[streams, rows, vocab]` logits after them."""
        from transformers import AttentionInterface

        every = tokens.repeat(len(self.capacities))[:, None]
        before = {}
        alone = turns.to_write({*self._configs, id(_hf.unwrapped(self.model).config)})
        with alone, torch.no_grad():
            AttentionInterface.register(self._name, self._attend)
            try:
                for key, config in self._configs.items():
                    before[key] = config._attn_implementation_internal
                    config._attn_implementation_internal = self._name
                with narrow(self.model, len(every)):
                    logits = self._compiled(every)
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                raise UnsupportedError(
                    f"compile=True: torch cannot compile {type(self.model).__name__}: "
                    f"{str(error).splitlines()[0]}"
                ) from error
            finally:
                for key, name in before.items():
                    self._configs[key]._attn_implementation_internal = name
                AttentionInterface._global_mapping.pop(self._name, None)
        # The graph's own memory is written again by the next step.
        return logits.clone().unflatten(0, (len(self.capacities), self.rows))

    def select(self, index: Tensor) -> None:
        """Rows `index` in the places of all."""
        for one in [*itertools.chain.from_iterable([*self._cache.keys, *self._cache.values])]:
            one.copy_(one.index_select(0, index))
        for one in self._masks:
            one.copy_(one.index_select(0, index))
        for stream in self._positions.split(self.rows):
            stream.copy_(stream.index_select(0, index))

    def _pass(self, tokens: Tensor) -> Tensor:
        for stream, mask in enumerate(self._masks):
            mask.index_fill_(1, self._cursors[stream : stream + 1], True)
        logits = self.model(
            input_ids=tokens,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._cursors.add_(1)
        self._positions.add_(1)
        return logits

    def _attend(
        self,
        module: Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        made = []
        layer: Any = module.layer_idx
        for stream, rows in enumerate(query.split(self._cache.sizes)):
            made.append(
                functional.scaled_dot_product_attention(
                    rows,
                    self._cache.keys[layer][stream],
                    self._cache.values[layer][stream],
                    attn_mask=self._masks[stream][:, None, None],
                    scale=scaling,
                    enable_gqa=True,
                )
            )
        return torch.cat(made).transpose(1, 2), None


def _own(function: Any, name: str) -> Any:
    """The same function with a code object of its own: torch keeps what it has compiled, and how
    often, by code, and lets go of it with the code."""
    code = function.__code__.replace(co_name=name)
    return FunctionType(code, function.__globals__, name, None, function.__closure__)


def _capacity(length: int) -> int:
    """Positions to keep for a length, such that few capacities serve all lengths."""
    step = max(ROOM, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step


def _kept_as(model: Any, caches: Sequence[Any]) -> tuple[torch.dtype, torch.device]:
    """In which type and where a model's keys are kept by now."""
    keys = _hf.cache_layers(caches[0])[0][0]
    return keys.dtype, keys.device


class Steps:
    """Compiled steps that no run holds, so that the next one that fits takes them over.

    Threads may share it; each run holds a step of its own.
    """

    def __init__(self) -> None:
        self._idle: list[StaticStep] = []

    @property
    def bytes(self) -> int:
        """Of the caches that wait here."""
        return sum(one.bytes for one in self._idle)

    def take(self, model: Any, caches: Sequence[Any], masks: Sequence[Tensor], room: int) -> Any:
        """A step that stands where some streams are, with room for further positions.

        Args:
            caches, masks: as `StaticStep.take_over`.
        """
        capacities = tuple(_capacity(mask.shape[1] + room) for mask in masks)
        rows = len(masks[0])
        found = None
        fits = [capacities, rows, _kept_as(model, caches)]
        for one in tuple(self._idle):
            if one.model is model and [one.capacities, one.rows, one.kept_as] == fits:
                try:
                    self._idle.remove(one)
                except ValueError:  # another thread has it by now
                    continue
                found = one
                break
        found = found or StaticStep(model, capacities, rows, caches)
        found.take_over(caches, masks)
        return found

    def give_back(self, step: StaticStep) -> None:
        """Let the next run have it; of many, the latest are kept."""
        self._idle.append(step)
        del self._idle[:-IDLE]
