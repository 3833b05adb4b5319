"""Interventions: changes to logits (`contrast`) and to activations (`HeadScale` and its like).

>>> import conflictkit as ck
>>> model = ck.load("atlas").model
>>> with ck.interventions.HeadScale({(4, 3): 0.0}).attach(model) as handle:
...     _ = model(model.dummy_inputs["input_ids"])
>>> handle.edits > 0
True
"""

from __future__ import annotations

from conflictkit.interventions.activations import Handle
from conflictkit.interventions.heads import HeadAdd, HeadScale, HeadTap

__all__ = ["Handle", "HeadAdd", "HeadScale", "HeadTap"]
