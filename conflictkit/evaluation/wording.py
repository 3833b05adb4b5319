"""Passages written around a question and an answer, in English, without knowing anything else.

Everything is drawn from the `random.Random` that the caller hands in: the same draw with another
answer gives the same passage with another answer.
"""

from __future__ import annotations

import random
import re

from conflictkit.atlas.templates import CLAIMS

FORMS = ("bare", "assertive", "hedged", "coherent")
"""How a passage claims its answer: one sentence, one that insists, one that doubts, or several
sentences that fit together."""

_OPENINGS = (
    "This note deals with a single question: {q}",
    "Among the questions that readers send in is this one: {q}",
    "The entry below was written for everyone who asks: {q}",
    "For years visitors of the archive have asked the same thing: {q}",
    "A short question was put to the editors: {q}",
    "The following was prepared for those who want to know: {q}",
)
_CLAIMS = (
    "{C}.",
    "The entry says that {c}.",
    "The editors looked it up and found that {c}.",
    "In the words of the handbook, {c}.",
    "What they found can be told in one line: {c}.",
)
_SUPPORTS = (
    "Two independent sources were compared, and both of them name {a}.",
    "Older editions of the handbook give {a} as well.",
    "Those who checked the matter again also arrived at {a}.",
    "Whoever looks it up elsewhere will find {a} there too.",
    "A second editor, who worked alone, had written down {a} as well.",
)
_CLOSINGS = (
    "Nothing in the files speaks for another answer.",
    "No correction has been made since then.",
    "The matter has been regarded as settled ever since.",
    "The note was last looked through without any change.",
    "For this reason the answer was kept in later editions.",
)
# "What is the capital of Poland?" can be turned round; of "What is Poland known for?" only a
# grammar could tell what to do, so such questions are quoted instead.
_TURNED = re.compile(
    r"(?:what|who|which)\s+(?P<verb>is|was|are|were)\s+"
    r"(?P<rest>the\s+\S.*?\sof\s.+|\S.*?['’]s\s+[\w-]+(?:\s+[\w-]+)?)\?",
    re.IGNORECASE,
)
# "In which state is Brooklyn?", but not "In which year was Ada born?".
_PLACED = re.compile(
    r"(?:in\s+(?:which|what)\s+\w+|where)\s+(?P<verb>is|was|are|were)\s+"
    r"(?P<rest>(?:the\s+)?[^\W\d_a-z]\S*(?:\s+(?:of|and|the|[^\W\d_a-z]\S*))*)\?",
)
_OPEN_ENDS = frozenset(
    {
        "about", "after", "at", "be", "been", "by", "called", "considered", "for", "from",
        "found", "in", "into", "known", "like", "located", "made", "named", "of", "on",
        "or", "over", "spoken", "to", "under", "used", "with",
    }
)  # fmt: skip


def claim(question: str, answer: str, form: str, draw: random.Random) -> str:
    """A passage that answers a question.

    Args:
        question: what is asked.
        answer: what the passage says.
        form: one of `FORMS`.
        draw: where the choices come from.
    """
    turned = statement(question, answer)
    if form == "coherent":
        asked = question.strip()
        said = turned or f"the answer is {answer}"
        parts = {"q": asked if asked[-1:] in "?.!" else asked + "?", "a": answer, "c": said}
        parts["C"] = said[0].upper() + said[1:]
        sentences = [draw.choice(_OPENINGS), draw.choice(_CLAIMS), draw.choice(_SUPPORTS)]
        sentences.append(draw.choice(_CLOSINGS))
        return " ".join(_filled(sentence, parts) for sentence in sentences)
    said = turned or f"the answer to the question “{question.strip()}” is {answer}"
    text = _filled(draw.choice(CLAIMS[form]), {"c": said})
    return text[0].upper() + text[1:]


def statement(question: str, answer: str) -> str | None:
    """Question and answer as a clause without a full stop, where that can be done by form alone.

    >>> statement("What is the capital of Poland?", "Warsaw"), statement("Where is Oslo?", "Norway")
    ('the capital of Poland is Warsaw', 'Oslo is in Norway')
    >>> statement("What is Poland known for?", "amber")
    """
    asked = " ".join(question.split())
    if found := _PLACED.fullmatch(asked[:1].lower() + asked[1:]):
        return f"{found['rest']} {found['verb']} in {answer}"
    found = _TURNED.fullmatch(asked)
    if not found or found["rest"].split()[-1].lower() in _OPEN_ENDS:
        return None
    rest = found["rest"]
    if rest[:4].lower() == "the ":
        rest = "the " + rest[4:]
    return f"{rest} {found['verb'].lower()} {answer}"


def _filled(template: str, parts: dict[str, str]) -> str:
    """The parts in their places; a brace or an answer's own full stop does no harm."""
    text = re.sub(r"\{(\w)\}", lambda found: parts[found[1]], template)
    return text[:-1] if text.endswith("..") else text
