"""Reports on finished runs: one HTML page that needs nothing else, Markdown, CSV."""

from conflictkit.evaluation.report.data import figures, files
from conflictkit.evaluation.report.page import page
from conflictkit.evaluation.report.sources import Source, read
from conflictkit.evaluation.report.text import markdown

__all__ = ["Source", "figures", "files", "markdown", "page", "read"]
