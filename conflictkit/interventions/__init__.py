"""Interventions: changes to logits (`contrast`), to activations and to attention.

>>> import conflictkit as ck
>>> model = ck.load("atlas").model
>>> with ck.interventions.HeadScale({(4, 3): 0.0}).attach(model) as handle:
...     _ = model(model.dummy_inputs["input_ids"])
>>> handle.edits > 0
True

Attention is steered in the same way, here away from all but the prompt's tokens 4 to 9:

>>> bias = ck.interventions.AttentionBias([(4, 10)], alpha=0.1)
>>> ids = model.dummy_inputs["input_ids"].repeat(1, 4)
>>> with bias.attach(model, prompt_lengths=[ids.shape[1]] * len(ids)) as handle:
...     _ = model(ids)
>>> handle.edits == ids.numel()
True
"""

from __future__ import annotations

from conflictkit.interventions.activations import Handle
from conflictkit.interventions.attention import AttentionBias, FocusDirections, MaskedHeads
from conflictkit.interventions.heads import HeadAdd, HeadScale, HeadTap
from conflictkit.interventions.ranking import HeadRanking

__all__ = [
    "AttentionBias",
    "FocusDirections",
    "Handle",
    "HeadAdd",
    "HeadRanking",
    "HeadScale",
    "HeadTap",
    "MaskedHeads",
]
