"""Methods that edit activations: one file per paper, each a rule that says what it changes where.

>>> from conflictkit.interventions.edited import PH3
>>> rule = PH3(heads="4.3+5.1")
>>> rule.heads, rule.needs
('4.3+5.1', ('edited',))
"""

from __future__ import annotations

from conflictkit.interventions.edited._base import EditRule, Prompts
from conflictkit.interventions.edited._steered import DirectionRule, SteeredRule
from conflictkit.interventions.edited.attention_steering import AttentionSteering
from conflictkit.interventions.edited.caa import CAA
from conflictkit.interventions.edited.decore import DeCoRe
from conflictkit.interventions.edited.focus import Focus
from conflictkit.interventions.edited.head_scale import HeadScaling
from conflictkit.interventions.edited.iti import ITI
from conflictkit.interventions.edited.juice import Juice, JuiceSingle
from conflictkit.interventions.edited.ph3 import PH3
from conflictkit.interventions.edited.refusal_region import RefusalRegion
from conflictkit.interventions.edited.repe import RepE
from conflictkit.interventions.edited.spare import SpARE

__all__ = [
    "CAA",
    "ITI",
    "PH3",
    "AttentionSteering",
    "DeCoRe",
    "DirectionRule",
    "EditRule",
    "Focus",
    "HeadScaling",
    "Juice",
    "JuiceSingle",
    "Prompts",
    "RefusalRegion",
    "RepE",
    "SpARE",
    "SteeredRule",
]
