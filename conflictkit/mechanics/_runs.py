"""What every analysis does to a model: read prompts in batches, look at the last position.

Hooks act in the thread that put them there, are gone when their block ends, and nothing else of a
model is touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import _hf
from conflictkit.anatomy import Anatomy
from conflictkit.errors import EmptyInputError, UnsupportedError
from conflictkit.streams import Stream

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

Progress = Callable[[int, int], None]
"""Called with the number of items done and of all items."""

Read = Callable[[Tensor], None]


def network(model: Model | Module) -> Any:
    """The transformers model that is analysed: itself, or what a toolkit's model holds."""
    return model if isinstance(model, Module) else model.model


def batches(
    hf: Any, lengths: Sequence[int], *, tokens: int = 4096, rows: int = 64
) -> list[list[int]]:
    """Indices of prompts to read together, of like lengths.

    Args:
        hf: who reads them; one that cannot read padding gets prompts of one length.
        lengths: tokens of each prompt.
        tokens: most tokens in a batch, padding counted.
        rows: most prompts in a batch.
    """
    # Written-out attention takes its softmax in float32, where float64's mask is -inf: padding
    # would be NaN, and spread.
    double = next(hf.parameters()).dtype == torch.float64
    alike = double or _hf.misplaces_padded_rows(hf)
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda one: lengths[one]):
        last = found[-1] if found else []
        fits = 0 < len(last) < rows and (len(last) + 1) * lengths[index] <= tokens
        if fits and not (alike and lengths[last[0]] != lengths[index]):
            last.append(index)
        else:
            found.append([index])
    return found


def read(hf: Any, prompts: Sequence[Sequence[int]]) -> Tensor:
    """`[rows, vocab]` logits after the prompts, padded on the left."""
    return Stream(hf, prompts, pad_id=0, use_cache=False).prefill()


def tell(progress: Progress | None, done: int, total: int) -> None:
    """Report, if somebody listens."""
    if progress is not None:
        progress(done, total)


def need(items: Sequence[Any], what: str = "item") -> None:
    """Refuse an empty list.

    Raises:
        EmptyInputError: nothing to analyse.
    """
    if not items:
        raise EmptyInputError(f"no {what} to analyse")


@contextmanager
def hooked(
    *,
    before: Sequence[tuple[Module, Callable[[tuple[Any, ...], dict[str, Any]], Any]]] = (),
    after: Sequence[tuple[Module, Callable[[tuple[Any, ...], Any], Any]]] = (),
) -> Iterator[None]:
    """Hooks for one block, acting in this thread alone.

    Args:
        before: module -> called with its arguments; may return new ones, `(args, kwargs)`.
        after: module -> called with the arguments it was run on and what it returned; may return
            something else instead.
    """
    me = threading.get_ident()
    with ExitStack() as stack:
        for module, function in before:

            def early(_: Any, arguments: Any, named: Any, call: Any = function) -> Any:
                return call(arguments, named) if threading.get_ident() == me else None

            stack.callback(module.register_forward_pre_hook(early, with_kwargs=True).remove)
        for module, function in after:

            def late(_: Any, arguments: Any, out: Any, call: Any = function) -> Any:
                return call(arguments, out) if threading.get_ident() == me else None

            stack.callback(module.register_forward_hook(late).remove)
        yield


@dataclass
class Snapshot:
    """The last position of one pass over `rows` prompts, by layer.

    Attributes:
        heads: `[rows, heads * head_dim]`, what the heads put out; None in a layer without heads.
        projected: `[rows, width]`, the same behind the output projection, its bias included.
        entering, leaving: `[rows, width]`, the residual stream before and behind each layer.
        mlps: `[rows, width]`, what the MLPs put out.
        final, normed: `[rows, width]` before and behind the final norm.
        logits: `[rows, vocab]`.
        calls: how each layer was called.
        tupled: how many things each attention returns; 0: its output alone.
    """

    heads: list[Any]
    projected: list[Any]
    entering: list[Any]
    leaving: list[Any]
    mlps: list[Any]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    tupled: list[int]
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    normed: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def first(out: Any) -> Any:
    """What a module returned, without what it returned beside it."""
    return out[0] if isinstance(out, tuple) else out


def head_outputs(hf: Any, body: Anatomy, prompts: Sequence[Sequence[int]]) -> list[Any]:
    """By layer `[rows, heads * head_dim]`: what the heads put out at the last position."""
    heads: list[Any] = [None] * len(body.layers)

    def keep(layer: int) -> Callable[[tuple[Any, ...], Any], None]:
        def hook(arguments: tuple[Any, ...], _: Any) -> None:
            heads[layer] = arguments[0][:, -1].clone()

        return hook

    outputs = [(one, keep(layer)) for layer, one in enumerate(body.outputs) if one is not None]
    with hooked(after=outputs):
        read(hf, prompts)
    return heads


def snapshot(hf: Any, body: Anatomy, prompts: Sequence[Sequence[int]]) -> Snapshot:
    """Read prompts and keep everything at their last positions.

    Raises:
        UnsupportedError: the layers do not hand on one residual stream, or an attention returns
            something else than what its output projection wrote.
    """
    count, rows = len(body.layers), len(prompts)
    empty: list[list[Any]] = [[None] * count for _ in range(5)]
    found = Snapshot(*empty, calls=[((), {})] * count, tupled=[0] * count)
    attended: list[Any] = [None] * count
    before: list[Any] = []
    after: list[Any] = []

    def last(values: Any) -> Tensor:
        if not isinstance(values, Tensor) or values.dim() not in (2, 3):
            raise UnsupportedError(f"{type(hf).__name__}: its layers hand on more than one stream")
        # Some MLPs see the positions of all rows in one line; some layers add in place (Falcon).
        return values.reshape(rows, -1, values.shape[-1])[:, -1].clone()

    def watch(layer: int) -> None:
        def enter(arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.calls[layer] = (arguments, named)
            given = arguments[0] if arguments else named.get("hidden_states")
            found.entering[layer] = last(given)

        def leave(_: Any, out: Any) -> None:
            found.leaving[layer] = last(first(out))

        def mix(_: Any, out: Any) -> None:
            found.mlps[layer] = last(first(out))

        def project(arguments: tuple[Any, ...], out: Any) -> None:
            found.heads[layer], found.projected[layer] = last(arguments[0]), last(out)

        def attend(_: Any, out: Any) -> None:
            found.tupled[layer] = len(out) if isinstance(out, tuple) else 0
            attended[layer] = last(first(out))

        before.append((body.layers[layer], enter))
        after.extend([(body.layers[layer], leave), (body.mlps[layer], mix)])
        output, attention = body.outputs[layer], body.attentions[layer]
        if output is not None and attention is not None:
            after.extend([(output, project), (attention, attend)])

    def norm(arguments: tuple[Any, ...], _: Any) -> None:
        found.final = last(arguments[0])

    def unembed(arguments: tuple[Any, ...], _: Any) -> None:
        found.normed = last(arguments[0])

    for layer in range(count):
        watch(layer)
    after += [(body.unembed, unembed)] + ([(body.norm, norm)] if body.norm is not None else [])
    with hooked(before=before, after=after):
        found.logits = read(hf, prompts)
    if body.norm is None:
        found.final = found.leaving[-1]
    for layer, out in enumerate(attended):
        if out is not None and not close(out, found.projected[layer]):
            raise UnsupportedError(
                f"{type(hf).__name__}: the attention of layer {layer} returns something else than "
                "its output projection wrote, so its heads' share in the stream is not known"
            )
    return found


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two vectors per row are the same up to the rounding of their type."""
    if one.shape != other.shape:
        return False
    exact = one.dtype in (torch.float32, torch.float64)
    scale = other.float().abs().amax().clamp_min(1e-6)
    return bool((one.float() - other.float()).abs().amax() <= (1e-4 if exact else 5e-2) * scale)
