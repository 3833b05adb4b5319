"""Results of two runs compared, up to rounding."""

from __future__ import annotations

import math
from typing import Any


class About(float):
    """A number up to rounding: prompts that were read before are read in other batches."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and math.isclose(self, other, rel_tol=1e-3, abs_tol=1e-5)


def rounded(value: Any) -> Any:
    """The same, with numbers that equal others up to rounding."""
    if isinstance(value, float):
        return About(value)
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value
