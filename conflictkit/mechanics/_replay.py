"""The last position's residual stream carried through a model's layers with attention held fixed.

Each layer is the model's own: only its attention is replaced, by outputs that are handed in, so
everything else (norms before and behind, parallel MLPs, experts, scales) is computed as ever. What
comes out for unchanged outputs is held against what the model computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit.anatomy import Anatomy
from conflictkit.errors import UnsupportedError
from conflictkit.mechanics._runs import Snapshot, close, first

_STEP = 2048
"""Vectors that go through a layer in one call: more would not be faster."""


class Replay:
    """A model's layers for one snapshot.

    Args:
        hf, body: the model and its parts; every layer has heads.
        seen: the pass whose attention outputs are held.

    Raises:
        UnsupportedError: the layers do not give again what they gave in that pass.
    """

    def __init__(self, hf: Any, body: Anatomy, seen: Snapshot) -> None:
        self.body, self.seen = body, seen
        refused = UnsupportedError(
            f"{type(hf).__name__}: its layers cannot be computed from one position and fixed "
            "attention outputs; mlps='frozen' or activation_patching may work"
        )
        try:
            values = seen.entering[0]
            for layer in range(len(body.layers)):
                values = self._layer(layer, values, seen.projected[layer])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise refused from error
        if not close(values, seen.final):
            raise refused

    def run(self, changes: Sequence[Tensor]) -> Tensor:
        """The stream behind the last layer, when one attention's output is changed.

        Args:
            changes: by layer `[rows, several, width]`, what is added to its projection's output in
                a run of its own each.

        Returns:
            `[layers, rows, several, width]`: by the layer where the change was made.
        """
        rows, several, width = changes[0].shape
        running = torch.empty(0, rows, several, width)
        for layer, change in enumerate(changes):
            entering, held = self.seen.entering[layer], self.seen.projected[layer]
            # A run begins in the layer of its change: what comes before is as it was.
            begun = entering[None, :, None].expand(1, rows, several, width)
            running = torch.cat([running.to(begun), begun])
            outputs = held[None, :, None].expand(len(running), rows, several, width).clone()
            outputs[-1] += change.to(outputs)
            flat = zip(
                running.reshape(-1, width).split(_STEP),
                outputs.reshape(-1, width).split(_STEP),
                strict=True,
            )
            out = torch.cat([self._layer(layer, some, given) for some, given in flat])
            running = out.reshape(running.shape)
        return running

    def _layer(self, layer: int, entering: Tensor, output: Tensor) -> Tensor:
        """One layer on `[n, width]` vectors, each a text of one token."""
        attention = self.body.attentions[layer]
        assert attention is not None
        arguments, named = self.seen.calls[layer]
        alone = entering[:, None].clone()  # a layer may add in place
        count = self.seen.tupled[layer]
        given = output[:, None].to(alone.device, copy=True)
        returned = (given, *[None] * (count - 1)) if count else given
        if arguments:
            arguments = (alone, *arguments[1:])
        else:
            named = {**named, "hidden_states": alone}
        with _returning(attention, returned):
            return first(self.body.layers[layer](*arguments, **named))[:, 0]


@contextmanager
def _returning(attention: Module, out: Any) -> Iterator[None]:
    """An attention that returns `out` in this thread, whatever it is given."""
    own = attention.__dict__.get("forward")  # as offloading puts one there
    original, me = attention.forward, threading.get_ident()

    def stand_in(*arguments: Any, **named: Any) -> Any:
        return out if threading.get_ident() == me else original(*arguments, **named)

    with ExitStack() as stack:
        if own is None:
            stack.callback(lambda: attention.__dict__.pop("forward", None))
        else:
            stack.callback(setattr, attention, "forward", own)
        attention.forward = stand_in  # type: ignore[method-assign]
        yield
