"""What layers and heads leave behind, looked at while a model reads: for probes that gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit.anatomy import Anatomy
from conflictkit.errors import InvalidParameterError, UnsupportedError
from conflictkit.interventions.activations import Behind, Change, Positions, Spread
from conflictkit.interventions.heads import Attachable

LAST = 64
"""Positions that are kept: more than a draft is long."""


@dataclass(frozen=True, eq=False)
class LayerTap(Attachable):
    """Keep the newest pass's last positions of some places.

    Args:
        places: `(kind, layer)`: `residual`, `attention` or `mlp`, layers from 0.

    Attributes:
        values: `kind.layer` -> `[batch, at most LAST, width]`, of the newest pass.

    Raises:
        InvalidParameterError: on attaching: a layer that the model does not have.
        UnsupportedError: in a pass: an MLP that does not tell rows apart.
    """

    writes: ClassVar[bool] = False

    places: Sequence[tuple[str, int]]
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    positions: Positions = None

    def plan(self, body: Anatomy) -> Mapping[Module, Behind]:
        """See `Edit.plan`."""
        found = {}
        for kind, layer in dict.fromkeys(self.places):
            there = body.writers(kind)
            module = there[layer] if 0 <= layer < len(there) else None
            if module is None:
                raise InvalidParameterError(f"a probe reads {kind} of layer {layer}: there is none")
            found[module] = Behind(self._keep(f"{kind}.{layer}"))
        return found

    def _keep(self, name: str) -> Change:
        def keep(values: Tensor, _: Spread) -> Tensor:
            if values.dim() != 3:
                raise UnsupportedError(
                    f"{name}: this model's MLPs see the positions of all rows in one line: fit a "
                    "probe of the residual stream"
                )
            self.values[name] = values[:, -LAST:].detach().clone()  # some layers add in place
            return values

        return keep


@dataclass(frozen=True, eq=False)
class Unsaid:
    """Positions of a stream, of which those become log-probabilities that are asked for.

    Attributes:
        values: `[batch, some, width]`.
        say: `[..., width]` -> `[..., vocab]` log-probabilities.
        unread: `[batch]` bool, rows without a passage, whose log-probabilities are 0; None: none.
    """

    values: Tensor
    say: Callable[[Tensor], Tensor]
    unread: Tensor | None = None

    def __getitem__(self, index: Any) -> Tensor:
        """`[batch, vocab]` of one position in every row, all rows in their order."""
        told = self.say(self.values[index])
        return told if self.unread is None else told.masked_fill(self.unread[:, None], 0.0)


class Reader:
    """What weighed heads alone would make a model say.

    `x = sum_h (a_h W_O^h + U V_h) z_h` over the heads of some layers, through the model's own final
    norm and unembedding. The norm takes the weights' size away; the mean size of `a` scales the
    logits instead.

    Args:
        body: the model's parts.
        first: the first layer whose heads are read; the others follow it.
        weights: in one line, `a` (`[layers from first on, heads]`), and of a correction of some
            rank `V` (`[layers from first on, heads * head_dim, rank]`) and `U` (`[rank, width]`);
            how many they are tells the rank.

    Attributes:
        layers: those of them that have heads.
        gains, down, up: `a`, `V` and `U`.

    Raises:
        InvalidParameterError: no such layer, or another number of weights.
        UnsupportedError: a norm stands between a head and the stream (Gemma 2 and 3, OLMo 2), or
            the stream is projected before it is unembedded (OPT-350m).
    """

    def __init__(self, body: Anatomy, first: int, weights: Tensor) -> None:
        if (
            isinstance(first, bool)
            or not isinstance(first, int)
            or first not in range(len(body.layers))
        ):
            raise InvalidParameterError(
                f"heads from layer {first!r} on: the model has layers 0 to {len(body.layers) - 1}"
            )
        count = len(body.layers) - first
        heads, wide = count * body.heads, count * body.heads * body.head_dim
        rank, odd = divmod(weights.numel() - heads, wide + body.width)
        if rank < 0 or odd:
            raise InvalidParameterError(
                f"{weights.numel()} weights from layer {first} on: the model has "
                f"{len(body.layers)} layers of {body.heads} heads"
            )
        if any(body.attention_norms[first:]):
            raise UnsupportedError(
                "a norm stands between this model's heads and its stream, so what a head says by "
                "itself is not defined: fit a probe of another kind"
            )
        if getattr(body.unembed, "in_features", body.width) != body.width:
            raise UnsupportedError(
                "this model projects its stream before it unembeds it: fit a probe of another kind"
            )
        self.body, self.first = body, first
        flat = weights.flatten()
        self.gains = flat[:heads].view(count, body.heads)
        self.down = flat[heads : heads + wide * rank].view(count, wide // count, rank)
        self.up = flat[heads + wide * rank :].view(rank, body.width)
        self.layers = [first + n for n in range(count) if body.outputs[first + n] is not None]
        if not self.layers:
            raise InvalidParameterError(f"no layer from {first} on has heads")

    def output(self, layer: int) -> Any:
        """The output projection of a layer's heads."""
        return self.body.outputs[layer]

    def wrote(self, layer: int, heads: Tensor) -> Tensor:
        """`[..., heads * head_dim]` put out by a layer's heads -> `[..., width]` in the stream."""
        gain = self.gains[layer - self.first].to(heads).repeat_interleave(self.body.head_dim)
        # `forward` itself goes round the hooks; what is left of nothing is the bias.
        project = self.output(layer).forward
        said = project(heads * gain) - project(torch.zeros_like(heads[:1]))
        if not len(self.up):
            return said
        return said + heads @ self.down[layer - self.first].to(heads) @ self.up.to(heads)

    def say(self, values: Tensor) -> Tensor:
        """`[..., width]` in the stream -> `[..., vocab]` float32 log-probabilities."""
        normed = values if self.body.norm is None else self.body.norm.forward(values)
        scale = self.gains.abs().mean()
        return (self.body.unembed.forward(normed).float() * scale.to(normed.device)).log_softmax(-1)


@dataclass(frozen=True, eq=False)
class ReadingTap(Attachable):
    """Keep what weighed heads write at the newest pass's last positions; see `Reader`.

    Args:
        name: what it is kept as.
        first, weights: as in `Reader`.
        ends: tokens that end an answer; they get a log-probability of 0, for a passage says nothing
            against ending.
        unread: `[prompts]` bool, those without a passage, where heads read nothing that could speak
            against memory; None: none.

    Attributes:
        values: name -> `Unsaid`, of the newest pass.

    Raises:
        InvalidParameterError, UnsupportedError: on attaching: heads that cannot be read.
    """

    writes: ClassVar[bool] = False

    name: str
    first: int
    weights: Tensor
    ends: Sequence[int] = ()
    unread: Tensor | None = None
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    positions: Positions = None

    def plan(self, body: Anatomy) -> Mapping[Module, Change]:
        """See `Edit.plan`."""
        reader = Reader(body, self.first, self.weights)
        return {reader.output(layer): self._add(reader, layer) for layer in reader.layers}

    def _add(self, reader: Reader, layer: int) -> Change:
        @torch.no_grad()
        def say(values: Tensor) -> Tensor:
            told = reader.say(values)
            told[..., list(self.ends)] = 0.0
            return told

        def add(values: Tensor, spread: Spread) -> Tensor:
            wrote = reader.wrote(layer, values[:, -LAST:])
            if layer != reader.layers[0]:
                wrote = self.values[self.name].values.to(wrote.device) + wrote
            unread = None if self.unread is None else spread(self.unread.to(wrote.device))
            self.values[self.name] = Unsaid(wrote, say, unread)
            return values

        return add
