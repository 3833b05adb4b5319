"""The methods by name: what they do, where they come from, what they cost.

>>> from conflictkit import methods
>>> methods.parse("ck-plug?alpha=0.2&adaptive=false")
CKPlug(alpha=0.2, adaptive=False, select_top=10, relative_top=0.01, epsilon=0.0, variant='mended')
>>> methods.describe("adacad").paper.url
'https://arxiv.org/abs/2409.07394'
"""

from __future__ import annotations

from conflictkit.methods._info import MethodInfo, Paper
from conflictkit.methods._registry import all, build, describe, names, parse

__all__ = ["MethodInfo", "Paper", "all", "build", "describe", "names", "parse"]
