"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "conflictkit"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _modules_with_examples() -> list[str]:
    paths = [path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    names = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in sorted(paths)]
    return [".".join(name).removesuffix(".__init__") for name in names]


def _marked(name: str) -> Any:
    """Examples that fit something to a model take seconds."""
    fits = name.startswith("conflictkit.mechanics")
    return pytest.param(name, marks=pytest.mark.slow if fits else ())


@pytest.mark.parametrize("module", [*map(_marked, _modules_with_examples())])
def test_examples(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=OPTIONS)
    assert result.attempted > 0
    assert result.failed == 0
