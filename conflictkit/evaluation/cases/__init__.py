"""Cases: one record type, read from our own files or from the files of published benchmarks."""

from conflictkit.evaluation.cases.io import cases_hash, read_cases, write_cases
from conflictkit.evaluation.cases.sources import SOURCES, load_cases

__all__ = ["SOURCES", "cases_hash", "load_cases", "read_cases", "write_cases"]
