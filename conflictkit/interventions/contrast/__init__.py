"""Contrast rules: how to weigh the context stream against the memory stream, one file per rule.

>>> import torch
>>> from conflictkit.interventions.contrast import CAD
>>> context, memory = torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 1.0]])
>>> CAD(alpha=0.5).combine(context, memory).logits.argmax(-1)
tensor([0])
"""

from __future__ import annotations

from conflictkit.interventions.contrast._base import (
    MAX_WEIGHT,
    Parameter,
    Rule,
    check,
    mix,
    param,
    parameters,
    weights,
)
from conflictkit.interventions.contrast.adacad import AdaCAD
from conflictkit.interventions.contrast.arr import ARR
from conflictkit.interventions.contrast.auto import Auto
from conflictkit.interventions.contrast.cad import CAD
from conflictkit.interventions.contrast.ck_plug import CKPlug
from conflictkit.interventions.contrast.coiecd import COIECD
from conflictkit.interventions.contrast.grd import GRD
from conflictkit.interventions.contrast.interpolate import Interpolate
from conflictkit.interventions.contrast.memory import Memory
from conflictkit.interventions.contrast.plain import Plain

__all__ = [
    "ARR",
    "CAD",
    "COIECD",
    "GRD",
    "AdaCAD",
    "Auto",
    "CKPlug",
    "Interpolate",
    "MAX_WEIGHT",
    "Memory",
    "Parameter",
    "Plain",
    "Rule",
    "check",
    "mix",
    "param",
    "parameters",
    "weights",
]
