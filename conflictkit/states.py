"""What a case can be, in words that need no library."""

STATES = ("correction", "resistance", "agreement", "irrelevant")
"""How context and memory stand to the truth: only the context is right, only memory is, both are,
or the context does not answer the question."""
GUARDS = ("recall", "reading", "quoting")
"""What a method must not spoil: answering without a context, reading about what the model cannot
know, and long answers that repeat one of several passages."""
UNSCREENED = "unscreened"
"""The state of a case before a model's memory has been asked."""

ALL = (*STATES, *GUARDS, UNSCREENED)
