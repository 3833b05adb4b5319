"""Contexts for a question: passages that are right, wrong, doubtful, or about something else.

Nothing outside the question set is needed: wrong answers are answers of other questions
(`conflictkit.evaluation.substitution`), passages are those of the questions with every mention of
the answer replaced, or written around question and answer (`conflictkit.evaluation.wording`), and
irrelevant passages are those of other questions. The kinds of context are those of KAFT (Li et al.,
"Large Language Models with Controllable Working Memory", 2022, https://arxiv.org/abs/2211.05110).

>>> from conflictkit.evaluation.build import Builder
>>> from conflictkit.evaluation.questions import Question
>>> poland = Question("1", "What is the capital of Poland?", ("Warsaw",), relation="capital",
...                   passage="Warsaw lies on the Vistula. WARSAW is the capital of Poland.")
>>> norway = Question("2", "What is the capital of Norway?", ("Oslo",), relation="capital")
>>> builder = Builder([poland, norway])
>>> builder.claim(poland, "Oslo", "coherent").text
'Oslo lies on the Vistula. OSLO is the capital of Poland.'
>>> builder.claim(norway, "Warsaw", "bare").text
'The capital of Norway is Warsaw.'
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from conflictkit.errors import InvalidParameterError, unknown_name
from conflictkit.evaluation.metrics.text import words
from conflictkit.evaluation.questions import Question
from conflictkit.evaluation.substitution import leftover, mentions, rewritten
from conflictkit.evaluation.wording import FORMS, claim

_TRIES = 50
_RARE = 8
_POSTINGS = 500
# Words that say nothing of what a question is about.
_COMMON = frozenset(
    {
        "a", "about", "an", "and", "are", "at", "be", "by", "can", "did", "do", "does",
        "for", "from", "had", "has", "have", "how", "in", "is", "it", "its", "many", "me",
        "much", "name", "of", "on", "or", "tell", "that", "the", "their", "there", "they",
        "this", "to", "was", "were", "what", "when", "where", "which", "who", "whom",
        "whose", "why", "will", "with", "you", "your",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Passage:
    """One passage.

    Attributes:
        text: what it says.
        given: whether it is a passage of the question set, rewritten or not, and not a written one.
        answer: what it answers; None: it does not answer the question.
    """

    text: str
    given: bool
    answer: str | None


class Builder:
    """Passages for the questions of one set.

    The same seed gives the same passages, whatever else is built. For one question and form the
    passages for two answers differ in the answer alone.

    Args:
        questions: the set; a question's id decides its draws.
        seed: of all draws.
    """

    def __init__(self, questions: Sequence[Question], *, seed: int = 0) -> None:
        self.questions = tuple(questions)
        self._seed = seed
        self._usable: dict[str, bool] = {}
        self._topics: dict[str, frozenset[str]] = {}

    def claim(self, question: Question, answer: str, form: str, *, variant: int = 0) -> Passage:
        """A passage that answers the question.

        Args:
            question: one of the set.
            answer: what the passage says, right or wrong.
            form: `bare`, `assertive`, `hedged` or `coherent`. Coherent passages are the question's
                own with every mention of the answer replaced, if it has one that allows it: it
                names the answer, and no part of it is left over.
            variant: 0, or the number of a further passage, which is always written.

        Raises:
            UnknownNameError: no such form.
        """
        if form not in FORMS:
            raise unknown_name("form of a passage", form, FORMS)
        if form == "coherent" and variant == 0 and (own := self._own(question)) is not None:
            # The true answer leaves its passage as it is, whichever of its names stand there.
            true = answer == question.answers[0]
            text = own if true else rewritten(own, question.answers, answer)
            return Passage(text, True, answer)
        draw = self.draw(question, form, variant)
        return Passage(claim(question.question, answer, form, draw), False, answer)

    def several(
        self, question: Question, right: str, wrong: str, *, count: int = 4, wrong_share: float
    ) -> tuple[Passage, ...]:
        """Several coherent passages of which a share is wrong, in an order drawn by the seed.

        Args:
            question: one of the set.
            right, wrong: the two answers.
            count: number of passages, at least 2.
            wrong_share: share of wrong ones, from 0 to 1; rounded to whole passages.

        Raises:
            InvalidParameterError: see `wrong_of`.
        """
        bad = wrong_of(count, wrong_share)
        draw = self.draw(question, "several", count, wrong_share)
        answers = [wrong] * bad + [right] * (count - bad)
        draw.shuffle(answers)
        # One of them may be the question's own passage: no other says it again.
        own = draw.randrange(count)
        made: list[Passage] = []
        for place, answer in enumerate(answers):
            variant = 0 if place == own else 1 + place * _TRIES
            passage = self.claim(question, answer, "coherent", variant=variant)
            while any(passage.text == other.text for other in made):
                variant += 1
                passage = self.claim(question, answer, "coherent", variant=variant)
            made.append(passage)
        return tuple(made)

    def irrelevant(
        self, question: Question, *, hard: bool, avoid: Sequence[str] = ()
    ) -> Passage | None:
        """A passage that does not answer the question: another question's.

        Args:
            question: one of the set.
            hard: one that looks alike (of the same relation, or as many words in common as can be)
                instead of one about something else (of another relation or kind).
            avoid: further answers that it must not name (what memory says), beside the true ones.

        Returns:
            The passage; None: there is none.
        """
        names = (*question.answers, *avoid)
        for other in self._alike(question) if hard else self._unlike(question):
            passage = self.claim(other, other.answers[0], "coherent")
            if not mentions(passage.text, names):
                return Passage(passage.text, passage.given, None)
        return None

    def _own(self, question: Question) -> str | None:
        """The question's passage, if its answer can be replaced in it."""
        text = question.passage
        if text is None:
            return None
        if question.id not in self._usable:
            named = rewritten(text, question.answers, "") != text
            self._usable[question.id] = named and not leftover(text, question)
        return text if self._usable[question.id] else None

    def draw(self, question: Question, *what: object) -> random.Random:
        """A source of chance of a question's own, for one purpose."""
        return random.Random("/".join(map(str, (self._seed, question.id, *what))))

    def _unlike(self, question: Question) -> Iterator[Question]:
        """Some about something else, in an order drawn by the seed."""
        draw, mine = self.draw(question, "easy"), self._topic(question)
        group = _group(question)
        # Where all are of one group, those without a word in common are about something else.
        some_differ = len(self._groups) > 1
        order = draw.sample(range(len(self.questions)), len(self.questions))
        apart = (
            self.questions[place]
            for place in order
            if not (some_differ and place in self._groups[group])
            and not self._topic(self.questions[place]) & mine
        )
        return itertools.islice(apart, _TRIES)

    def _alike(self, question: Question) -> list[Question]:
        """Those most alike: of the same relation first, then by rare words in common, then by the
        seed, lest one passage serve for all."""
        draw = self.draw(question, "hard")
        mine = sorted(self._topic(question), key=lambda word: (len(self._places[word]), word))
        scores: dict[int, float] = defaultdict(float)
        for word in mine[:_RARE]:
            places = self._places[word]
            for place in _some(draw, places):
                scores[place] += math.log(1 + len(self.questions) / len(places))
        if question.relation:
            same = self._relations[question.relation]
            for place in _some(draw, same):
                scores[place] += 0.0
        order = sorted(scores)
        draw.shuffle(order)
        order.sort(
            key=lambda place: (self.questions[place].relation != question.relation, -scores[place])
        )
        return [self.questions[n] for n in order if self.questions[n].id != question.id][:_TRIES]

    def _topic(self, question: Question) -> frozenset[str]:
        """The words that say what it is about."""
        if question.question not in self._topics:
            self._topics[question.question] = frozenset(words(question.question)) - _COMMON
        return self._topics[question.question]

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for place, question in enumerate(self.questions):
            for word in self._topic(question):
                found[word].append(place)
        return found

    @cached_property
    def _relations(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for place, question in enumerate(self.questions):
            found[question.relation].append(place)
        return found

    @cached_property
    def _groups(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = defaultdict(set)
        for place, question in enumerate(self.questions):
            found[_group(question)].add(place)
        return found


def _some(draw: random.Random, places: Sequence[int]) -> Sequence[int]:
    return draw.sample(places, _POSTINGS) if len(places) > _POSTINGS else places


def wrong_of(count: int, share: float) -> int:
    """How many of several passages are wrong.

    Raises:
        InvalidParameterError: fewer than two passages, or a share outside 0 to 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= _TRIES:
        raise InvalidParameterError(f"several passages are 2 to {_TRIES} of them, not {count!r}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise InvalidParameterError(f"a share of wrong passages is from 0 to 1, not {share!r}")
    return math.floor(count * share + 0.5)


def _group(question: Question) -> str:
    return question.relation or question.kind
