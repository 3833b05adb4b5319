"""Heads turned up, down or off, recorded, and added to one another.

A head's output is its slice of what the output projection reads, so a change there is the change
that the papers describe (scaling a head's values at all positions scales its output), whatever the
architecture, the attention kernel or the cache:

    scale:  z_h <- g * z_h                    (pruning: g = 0; PH3, Yu et al. 2023)
    add:    z_h <- z_h + a * z_h(other run)   (JuICE's dual run, Li et al. 2025)

The projection is linear and its bias stands behind it, so scaling the slice by g scales what the
head writes by g and nothing else. Where a norm follows (Gemma 2 and 3, OLMo 2) the change stands
before it, and what the other heads of the layer write is renormalised with it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit.anatomy import Anatomy
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions.activations import Change, Handle, Positions, Spread

Head = tuple[int, int]
"""`(layer, head)`, both counted from 0; query heads."""

Strength = float | Sequence[float] | Tensor
"""One number, or `[rows]` of them: one for each prompt of a batch."""


class Attachable:
    """What every edit can do by itself."""

    writes: ClassVar[bool] = True
    positions: Positions = None

    def attach(self, model: Any, *, prompt_lengths: Sequence[int] | Tensor | None = None) -> Handle:
        """Let it act on `model`: `with edit.attach(model) as handle: ...`; see `Handle`."""
        return Handle(model, [self], prompt_lengths=prompt_lengths)  # type: ignore[list-item]


@dataclass(frozen=True, eq=False)
class HeadScale(Attachable):
    """Multiply the outputs of heads.

    Args:
        scales: head -> what its output is multiplied by; 0 prunes it, 1 leaves it, bit for bit. A
            list gives each prompt of the batch its own.
        positions: None: everywhere; `prompt`, `last` (the prompt's last position), `answer`, or
            (start, stop), counted in each row's tokens without padding.

    Raises:
        InvalidParameterError: no head, a head that is not (layer, head), a value that is no finite
            number.
    """

    scales: Mapping[Head, Strength]
    positions: Positions = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", checked("HeadScale", self.scales))

    def plan(self, body: Anatomy) -> Mapping[Module, Change]:
        """See `Edit.plan`."""
        return {module: _Scale(gain) for module, gain in gains(body, self.scales, rest=1.0).items()}


@dataclass(frozen=True, eq=False)
class HeadTap(Attachable):
    """Record the outputs of heads, for `HeadAdd` or to look at.

    Attributes:
        heads: which; None: all.
        values: projection -> `[batch, new, heads * head_dim]`, its input in the newest pass.
    """

    writes: ClassVar[bool] = False

    heads: Iterable[Head] | None = None
    values: dict[Module, Tensor] = field(default_factory=dict, repr=False)

    def plan(self, body: Anatomy) -> Mapping[Module, Change]:
        """See `Edit.plan`."""
        heads = body.names() if self.heads is None else tuple(self.heads)
        modules = [body.output_of(*head) for head in checked("HeadTap", dict.fromkeys(heads, 1.0))]
        return {module: self._keep(module) for module in modules}

    def _keep(self, module: Module) -> Change:
        def keep(values: Tensor, _: Spread) -> Tensor:
            self.values[module] = values.detach()
            return values

        return keep


@dataclass(frozen=True, eq=False)
class HeadAdd(Attachable):
    """Add to heads what they put out in another run of the same tokens.

    Args:
        amounts: head -> a, as `HeadScale.scales`.
        source: what recorded the other run's newest pass; the passes must read the same number of
            tokens in the same rows.

    Raises:
        InvalidParameterError: as `HeadScale`; in a pass, if the source recorded none of its shape.
    """

    amounts: Mapping[Head, Strength]
    source: HeadTap
    positions: Positions = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "amounts", checked("HeadAdd", self.amounts))

    def plan(self, body: Anatomy) -> Mapping[Module, Change]:
        """See `Edit.plan`."""
        found = gains(body, self.amounts, rest=0.0)
        return {module: _Add(gain, module, self.source) for module, gain in found.items()}


class Gain:
    """`[1 or rows, 1, heads * head_dim]` factors, kept where they were last needed.

    Attributes:
        rows: `[rows]` bool, whose activations they change; None: everybody's.
    """

    def __init__(self, gain: Tensor, nothing: float) -> None:
        self._gain = gain
        acting = (gain != nothing).flatten(1).any(-1)
        self.rows = None if bool(acting.all()) else acting
        self._idle = not bool(acting.any())

    def factors(self, values: Tensor, spread: Spread) -> Tensor:
        gain = self._gain
        if gain.device != values.device or gain.dtype != values.dtype:
            gain = self._gain = gain.to(values)
        return gain if len(gain) == 1 else spread(gain)


class _Scale(Gain):
    def __init__(self, gain: Tensor) -> None:
        super().__init__(gain, 1.0)

    def __call__(self, values: Tensor, spread: Spread) -> Tensor:
        return values if self._idle else values * self.factors(values, spread)


class _Add(Gain):
    def __init__(self, gain: Tensor, module: Module, source: HeadTap) -> None:
        super().__init__(gain, 0.0)
        self._module, self._source = module, source

    def __call__(self, values: Tensor, spread: Spread) -> Tensor:
        if self._idle:
            return values
        other = self._source.values.get(self._module)
        if other is None or other.shape != values.shape:
            shape = "nothing" if other is None else str(list(other.shape))
            raise InvalidParameterError(
                f"HeadAdd: this pass is {list(values.shape)}, the source recorded {shape}: run the "
                "same tokens with HeadTap just before"
            )
        return values + self.factors(values, spread) * other


def checked(owner: str, values: Mapping[Head, Strength]) -> dict[Head, float | tuple[float, ...]]:
    """Heads and their numbers as plain data.

    Raises:
        InvalidParameterError: nothing there, or something of the wrong kind.
    """
    if not isinstance(values, Mapping) or not values:
        raise InvalidParameterError(f"{owner}: needs at least one head, {{(layer, head): number}}")
    found: dict[Head, float | tuple[float, ...]] = {}
    for head, value in values.items():
        known = isinstance(head, tuple) and len(head) == 2
        if not known or any(type(part) is not int or part < 0 for part in head):
            raise InvalidParameterError(f"{owner}: a head is (layer, head) from 0, not {head!r}")
        given: Any = value.tolist() if isinstance(value, Tensor) else value
        several: list[Any] = list(given) if isinstance(given, list | tuple) and given else [given]
        if not all(map(_is_finite, several)):
            raise InvalidParameterError(
                f"{owner}: head {head}: expected a finite number, or one per row, not {value!r}"
            )
        amounts = tuple(float(number) for number in several)
        found[head] = amounts if isinstance(given, list | tuple) else amounts[0]
    rows = {len(value) for value in found.values() if isinstance(value, tuple)}
    if len(rows) > 1:
        raise InvalidParameterError(f"{owner}: heads with {sorted(rows)} rows")
    return found


def _is_finite(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def gains(body: Anatomy, values: Mapping[Head, Any], *, rest: float) -> dict[Module, Tensor]:
    """`[1 or rows, 1, heads * head_dim]` factors of every output projection that has a head here.

    Args:
        values: as `checked` returns them.
        rest: the factor of all other heads.

    Raises:
        InvalidParameterError: a layer or head that the model does not have.
    """
    rows = max((len(value) for value in values.values() if isinstance(value, tuple)), default=1)
    found: dict[Module, Tensor] = {}
    for (layer, head), value in values.items():
        module = body.output_of(layer, head)
        gain = found.setdefault(module, torch.full((rows, 1, body.heads * body.head_dim), rest))
        gain[:, 0, body.slice_of(head)] = torch.tensor(value).expand(rows)[:, None]
    return found
