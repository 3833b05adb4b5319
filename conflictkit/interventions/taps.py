"""What a layer leaves behind, looked at while a model reads: for probes that gate an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

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
    values: dict[str, Tensor] = field(default_factory=dict, repr=False)
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
