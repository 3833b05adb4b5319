"""Recipes are run as they stand on their page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONGEST_RECIPE = 20


@pytest.fixture
def recipe(repository: Path) -> Callable[[str], dict[str, Any]]:
    """Run the script of one page of docs/recipes; returns the names it defined."""

    def run(page: str) -> dict[str, Any]:
        path = repository / "docs" / "recipes" / page
        (script,) = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.S | re.M)
        assert sum(bool(line.strip()) for line in script.splitlines()) <= LONGEST_RECIPE
        names: dict[str, Any] = {"__name__": "recipe"}
        exec(compile(script, path, "exec"), names)
        return names

    return run
