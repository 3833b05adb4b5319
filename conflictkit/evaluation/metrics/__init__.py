"""Metrics of answers, sources, detection, guards and cost, with intervals by subject."""

from conflictkit.evaluation.metrics.source import Verdict, judge
from conflictkit.evaluation.metrics.summary import METRICS, Cell, Summary, summarise

__all__ = ["METRICS", "Cell", "Summary", "Verdict", "judge", "summarise"]
