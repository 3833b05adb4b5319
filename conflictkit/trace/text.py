"""Text that is safe to show and data that is safe to write, whatever a model produced."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

NOT_A_NUMBER = "–"
# Invisible, but part of how emoji and many scripts are written.
_JOINERS = (0x200C, 0x200D)


def visible(text: str, *, spaces: bool = False, lines: bool = False) -> str:
    """`text` with everything that could act instead of being seen made visible.

    Control characters (a terminal would obey them), invisible and direction-changing characters
    (they would reorder what is around them) and lone surrogates (no file can hold them).

    Args:
        text: anything.
        spaces: also show spaces, as `·`.
        lines: keep line breaks.
    """
    if lines:
        text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable() and not spaces:
        return text
    return "".join(_shown(character, spaces, lines) for character in text)


def _shown(character: str, spaces: bool, lines: bool) -> str:
    code = ord(character)
    if character == "\n":
        return "\n" if lines else "↵"
    if character == " ":
        return "·" if spaces else " "
    if character == "\t":
        return "⇥"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and code not in _JOINERS:
        return f"<U+{code:04X}>"
    return character


def clip(text: str, length: int) -> str:
    """`text` with at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """A number for people: a true minus, a dash for what is not a number."""
    if math.isnan(value):
        return NOT_A_NUMBER
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    shown = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(shown) == 0:
        shown = f"{0:.{digits}f}"
    return shown.replace("-", "−")


def plain_data(value: Any) -> Any:
    """`value` as strict JSON data: tuples as lists, non-finite numbers as None, valid UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain_data(str(key)): plain_data(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_data(entry) for entry in value]
    return plain_data(str(value))
