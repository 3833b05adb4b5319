"""Any text as harmless HTML."""

from __future__ import annotations

from html import escape

from conflictkit.trace.text import visible


def safe(text: str, *, spaces: bool = False, lines: bool = False) -> str:
    """Any text, harmless: escaped, invisible characters shown, its direction kept to itself."""
    shown = escape(visible(text, spaces=spaces, lines=lines))
    if spaces:
        shown = shown.replace("·", '<span class="ck-dot">·</span>')
    return shown if text.isascii() else f"<bdi>{shown}</bdi>"


def candidate(text: str) -> str:
    """A stream's candidate, never empty."""
    return safe(text, spaces=True) or "&lt;empty&gt;"
