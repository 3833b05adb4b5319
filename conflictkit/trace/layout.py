"""What both drawings (terminal and page) have in common: spans, colours, the headline."""

from __future__ import annotations

import math
from dataclasses import dataclass

from conflictkit.files import shortened
from conflictkit.trace.record import (
    CALM,
    CONFLICT_SCORE,
    MAX_CONFLICT,
    Candidate,
    TokenTrace,
    Trace,
)
from conflictkit.trace.text import number, visible

INK = "#1c1917"
# Calm to conflict. INK on the darkest one has a contrast of 5.6, so that all stay readable.
STOPS = ("#fdf1dc", "#fbd9a4", "#f7b36c", "#f08a4b", "#e86f3e")

SOURCES = {"memory": "from memory", "plain": "with the context"}
"""The methods that are one stream as it is, and what their answers are called."""


@dataclass(frozen=True)
class Span:
    """A run of tokens that is shown as one: one token, or the pieces of one character.

    Attributes:
        text: what it adds to the answer.
        label: what to show where an empty text would be invisible.
        conflict: the largest conflict of its tokens; NaN if none was recorded.
        tokens: the tokens; the last one completes the text.
        first: index of the first token.
    """

    text: str
    label: str
    conflict: float
    tokens: tuple[TokenTrace, ...]
    first: int


def spans(trace: Trace) -> list[Span]:
    """The answer's tokens, the pieces of one character joined."""
    found: list[Span] = []
    waiting: list[int] = []
    for index, token in enumerate(trace.tokens):
        waiting.append(index)
        if token.kind == "piece" and index + 1 < len(trace.tokens):
            continue
        members = tuple(trace.tokens[i] for i in waiting)
        conflicts = [trace.conflict[i] for i in waiting if not math.isnan(trace.conflict[i])]
        found.append(
            Span(token.text, token.label, max(conflicts, default=math.nan), members, waiting[0])
        )
        waiting = []
    return found


def share(conflict: float) -> float:
    """Conflict as a share of the fixed scale, 0 to 1; 0 for calm and for what is not a number."""
    if math.isnan(conflict) or conflict < CALM:
        return 0.0
    return min(conflict / MAX_CONFLICT, 1.0)


def colour(conflict: float) -> str | None:
    """Background for a token, or None: calm tokens stay uncoloured."""
    position = share(conflict) * (len(STOPS) - 1)
    if position == 0:
        return None
    low = min(int(position), len(STOPS) - 2)
    pair = zip(_channels(STOPS[low]), _channels(STOPS[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (position - low)):02x}" for a, b in pair)


def _channels(colour_code: str) -> tuple[int, ...]:
    return tuple(int(colour_code[i : i + 2], 16) for i in (1, 3, 5))


def rivals(token: TokenTrace) -> list[tuple[str, Candidate]]:
    """What each stream would have said instead of the token chosen: (stream, its favourite)."""
    tops = (("context", token.context_top), ("memory", token.memory_top))
    return [(stream, best[0]) for stream, best in tops if best and best[0].id != token.id]


def headline(trace: Trace) -> str:
    """The trace in one sentence."""
    if not trace.tokens:
        return "The answer is empty."
    if not trace.scored:
        return "No conflict was scored."
    known = [span for span in spans(trace) if not math.isnan(span.conflict)]
    if not known:
        return f"No conflict was scored: {CONFLICT_SCORE} is not a number anywhere."
    peak = max(known, key=lambda span: span.conflict)
    scale = f"{CONFLICT_SCORE} {number(peak.conflict)} of at most {number(MAX_CONFLICT)}"
    if peak.conflict < CALM:
        return f"Context and memory agree on every token ({scale})."
    shown = visible(peak.text).strip() or peak.label
    wanted = [
        f'{stream} alone would say "{visible(favourite.text).strip() or favourite.text}" '
        f"({percent(favourite.probability)})"
        for stream, favourite in rivals(peak.tokens[0])
    ]
    return f'Conflict peaks at "{shown}" ({scale})' + "".join(f"; {w}" for w in wanted) + "."


def percent(probability: float) -> str:
    """A probability for people: never 0 % or 100 % unless it is."""
    if math.isnan(probability):
        return number(probability)
    if 0 < probability < 0.01:
        return "<1 %"
    if 0.99 < probability < 1:
        return ">99 %"
    return f"{probability * 100:.0f} %"


def answers(trace: Trace) -> list[tuple[str, str]]:
    """(where it comes from, the answer), for those known, the method's own last."""
    known = {"memory": trace.memory_answer, "plain": trace.plain_answer}
    found = [
        (SOURCES[name], answer)
        for name, answer in known.items()
        if answer is not None and trace.contexts and name != trace.method
    ]
    own = SOURCES.get(trace.method, f"under {trace.method}") if trace.contexts else "from memory"
    return [*found, (own, trace.answer)]


def settings(trace: Trace) -> str:
    """The parameters as `name=value`, in the order given; long ones are cut."""
    return ", ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else shortened(value)}"
        for name, value in trace.params.items()
    )


def streams(trace: Trace) -> tuple[str, ...]:
    """The streams whose candidates were recorded, `context` before `memory`."""
    context = any(token.context_top for token in trace.tokens)
    memory = any(token.memory_top for token in trace.tokens)
    return ("context",) * context + ("memory",) * memory


def top(token: TokenTrace, stream: str) -> tuple[Candidate, ...]:
    """A stream's candidates."""
    return token.context_top if stream == "context" else token.memory_top
