"""The page of results is what the experiments' files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_made_from_the_experiments_files() -> None:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "experiments" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == docs.page(), "run: python experiments/docs.py"
    for name in docs.QUESTIONS:
        made = (ROOT / "experiments" / name / "plot.png").read_bytes()
        assert made == (ROOT / "docs" / "images" / f"{name}.png").read_bytes()
