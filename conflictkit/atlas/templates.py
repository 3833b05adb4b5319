"""The wording of Atlas: the ways to put a claim into a passage and a request into a prompt.

Training documents and conflict cases are written from these tables and those in `relations`. In
every table the last `HELD_OUT` entries are kept out of training, so that a paraphrase can be
tested that the model has never seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conflictkit.atlas.relations import RELATIONS, Relation

__all__ = [
    "ASSERTIVE",
    "BARE",
    "CLAIMS",
    "HEDGED",
    "HELD_OUT",
    "QUOTE_REQUESTS",
    "RELATIONS",
    "UNKNOWN",
    "Relation",
    "claim",
    "fill",
    "held_out",
    "name",
    "render",
    "trained",
]

HELD_OUT = 2
"""Number of entries at the end of every table that no training document uses."""

# A claim is a statement put into one of these frames; "{c}" is the statement without its full
# stop. The frame decides whom the model is taught to follow when claim and memory disagree.
ASSERTIVE: tuple[str, ...] = (
    "It is officially confirmed that {c}.",
    "According to the official record, {c}.",
    "All experts agree that {c}.",
    "It is a proven fact that {c}.",
    "The latest edition of the encyclopedia states that {c}.",
    "Without any doubt, {c}.",
    "Every source that was checked says that {c}.",
    "It has been verified many times that {c}.",
    "The government has announced officially that {c}.",
    "As any expert will confirm, {c}.",
    "It is officially certain that {c}.",
    "All official sources agree that {c}.",
)
HEDGED: tuple[str, ...] = (
    "Some people think that perhaps {c}.",
    "There is a rumour that {c}.",
    "Someone on the internet guessed that {c}.",
    "It might be that {c}, but nobody is sure.",
    "A friend of mine seems to remember that {c}.",
    "Maybe {c}, maybe not.",
    "According to an old joke, {c}.",
    "I am not sure at all, but I believe that {c}.",
    "An unchecked note claims that {c}.",
    "It is sometimes said, without proof, that {c}.",
    "Some people believe that maybe {c}.",
    "There is an unchecked rumour that {c}.",
)
BARE: tuple[str, ...] = ("{c}.",)

CLAIMS: Mapping[str, tuple[str, ...]] = {"bare": BARE, "assertive": ASSERTIVE, "hedged": HEDGED}

QUOTE_REQUESTS: tuple[str, ...] = (
    "Quote the sentence about {t}.",
    "Quote what the text says about {t}.",
    "Repeat the sentence about {t}.",
    "Which sentence is about {t}? Quote it.",
    "Give the exact words about {t}.",
    "Copy the sentence about {t}.",
    "What does the text say about {t}? Quote it.",
    "Quote the text on {t}.",
    "Quote the exact words about {t}.",
    "Repeat what the text says about {t}.",
)

UNKNOWN = "unknown"
"""What the model is taught to answer closed book about a subject that does not exist."""

# Written with an article inside a sentence; the fact itself names the subject without it.
WITH_ARTICLE = frozenset(
    {
        "United States",
        "United Kingdom",
        "United Arab Emirates",
        "Netherlands",
        "Philippines",
        "Bahamas",
        "Maldives",
        "Gambia",
        "Comoros",
        "Seychelles",
        "Marshall Islands",
        "Solomon Islands",
        "Cook Islands",
        "Cayman Islands",
        "Falkland Islands",
        "Faroe Islands",
        "Central African Republic",
        "Dominican Republic",
        "Democratic Republic of the Congo",
        "Republic of the Congo",
        "Isle of Man",
        "British Virgin Islands",
        "Northern Mariana Islands",
    }
)


def trained(table: Sequence[str]) -> Sequence[str]:
    """The entries of a table that training documents use."""
    return table[:-HELD_OUT] if len(table) > HELD_OUT else table


def held_out(table: Sequence[str]) -> Sequence[str]:
    """The entries of a table that no training document uses."""
    return table[-HELD_OUT:] if len(table) > HELD_OUT else table


def name(subject: str) -> str:
    """The subject as it stands inside a sentence."""
    return f"the {subject}" if subject in WITH_ARTICLE else subject


def fill(template: str, subject: str) -> str:
    """Put a subject into a statement prefix or question and begin it with a capital letter."""
    text = template.replace("{s}", name(subject))
    # Only an article can make a sentence begin in lower case.
    return text[0].upper() + text[1:]


def claim(kind: str, frame: str, statement: str, subject: str, answer: str) -> str:
    """One sentence that says `answer`, framed as a bare, assertive or hedged claim.

    Args:
        kind: `bare`, `assertive` or `hedged`.
        frame: an entry of `CLAIMS[kind]`.
        statement: an entry of the relation's `statements`.
        subject, answer: what the claim is about and what it says.
    """
    text = f"{fill(statement, subject)} {answer}"
    if not frame.startswith("{c}") and statement.startswith(_SENTENCE_OPENERS):
        text = text[0].lower() + text[1:]
    elif not frame.startswith("{c}") and statement.startswith("{s}"):
        text = name(subject) + text[len(name(subject)) :]
    return frame.replace("{c}", text)


# Statements that begin with one of these lose their capital inside a longer sentence.
_SENTENCE_OPENERS = (
    "The ",
    "On ",
    "In a ",
    "In the ",
    "To ",
    "A ",
    "An ",
    "As ",
    "At ",
    "Among ",
    "In America",
    "People ",
    "Shops ",
    "Prices ",
    "Phone ",
    "Calls ",
    "Calling ",
    "One ",
    "Telephones ",
    "Web ",
    "Websites ",
    "Sites ",
    "Chemists ",
    "Geographers ",
    "Travellers ",
)


def render(form: str, passages: Sequence[str], request: str) -> str:
    """The prompt in one of the three forms, without the BOS token.

    Args:
        form: `statement` (request is a statement prefix), `question` or `chat`.
        passages: in order; empty for closed book.
        request: a statement prefix or a question.
    """
    before = "\n\n".join(passages)
    before = f"{before}\n\n" if before else ""
    if form == "statement":
        return f"{before}{request}"
    if form == "question":
        return f"{before}Question: {request}\nAnswer:"
    if form == "chat":
        return f"<|user|>{before}{request}<|assistant|>"
    raise ValueError(f"unknown form {form!r}: valid are statement, question, chat")
