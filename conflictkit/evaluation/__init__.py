"""Evaluation: cases, metrics, runs and reports."""

from conflictkit.evaluation.folder import Run, load_run
from conflictkit.evaluation.record import Cost, Result
from conflictkit.evaluation.runner import evaluate

__all__ = ["Cost", "Result", "Run", "evaluate", "load_run"]
