"""What page and terminal have in common about passages: their marks, and the story in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from conflictkit.trace.layout import percent
from conflictkit.trace.passages import CONTRADICTION, MEMORY, AnswerPassages, TokenPassages, Widest
from conflictkit.trace.record import CALM, CONFLICT_SCORE, MAX_CONFLICT, Trace
from conflictkit.trace.text import clip, number, visible

COLOURS = ("#2f6fb0", "#a8620f", "#2f7d43", "#b8405f", "#6a5fc1", "#6d7515")
"""Of the passages, in turn; the number beside it tells those of one colour apart. White text on
each has a contrast of at least 4.5, and each shows on black and on white."""

NAMED = 6
"""Most sources that a sentence names one by one."""

GROUPS = 3
"""Most answers that a sentence spells out."""


def mark(name: str) -> str:
    """A source in as few letters as possible: the passage's number, or `mem`."""
    return "mem" if name == MEMORY else name.rpartition(" ")[2]


def colour_of(name: str) -> str | None:
    """A passage's colour; None for memory, which has its own."""
    return None if name == MEMORY else COLOURS[(int(mark(name)) - 1) % len(COLOURS)]


def marks(names: Sequence[str]) -> str:
    """Several sources: `1`, `1=3` where they tie, or a dash for nobody."""
    if len(names) > 3:
        return f"{mark(names[0])}={mark(names[1])}+{len(names) - 2}"
    return "=".join(mark(name) for name in names) or "–"


def sentences(trace: Trace) -> list[str]:
    """Whom the answer follows, who contradicts whom, and where memory stands."""
    found = trace.passages
    if found is None:
        return []
    told = [_followed(found)]
    between = found.passages_apart
    if between is not None:
        told.append(_apart(trace, between))
    if between is None or between.jsd < CONTRADICTION:
        # What each would say at a token is told once.
        again = (
            between is not None
            and between.jsd >= CALM
            and between.token == found.memory_apart.token
        )
        told.append(_apart(trace, found.memory_apart, spell=not again))
    if found.memory_sides_with and between is not None and between.jsd >= CALM:
        told.append(f"Memory sides with {listed(found.memory_sides_with)}.")
    return told


def listed(names: Sequence[str]) -> str:
    """Sources in a sentence: `passages 1, 2 and 5 and memory`."""
    passages = [mark(name) for name in names if name != MEMORY]
    if len(passages) > NAMED:
        passages = [*passages[: NAMED - 1], f"{len(passages) - NAMED + 1} more"]
    parts = []
    if passages:
        parts.append(("passage " if len(passages) == 1 else "passages ") + _joined(passages))
    if MEMORY in names:
        parts.append(MEMORY)
    return " and ".join(parts)


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def mean(logprob: float, tokens: int) -> float:
    """Geometric mean of the tokens' probabilities: comparable between answers of any length."""
    return math.exp(logprob / tokens)


def _followed(found: AnswerPassages) -> str:
    if set(found.follows) == set(found.names):
        return "The answer is much the same under every passage and from memory."
    rates = [percent(mean(value, found.total)) for value in found.logprobs]
    place = found.logprobs.index(max(found.logprobs))
    facts = [f"{rates[place]} per token with it"]
    if MEMORY not in found.follows:
        facts.append(f"{rates[0]} from memory")
    if len(found.follows) > 1:
        facts[0] = f"{rates[place]} per token with {listed((found.names[place],))}"
    elif found.follows == (MEMORY,):
        best = found.logprobs.index(max(found.logprobs[1:]), 1)
        facts = [f"{rates[0]} per token", f"{rates[best]} with {listed((found.names[best],))}"]
    return f"The answer follows {listed(found.follows)} ({', '.join(facts)})."


def _apart(trace: Trace, widest: Widest, *, spell: bool = True) -> str:
    one, other = widest.between
    scale = f"{CONFLICT_SCORE} {number(widest.jsd)} of at most {number(MAX_CONFLICT)}"
    of_passages = MEMORY not in widest.between
    if widest.jsd < CALM:
        if of_passages:
            return f"The passages agree with one another on every token ({scale})."
        return f"Passages and memory agree on every token ({scale})."
    pair = listed((one, other))
    pair = pair[0].upper() + pair[1:]
    mutual = "contradict each other" if of_passages else "contradict"
    verb = mutual if widest.jsd >= CONTRADICTION else "differ most"
    if not of_passages and widest.jsd >= CONTRADICTION:
        pair, verb = pair.replace(" and memory", ""), "contradicts memory"
    text = f'{pair} {verb} at "{said(trace, widest.token)}" ({scale})'
    token = trace.tokens[widest.token].passages
    if token is None or not spell:
        return f"{text}."
    return f"{text}: {wanted(token, widest.between)}."


def said(trace: Trace, place: int) -> str:
    """A token of the answer, to be named in a sentence."""
    token = trace.tokens[place]
    return clip(visible(token.text).strip() or token.label, 24)


def wanted(token: TokenPassages, first: Sequence[str]) -> str:
    """What each source would have said: `passage 1 would say "x", passage 2 and memory "y"`; the
    sources `first` before the others, then what most would say."""
    groups: dict[int, list[str]] = {}
    texts: dict[int, str] = {}
    for place in [*range(1, len(token.names)), 0]:
        if token.tops[place]:
            best = token.tops[place][0]
            groups.setdefault(best.id, []).append(token.names[place])
            texts[best.id] = clip(visible(best.text).strip() or visible(best.text, spaces=True), 24)

    def rank(key: int) -> tuple[int, int]:
        named = [place for place, name in enumerate(first) if name in groups[key]]
        return min(named, default=len(first)), -len(groups[key])

    order = sorted(groups, key=rank)
    parts = [f'{listed(groups[key])} "{texts[key]}"' for key in order]
    if len(parts) == 1:
        return f'all would most likely say "{texts[order[0]]}"'
    if len(parts) > GROUPS + 1:
        parts = [*parts[:GROUPS], f"{len(parts) - GROUPS} other answers"]
    return parts[0].replace(' "', ' would say "', 1) + "".join(f", {part}" for part in parts[1:])
