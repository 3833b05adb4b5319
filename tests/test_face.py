"""The package's face: cheap to import, complete, short."""

from __future__ import annotations

import subprocess
import sys

import pytest

import conflictkit

HEAVY = ("torch", "transformers", "numpy", "datasets", "transformer_lens", "sae_lens", "plotly")


@pytest.mark.parametrize("module", ["conflictkit", "conflictkit.cli", "conflictkit.errors"])
def test_importing_brings_no_heavy_library(module: str) -> None:
    code = f"import {module}, sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []


def test_every_name_of_the_face_is_there() -> None:
    assert len(conflictkit.__all__) <= 15
    for name in conflictkit.__all__:
        assert getattr(conflictkit, name) is not None
        assert name in dir(conflictkit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        conflictkit.no_such_name  # noqa: B018
