"""Edits through a sparse autoencoder: features taken out and put in, or the stream reconstructed.

>>> import conflictkit as ck
>>> from conflictkit.interventions.features import FeatureEdit, Reconstruction
>>> from conflictkit.interventions.sae import SAE
>>> model = ck.load("atlas").model
>>> sae = SAE.load(ck.atlas.saes()[0])
>>> with FeatureEdit(sae, add={7: 3.0}).attach(model) as handle:
...     _ = model(model.dummy_inputs["input_ids"])
>>> handle.edits > 0
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit.anatomy import Anatomy
from conflictkit.errors import InvalidParameterError, SAEError
from conflictkit.interventions._choices import numbers
from conflictkit.interventions.activations import Behind, Positions, Spread
from conflictkit.interventions.heads import Attachable, Gain, Strength
from conflictkit.interventions.sae import SAE


@dataclass(frozen=True, eq=False)
class FeatureEdit(Attachable):
    """Take features down and up to targets, and leave everything else of the stream as it is.

        h' = h + s W_dec^T (a - r)    r_i = min(max(target_i, 0), z_i), a_i = max(target_i - z_i, 0)

    Never more is taken out than is there, and what is put in only tops up (SpARE, arXiv
    2410.15999). Only the rows of these features are used.

    Args:
        sae: whose features.
        remove: feature -> how much of it is taken out at most.
        add: feature -> what it is brought up to.
        strength: s, one number or one per row; 0 leaves the stream, bit for bit.
        positions: as in `HeadScale`.

    Raises:
        SAEError: a feature that the autoencoder does not have.
        InvalidParameterError: no feature, one in both, or no finite number.
    """

    sae: SAE
    remove: Mapping[int, float] = field(default_factory=dict)
    add: Mapping[int, float] = field(default_factory=dict)
    strength: Strength = 1.0
    positions: Positions = None

    def __post_init__(self) -> None:
        both = sorted(set(self.remove) & set(self.add))
        if both or not (self.remove or self.add):
            what = f"feature {both[0]} cannot be both removed and added" if both else "no feature"
            raise InvalidParameterError(f"FeatureEdit: {what}")
        targets = [*self.remove.values(), *self.add.values()]
        object.__setattr__(self, "_targets", numbers("FeatureEdit", targets))
        object.__setattr__(self, "_rows", self.sae.select([*self.remove, *self.add]))
        object.__setattr__(self, "strength", numbers("FeatureEdit", self.strength))

    def plan(self, body: Anatomy) -> Mapping[Module, Behind]:
        """See `Edit.plan`."""
        rows: SAE = self._rows  # type: ignore[attr-defined]
        targets = torch.tensor(self._targets)  # type: ignore[attr-defined]
        change = _Features(rows, len(self.remove), targets, torch.tensor(self.strength))
        return {_layer(self.sae, body): Behind(change)}


class _Features(Gain):
    def __init__(self, rows: SAE, removed: int, targets: Tensor, strength: Tensor) -> None:
        super().__init__(strength[:, None, None], 0.0)
        self._sae, self._removed, self._targets = rows, removed, targets

    def __call__(self, values: Tensor, spread: Spread) -> Tensor:
        if self._idle:
            return values
        if self._sae.decoder.device != values.device:
            self._sae = self._sae.to(values.device)
            self._targets = self._targets.to(values.device)
        split = self._removed
        codes, targets = self._sae.code(values), self._targets
        change = torch.cat(
            [
                -torch.minimum(targets[:split].clamp_min(0), codes[..., :split]),
                (targets[split:] - codes[..., split:]).clamp_min(0),
            ],
            dim=-1,
        )
        delta = self._sae.change(change, values)
        # In a half precision small changes would be lost twice.
        kind = torch.promote_types(values.dtype, delta.dtype)
        return (values.to(kind) + self.factors(delta, spread) * delta).to(values.dtype)


@dataclass(frozen=True, eq=False)
class Reconstruction(Attachable):
    """Put in place of the stream what autoencoders make of it; uses their full encoders.

    Args:
        saes: one or several of different layers.
        error: add what the autoencoder loses; the stream then stays as it was.
        positions: as in `HeadScale`.

    Raises:
        InvalidParameterError: none, or two of one layer.
    """

    saes: Sequence[SAE]
    error: bool = False
    positions: Positions = None

    def __post_init__(self) -> None:
        layers = [one.layer for one in self.saes]
        if not layers or len(set(layers)) < len(layers):
            raise InvalidParameterError("Reconstruction: needs autoencoders of different layers")

    def plan(self, body: Anatomy) -> Mapping[Module, Behind]:
        """See `Edit.plan`."""
        return {_layer(sae, body): Behind(self._replace(sae)) for sae in self.saes}

    def _replace(self, sae: SAE) -> Any:
        held = [sae]

        def change(values: Tensor, _: Spread) -> Tensor:
            if held[0].decoder.device != values.device:
                held[0] = held[0].to(values.device)
            made = held[0].decode(held[0].encode(values), values)
            if self.error:
                made = made + (values - made)
            return made.to(values.dtype)

        return change


def _layer(sae: SAE, body: Anatomy) -> Module:
    """The layer behind which an autoencoder reads.

    Raises:
        SAEError: the model has another width, or not so many layers.
    """
    if sae.width != body.width or sae.layer >= len(body.layers):
        raise SAEError(
            f"the SAE {sae.source} of '{sae.model}' is of width {sae.width} at {sae.hook}; this "
            f"model has {len(body.layers)} layers of width {body.width}"
        )
    return body.layers[sae.layer]
