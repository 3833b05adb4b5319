"""RepE (Zou et al. 2023, arXiv 2310.01405): add the main direction in which runs differ.

    D = {h_i - h_j : i follows the context, j follows memory}      pairs drawn at random
    v_l = first principal component of D and -D, turned towards the context, as long as the mean of
          D along it
    h_l <- h_l + alpha v_l

The stream is read and changed where CAA reads and changes it. One forward per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from conflictkit.interventions.edited._steered import DirectionRule


@dataclass(frozen=True)
class RepE(DirectionRule):
    """Steer by a principal component of differences."""

    name: ClassVar[str] = "repe"
