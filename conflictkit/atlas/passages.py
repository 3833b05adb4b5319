"""Passages around a claim: one sentence, a coherent paragraph, or several passages.

Everything is drawn from the `random.Random` that the caller hands in, so a seed gives a text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from conflictkit.atlas.templates import CLAIMS, RELATIONS, claim, fill, trained

# Sentences without any fact that Atlas is asked about.
FILLERS: dict[str, tuple[str, ...]] = {
    "place": (
        "{s} is described in many books for travellers.",
        "Those who come to {s} often speak of the weather and the food.",
        "In spring the markets are full of flowers, bread and fruit.",
        "The old roads were built long ago and are still used every day.",
        "Writers have called {s} a quiet place with a long memory.",
        "Many families have lived here for longer than anyone can say.",
        "There are schools, gardens and a small museum of old tools.",
        "In the evening people walk through the streets and talk.",
        "The history of {s} is told in songs as well as in letters.",
        "Rain falls in autumn, and the summers are warm and dry.",
        "A painter once spent a year in {s} and drew every bridge.",
        "The trains are slow, but they arrive on most days.",
        "Visitors are surprised by how friendly the people of {s} are.",
        "Some of the houses are made of stone and some are made of wood.",
        "Music is heard from open windows on warm nights.",
        "Maps of {s} were once drawn by hand and coloured with care.",
        "The river is low in summer and high after the snow has melted.",
        "Children learn the old stories before they learn to read.",
        "Every year there is a fair with horses, lamps and sweet cakes.",
        "Students from other places come to {s} to learn its songs.",
        "The newspapers report on football, on the harvest and on the trains.",
        "A letter from {s} used to travel for several weeks.",
        "On holidays the shops are closed and the squares are full.",
        "Much has been written about {s}, and not all of it was true.",
    ),
    "element": (
        "{s} is described in every book of chemistry.",
        "Students meet {s} in one of their first lessons.",
        "A sample is kept in a glass case with a small printed card.",
        "The early workers wrote their notes by hand and lost many of them.",
        "For a long time nobody could tell it apart from its neighbours.",
        "The study of {s} needed patience and very clean vessels.",
        "Letters between two laboratories tell how the work went on.",
        "Under a lamp the sample shows a faint line of colour.",
        "Some of the old names for {s} are no longer in use.",
        "In the museum a drawer holds the first balance that was used.",
        "Heat changes it slowly, and cold hardly changes it at all.",
        "The teacher of chemistry likes to begin the year with {s}.",
        "There are songs in which all of the elements are named in a row.",
        "Much care is taken when it is weighed and when it is stored.",
        "A short history of {s} was printed for the use of schools.",
        "The work was slow, and the first results were not believed.",
        "Those who study {s} must keep exact records of what they see.",
        "Pure samples are rare and are sent from one laboratory to another.",
        "A chart on the wall shows how the properties change along a row.",
        "Many questions about {s} are still asked in examinations.",
        "The glass was made by hand and broke more often than it lasted.",
        "At the end of the day the results were copied into a large book.",
    ),
}


def paragraph(rng: random.Random, kind: str, subject: str, sentence: str, sentences: int) -> str:
    """A paragraph about `subject` with `sentence` at a place drawn at random, never first.

    Args:
        rng: where the choices come from.
        kind: `place` or `element`.
        subject: what the filler is about.
        sentence: the claim.
        sentences: number of filler sentences, at most 22.
    """
    pool = FILLERS[kind]
    about = [t for t in pool if "{s}" in t]
    # The first sentence names the subject: the rest refers to it.
    first = rng.choice(about)
    rest = rng.sample([t for t in pool if t != first], sentences - 1)
    lines = [fill(t, subject) for t in (first, *rest)]
    lines.insert(rng.randint(1, len(lines)), sentence)
    return " ".join(lines)


def statement_of(
    rng: random.Random, relation: str, subject: str, answer: str, kind: str, *, held: bool = False
) -> str:
    """One claim sentence of the given kind, in a wording drawn at random.

    Args:
        rng: where the choices come from.
        relation, subject, answer: what is claimed.
        kind: `bare`, `assertive` or `hedged`.
        held: draw from all wordings instead of those that training uses.
    """
    frames, statements = CLAIMS[kind], RELATIONS[relation].statements
    if not held:
        frames, statements = trained(frames), trained(statements)
    return claim(kind, rng.choice(frames), rng.choice(statements), subject, answer)


def among(rng: random.Random, passage: str, others: Sequence[str]) -> tuple[str, ...]:
    """The passage and others, the passage at a place drawn at random."""
    passages = list(others)
    passages.insert(rng.randint(0, len(passages)), passage)
    return tuple(passages)
