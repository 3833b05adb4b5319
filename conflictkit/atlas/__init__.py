"""Atlas: the small language model in the package, with known facts and conflict cases.

    >>> from conflictkit import atlas
    >>> atlas.facts()[0].relation in atlas.RELATIONS
    True

`path()` is the model folder for `AutoModelForCausalLM.from_pretrained`; importing this module
does not import torch.
"""

from __future__ import annotations

from conflictkit.atlas import templates
from conflictkit.atlas.cases import cases
from conflictkit.atlas.data import Fact, auto, facts, heads, path, saes, steering
from conflictkit.atlas.guards import guards
from conflictkit.atlas.relations import RELATIONS

__all__ = [
    "RELATIONS",
    "Fact",
    "auto",
    "cases",
    "facts",
    "guards",
    "heads",
    "path",
    "saes",
    "steering",
    "templates",
]
