"""Every error that conflictkit raises on purpose: one tree, so that callers can catch one name.

A message says what is wrong, where, and what to type instead. The command line prints it as one
line and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConflictKitError(Exception):
    """Root of all errors that conflictkit raises on purpose."""


class InvalidParameterError(ConflictKitError, ValueError):
    """A parameter is out of range, not finite, of the wrong type, or does not fit the others."""


class UnknownNameError(ConflictKitError, KeyError):
    """A method, detector, parameter or model name that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class EmptyInputError(ConflictKitError, ValueError):
    """A question or a context without any text, or a file without any row."""


class ContextTooLongError(ConflictKitError, ValueError):
    """The prompt does not fit the model's window."""


class BoundaryError(ConflictKitError, ValueError):
    """The text after the context tokenises differently with and without the context."""


class TokenizerError(ConflictKitError, ValueError):
    """The tokenizer lacks something that is needed (a pad token, a chat template)."""


class LogitsError(ConflictKitError, ValueError):
    """Logits that no rule can act on: NaN, +inf, or a row without any finite entry."""


class ModelLoadError(ConflictKitError, RuntimeError):
    """A model or tokenizer could not be loaded."""


class UnsupportedError(ConflictKitError, RuntimeError):
    """A combination that conflictkit refuses before the first token."""


class PrefixError(ConflictKitError, RuntimeError):
    """Tokens that a logits processor cannot place: it has to know where the answer began, and a
    rule with memory along the answer has to have seen every token of it."""


class PolicyError(ConflictKitError, ValueError):
    """A policy that cannot be read, written, or used with this model."""


class RankingError(ConflictKitError, ValueError):
    """A ranking of heads that cannot be read, written, or used with this model."""


class ProbeError(ConflictKitError, ValueError):
    """A probe that cannot be read, written, or used with this model."""


class SAEError(ConflictKitError, ValueError):
    """A sparse autoencoder that cannot be read, or used with this model."""


class RowError(ConflictKitError, ValueError):
    """A row of an input file that cannot be used; the message names file, line and field."""


class HubError(ConflictKitError, RuntimeError):
    """A data set that could not be loaded from the hub."""


class OutputError(ConflictKitError, RuntimeError):
    """A result that cannot be written, or that would overwrite something."""


class ResumeError(ConflictKitError, RuntimeError):
    """An interrupted run that cannot be continued; the message says what differs."""


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UnknownNameError:
    """The error for an unknown `kind` called `name`; its message names the nearest `valid` one."""
    names = sorted(valid)
    near = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UnknownNameError(f"unknown {kind} '{name}': {hint}valid: {', '.join(names)}")
