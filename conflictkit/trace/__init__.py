"""What happened at every token of an answer: as text, in colour, as a page, a table or JSON."""

from conflictkit.trace.record import Candidate, TokenTrace, Trace

__all__ = ["Candidate", "TokenTrace", "Trace"]
