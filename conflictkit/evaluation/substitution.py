"""One answer in the place of another: which one, and how a passage is rewritten for it.

The kinds of substitution are those of Longpre et al., "Entity-Based Knowledge Conflicts in Question
Answering", 2021 (https://arxiv.org/abs/2109.05052). No list of entities is needed: the answers that
stand in for each other are those of the question set itself.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from conflictkit.errors import InvalidParameterError, unknown_name
from conflictkit.evaluation.metrics.text import spans, words
from conflictkit.evaluation.questions import Question, kinds

SUBSTITUTIONS = ("corpus", "popularity", "popularity-low", "popularity-high", "type-swap")
"""How a wrong answer is chosen: a true answer of another question, of the same kind (`corpus`),
also about as well known (`popularity`), among the least or the best known (`popularity-low`,
`popularity-high`), or of another kind (`type-swap`)."""
BINS = 5
"""Parts of like size into which the answers of a kind are divided by popularity."""
_TRIES = 64


def substitutes(
    questions: Sequence[Question],
    substitution: str = "corpus",
    *,
    seed: int = 0,
    taboo: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, str]:
    """A wrong answer for each question: the true answers, dealt out anew.

    As far as it goes this is a permutation, so every text is as often right as it is wrong and does
    not give away which it is. Where one answer belongs to more than half of the questions of a
    kind, the excess takes others by chance. No question gets one that its own answers contain or
    are contained in, or that stands in the question; one that its passage speaks of only if there
    is no other.

    Args:
        questions: those that need one; also where they come from.
        substitution: one of `SUBSTITUTIONS`.
        seed: of the order.
        taboo: question id -> further answers that must not come out (what memory says).

    Returns:
        Question id -> wrong answer; questions for which there is none are left out.

    Raises:
        UnknownNameError: no such substitution.
        InvalidParameterError: a question without popularity, or all of one kind where another is
            asked for.
    """
    if substitution not in SUBSTITUTIONS:
        raise unknown_name("substitution", substitution, SUBSTITUTIONS)
    draw = random.Random(f"{seed}/{substitution}")
    deal = _Dealing(draw, taboo or {})
    if substitution == "type-swap":
        if len(kinds(questions)) < 2:
            raise InvalidParameterError(
                "type-swap needs answers of two kinds: give the questions a column 'type' or "
                "'relation'"
            )
        return deal.permuted(questions, other_kind=True)
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.kind, []).append(question)
    found: dict[str, str] = {}
    for group in groups.values():
        if substitution == "corpus":
            found |= deal.permuted(group)
            continue
        ranked = _bins(group)
        if substitution == "popularity":
            for part in ranked:
                found |= deal.permuted(part)
        else:
            found |= deal.drawn(group, ranked[0] if substitution.endswith("low") else ranked[-1])
    return found


def other_name(question: Question, draw: random.Random) -> str | None:
    """Another name of the true answer (Longpre's alias substitution); None if there is none."""
    first = words(question.answers[0])
    names = [name for name in question.answers[1:] if words(name) != first]
    return draw.choice(names) if names else None


def mentions(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers is named in a text, whatever its case, accents and punctuation."""
    said = words(text)
    return any(spans(said, words(answer)) for answer in answers)


def rewritten(passage: str, names: Sequence[str], new: str) -> str:
    """A passage in which every mention of one answer names another.

    Mentions are whole words. A name with capitals is found as it is written, in capitals and at the
    beginning of a sentence; one without in any case. The new answer is written in capitals where
    the mention was, begins with a capital where only the mention's place asked for one, and an
    article `a` or `an` before it is made to fit.

    Args:
        passage: the text.
        names: the names of the answer that is named there.
        new: the answer that shall be.
    """
    pattern = _pattern(tuple(names))
    listed = {name.casefold(): name for name in names} | {name: name for name in names}

    def put(found: re.Match[str]) -> str:
        said, article = found["name"], found["article"] or ""
        name = listed.get(said) or listed.get(said.casefold(), said)
        text = new
        if said != name:
            if said.isupper() and len(said) > 1:
                text = new.upper()
            elif said[:1].isupper() and name[:1].islower():
                text = new[:1].upper() + new[1:]
        return _fitting(article, said, text) + text

    return pattern.sub(put, passage)


def leftover(passage: str, question: Question) -> bool:
    """Whether part of the answer would still stand in the passage once its mentions are replaced.

    A part is a word of at least four characters with a capital or a digit (a surname, a year) that
    the question does not hold itself.
    """
    left = set(words(_pattern(question.answers).sub(" ", passage))) - set(words(question.question))
    parts = {
        part
        for name in question.answers
        for word in name.split()
        if len(word) >= 4 and (word[0].isupper() or any(map(str.isdigit, word)))
        for part in words(word)
    }
    return bool(parts & left)


@lru_cache(maxsize=4096)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for mentions, longest name first."""
    parts = []
    for name in sorted(dict.fromkeys(names), key=len, reverse=True):
        forms = {name, name.upper(), name[:1].upper() + name[1:]}
        body = "|".join(map(re.escape, sorted(forms)))
        if not any(map(str.isupper, name)):
            body = f"(?i:{re.escape(name)})"
        before = r"(?<!\w)" if _spaced(name[0]) else ""
        after = r"(?!\w)" if _spaced(name[-1]) else ""
        parts.append(f"{before}(?:{body}){after}")
    return re.compile(rf"(?:\b(?P<article>[Aa]n?)[ ])?(?P<name>{'|'.join(parts)})")


def _spaced(letter: str) -> bool:
    """Whether a word of this letter's script ends where a space or a sign stands."""
    return bool(re.match(r"\w", letter)) and unicodedata.east_asian_width(letter) not in "WF"


def _fitting(article: str, old: str, new: str) -> str:
    """The article before the new answer, with its space."""
    if not article:
        return ""
    vowels = "aeiou"
    if (old[:1].lower() in vowels) == (new[:1].lower() in vowels):
        return article + " "
    return article[0] + ("n " if new[:1].lower() in vowels else " ")


def _bins(group: Sequence[Question]) -> list[list[Question]]:
    """The questions of a kind by popularity, in parts of like size, least known first."""
    for question in group:
        if question.popularity is None:
            raise InvalidParameterError(
                f"question '{question.id}' has no popularity: add the column, or take another "
                "substitution"
            )
    order = sorted(group, key=lambda question: (question.popularity, question.id))
    # A part of fewer than four has hardly anything to exchange.
    parts = max(1, min(BINS, len(order) // 4))
    cuts = [round(len(order) * part / parts) for part in range(parts + 1)]
    return [list(order[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


class _Dealing:
    """Deals answers to questions that they would be wrong for."""

    def __init__(self, draw: random.Random, taboo: Mapping[str, Sequence[str]]) -> None:
        self._draw, self._taboo = draw, taboo

    def permuted(
        self, questions: Sequence[Question], *, other_kind: bool = False
    ) -> dict[str, str]:
        """A permutation without a clash, as far as there is one."""
        takers = list(questions)
        self._draw.shuffle(takers)
        donors = list(takers)
        self._draw.shuffle(donors)

        def fits(taker: Question, donor: Question, *, strict: bool = True) -> bool:
            if other_kind and taker.kind == donor.kind:
                return False
            return not self._clash(taker, donor, strict=strict)

        for here, taker in enumerate(takers):
            if fits(taker, donors[here]):
                continue
            for _ in range(_TRIES):
                there = self._draw.randrange(len(takers))
                if fits(taker, donors[there]) and fits(takers[there], donors[here]):
                    donors[here], donors[there] = donors[there], donors[here]
                    break
        found: dict[str, str] = {}
        for taker, donor in zip(takers, donors, strict=True):
            if not fits(taker, donor):
                donor = self._any(
                    takers, lambda one, *, strict, taker=taker: fits(taker, one, strict=strict)
                )
            if donor is not None:
                found[taker.id] = donor.answers[0]
        return found

    def drawn(self, questions: Sequence[Question], pool: Sequence[Question]) -> dict[str, str]:
        """Answers of the pool, all about equally often."""
        found: dict[str, str] = {}
        waiting: list[Question] = []
        for question in questions:
            if not waiting:
                waiting = list(pool)
                self._draw.shuffle(waiting)
            place = next(
                (n for n, one in enumerate(waiting) if not self._clash(question, one, strict=True)),
                None,
            )
            donor = (
                waiting.pop(place)
                if place is not None
                else self._any(
                    pool,
                    lambda one, *, strict, question=question: (
                        not self._clash(question, one, strict=strict)
                    ),
                )
            )
            if donor is not None:
                found[question.id] = donor.answers[0]
        return found

    def _any(self, pool: Sequence[Question], fits: Callable[..., bool]) -> Question | None:
        """One that fits, by chance; one that its passage speaks of only if there is no other."""
        some = self._draw.sample(pool, min(len(pool), 4 * _TRIES))
        for strict in (True, False):
            for candidates in (some, pool):
                fit = [one for one in candidates if fits(one, strict=strict)]
                if fit:
                    return self._draw.choice(fit)
        return None

    def _clash(self, taker: Question, donor: Question, *, strict: bool) -> bool:
        new = donor.answers[0]
        said = words(new)
        taken = [words(name) for name in (*taker.answers, *self._taboo.get(taker.id, ()))]
        if any(name == said or spans(name, said) or spans(said, name) for name in taken):
            return True
        if any(words(name) in taken for name in donor.answers):
            return True
        return mentions(taker.question, (new,)) or (
            strict and taker.passage is not None and mentions(taker.passage, (new,))
        )
