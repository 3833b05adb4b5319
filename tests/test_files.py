"""Small files: what would not be read again is not written."""

from __future__ import annotations

from pathlib import Path

import pytest

from conflictkit.files import JsonFile, shortened


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    kind = JsonFile("list", ValueError, largest=40, most_parts=4)
    for text, good in [("[1, 2, 3]", True), ("[1, 2, 3, 4, 5]", False), (f'["{"a" * 40}"]', False)]:
        path = tmp_path / "list.json"
        path.write_text(text)
        if good:
            kind.check(text)
            assert kind.parse(kind.contents(path)) == [1, 2, 3]
            continue
        with pytest.raises(ValueError, match="too large: at most 40 bytes and 4 parts"):
            kind.check(text)
        with pytest.raises(ValueError, match="more than 4 parts|larger than 40 bytes"):
            kind.parse(kind.contents(path))


def test_long_values_are_shown_by_their_beginning() -> None:
    assert shortened(3) == "3"
    assert shortened("x" * 160) == "x" * 160
    assert shortened("x" * 2000) == "x" * 40 + "... (2,000 characters)"
