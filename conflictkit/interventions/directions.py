"""Directions in the residual stream: vectors by layer that are added, subtracted and scaled.

>>> import torch
>>> from conflictkit.interventions.directions import Directions
>>> one = Directions({3: torch.tensor([1.0, 0.0])})
>>> two = Directions({3: torch.tensor([0.0, 2.0]), 4: torch.tensor([1.0, 1.0])})
>>> (one - two * 0.5).vectors[3]
tensor([ 1., -1.])
>>> Directions.read(str(two)) == two
True

`DirectionAdd` puts them into a model: `h_l <- h_l + s v_l` behind each layer l.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit.anatomy import Anatomy
from conflictkit.detectors.probe import coded, decoded
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions._choices import numbers
from conflictkit.interventions.activations import Behind, Positions, Spread
from conflictkit.interventions.heads import Attachable, Gain, Strength

_LAYER = re.compile(r"\d{1,4}")


@dataclass(frozen=True, eq=False)
class Directions:
    """A vector for each of some layers.

    Attributes:
        vectors: layer, from 0 -> `[width]` float32, to be added behind it.

    Raises:
        InvalidParameterError: none, of different widths, or not finite.
    """

    vectors: Mapping[int, Tensor]

    def __post_init__(self) -> None:
        held = {}
        for layer, vector in self.vectors.items():
            found = torch.as_tensor(vector).detach().float().cpu().clone()
            if type(layer) is not int or layer < 0 or found.dim() != 1 or not len(found):
                raise InvalidParameterError("directions are {layer from 0: a vector}")
            if not bool(found.isfinite().all()):
                raise InvalidParameterError(f"the direction of layer {layer} is not finite")
            held[layer] = found
        if len({len(one) for one in held.values()}) != 1:
            raise InvalidParameterError("directions need one layer at least, and one width")
        object.__setattr__(self, "vectors", dict(sorted(held.items())))

    @property
    def width(self) -> int:
        """Of the stream that they belong to."""
        return len(next(iter(self.vectors.values())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Directions) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __add__(self, other: Directions) -> Directions:
        if self.width != other.width:
            raise InvalidParameterError(f"directions of widths {self.width} and {other.width}")
        nothing = torch.zeros(self.width)
        layers = {*self.vectors, *other.vectors}
        return Directions(
            {at: self.vectors.get(at, nothing) + other.vectors.get(at, nothing) for at in layers}
        )

    def __sub__(self, other: Directions) -> Directions:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Directions:
        if not isinstance(factor, int | float) or not math.isfinite(factor):
            raise InvalidParameterError(f"a direction is multiplied by a number, not {factor!r}")
        return Directions({layer: vector * factor for layer, vector in self.vectors.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Directions:
        return self * -1.0

    @property
    def norms(self) -> dict[int, float]:
        """Layer -> length of its vector."""
        return {layer: float(vector.norm()) for layer, vector in self.vectors.items()}

    def __str__(self) -> str:
        """As text that `read` understands: `layer:float32s in base64`, joined by `+`."""
        return "+".join(f"{layer}:{coded(vector)}" for layer, vector in self.vectors.items())

    @classmethod
    def read(cls, text: str) -> Directions:
        """Directions from text.

        Raises:
            InvalidParameterError: it is none.
        """
        found: dict[int, Tensor] = {}
        for part in text.split("+"):
            layer, _, data = part.partition(":")
            vector = decoded(data)
            if vector is None or not _LAYER.fullmatch(layer) or int(layer) in found:
                raise InvalidParameterError(f"cannot read the direction {part[:40]!r}")
            found[int(layer)] = vector
        return cls(found)


@dataclass(frozen=True, eq=False)
class DirectionAdd(Attachable):
    """Add directions to the stream: `h_l <- h_l + s v_l`.

    Args:
        directions: what is added.
        strength: s, one number or one per row; 0 leaves the stream, bit for bit.
        positions: as in `HeadScale`.

    Raises:
        InvalidParameterError: a strength that is no finite number; on attaching, a model of
            another width or without such a layer.
    """

    directions: Directions
    strength: Strength = 1.0
    positions: Positions = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", numbers("DirectionAdd", self.strength))

    def plan(self, body: Anatomy) -> Mapping[Module, Behind]:
        """See `Edit.plan`."""
        if self.directions.width != body.width:
            raise InvalidParameterError(
                f"directions of width {self.directions.width}: the model has width {body.width}"
            )
        last = max(self.directions.vectors)
        if last >= len(body.layers):
            raise InvalidParameterError(f"layer {last}: the model has {len(body.layers)} layers")
        strength = torch.tensor(self.strength)[:, None, None]
        return {
            body.layers[layer]: Behind(_Add(strength * vector))
            for layer, vector in self.directions.vectors.items()
        }


class _Add(Gain):
    def __init__(self, amounts: Tensor) -> None:
        super().__init__(amounts, 0.0)

    def __call__(self, values: Tensor, spread: Spread) -> Tensor:
        return values if self._idle else values + self.factors(values, spread)
