"""The model card's tables are what the package and the kept figures say."""

from pathlib import Path

import table

CARD = Path(__file__).resolve().parents[2] / "docs" / "atlas.md"


def test_the_tables_are_made_from_the_files():
    written = CARD.read_text(encoding="utf-8")
    assert written == table.card(written), "run: python experiments/atlas/table.py"
