"""A tiny model to fit to."""

from __future__ import annotations

from tests.evaluation.runner.conftest import fast_disk, model

__all__ = ["fast_disk", "model"]
