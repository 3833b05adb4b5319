"""Conflict cases as token ids: a prompt, the two answers' first tokens, and two corrupted prompts.

Path patching asks what a head would have written had the model been unable to recall the memory
answer, or to read the context's. Both corrupted prompts have the same tokens as the prompt except
for one name, and as many of them:

    no memory:  the subject is another one of the same relation, in the question and the context
    no context: the context says another answer of the same relation

The names come from the cases that are given, next in the alphabet after the one replaced, round and
round: the same cases give the same items, and no single name serves for all.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from conflictkit.errors import BoundaryError, ContextTooLongError
from conflictkit.evaluation.asking import CASE_ERRORS
from conflictkit.prompts import Prompt, answer_ids
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

NO_CONFLICT = "no conflict: the context does not give another answer than memory"
FIXED = "the case fixes its prompt, so the context cannot be told apart in it"
NOT_ASKED = "the model cannot be asked it"
SHARED = "both answers begin with the same token"
NO_SUBJECT = "no other subject of the relation fits"
NO_ANSWER = "no other answer of the relation fits"


@dataclass(frozen=True)
class Item:
    """One conflict, ready to be analysed.

    Attributes:
        ids: the prompt with the context.
        context_id, memory_id: first tokens of the two answers, as they stand behind the prompt.
        span: `(start, stop)`, the half-open span of `ids` that holds the context.
        no_memory: as many ids, about another subject; None: there is no such prompt.
        no_context: as many ids, the context giving a third answer; None: there is no such prompt.
        case_id, relation: of the case.
        answer: the context's answer behind the prompt, whole.
    """

    ids: tuple[int, ...]
    context_id: int
    memory_id: int
    span: tuple[int, int]
    no_memory: tuple[int, ...] | None = None
    no_context: tuple[int, ...] | None = None
    case_id: str = ""
    relation: str = ""
    answer: tuple[int, ...] = ()


def build(
    model: Model, cases: Sequence[Case], *, require_corrupted: bool = False, **wording: Any
) -> tuple[list[Item], dict[str, int]]:
    """Items of all cases that can be analysed, in their order.

    Args:
        model: whose tokenizer and prompt form are used.
        cases: conflict cases; they also provide the names for corrupted prompts, so more of a
            relation give more items.
        require_corrupted: leave out a case that lacks one of the corrupted prompts.
        wording: arguments of `Model.prompts` (`chat`, `template`).

    Returns:
        The items, and why cases were left out -> how many.
    """
    pools: dict[str, _Pool] = defaultdict(lambda: _Pool(model))
    for case in cases:
        pools[case.relation].add(case)
    items: list[Item] = []
    dropped: Counter[str] = Counter()
    for case in cases:
        made = _item(model, case, pools[case.relation], require_corrupted, wording)
        if isinstance(made, Item):
            items.append(made)
        else:
            dropped[made] += 1
    return items, dict(dropped)


def gives_another(case: Case) -> bool:
    """Whether the context gives an answer, and none of those that memory gives."""
    memory, said = (set(map(_plain, one)) for one in (case.memory_answers, case.context_answers))
    return bool(memory and said) and not memory & said


def _item(
    model: Model, case: Case, pool: _Pool, require_corrupted: bool, wording: Mapping[str, Any]
) -> Item | str:
    """The item, or why there is none."""
    if not gives_another(case):
        return NO_CONFLICT
    if case.prompt is not None:
        return FIXED
    if not case.contexts:
        return NO_CONFLICT
    asked = _Asked(model, case, wording)
    try:
        prompt = asked.prompt(case.question, case.contexts)
        answer = asked.answer(case.context_answers[0])
        first = {"m": asked.first(case.memory_answers[0]), "c": answer[0]}
    except CASE_ERRORS:
        return NOT_ASKED
    if first["m"] == first["c"]:
        return SHARED
    taken = set(first.values())
    no_memory = asked.corrupted(prompt, pool.other_subjects(asked, taken))
    no_context = asked.corrupted(prompt, pool.other_answers(asked, taken))
    if require_corrupted and no_memory is None:
        return NO_SUBJECT
    if require_corrupted and no_context is None:
        return NO_ANSWER
    return Item(
        prompt.ids, first["c"], first["m"], prompt.context, no_memory, no_context, case.id,
        case.relation, answer,
    )  # fmt: skip


_Texts = tuple[str, tuple[str, ...]]
"""A question and its contexts."""


@dataclass(frozen=True)
class _Asked:
    """One case, and how a model is asked about it."""

    model: Model
    case: Case
    wording: Mapping[str, Any]

    @cached_property
    def text(self) -> str:
        return "\n".join((self.case.question, *self.case.contexts))

    def prompt(self, question: str, contexts: Sequence[str]) -> Prompt:
        return self.model.prompts(question, list(contexts), **self.wording)["context"]

    def answer(self, text: str) -> tuple[int, ...]:
        """Tokens of an answer behind the prompt."""
        form = {name: self.wording.get(name) for name in ("chat", "template")}
        return answer_ids(self.model.tokenizer, self.case.question, text, **form)

    def first(self, answer: str) -> int:
        """First of them."""
        return self.answer(answer)[0]

    def corrupted(self, prompt: Prompt, texts: Iterator[_Texts]) -> tuple[int, ...] | None:
        """The first of the texts that reads like the prompt, token for token in length."""
        for question, contexts in texts:
            try:
                other = self.prompt(question, contexts)
            except (BoundaryError, ContextTooLongError):
                continue
            if len(other.ids) == len(prompt.ids) and other.context == prompt.context:
                return other.ids
        return None


@dataclass
class _Pool:
    """Names that the cases of one relation mention."""

    model: Model
    subjects: dict[str, set[str]] = field(default_factory=dict)  # subject -> what memory says
    answers: set[str] = field(default_factory=set)
    _tokens: dict[str, int] = field(default_factory=dict)

    def add(self, case: Case) -> None:
        if case.memory_answers:
            self.subjects.setdefault(case.subject, set()).update(case.memory_answers)
        self.answers.update(case.memory_answers[:1], case.context_answers[:1])

    def other_subjects(self, asked: _Asked, taken: set[int]) -> Iterator[_Texts]:
        """The case about other subjects, whose own answers are neither of the two."""
        case = asked.case
        pattern = _word(case.subject)
        if not pattern.search(case.question):
            return
        said = case.context_answers[0]
        both = {_plain(one) for one in (*case.memory_answers, *case.context_answers)}
        kept = len(_word(said).findall(asked.text))
        for name in self._like(case.subject, sorted(self.subjects), asked.text):
            answers = self.subjects[name]
            if both & set(map(_plain, answers)) or taken & set(map(asked.first, answers)):
                continue
            texts = _replaced(case, pattern, name, question=True)
            # The context must go on saying what it says.
            if len(_word(said).findall("\n".join((texts[0], *texts[1])))) == kept:
                yield texts

    def other_answers(self, asked: _Asked, taken: set[int]) -> Iterator[_Texts]:
        """The case with another answer in the context."""
        case = asked.case
        said = case.context_answers[0]
        pattern = _word(said)
        if not any(map(pattern.search, case.contexts)) or pattern.search(case.question):
            return
        subject = _word(case.subject)
        kept = len(subject.findall(asked.text))
        both = {_plain(one) for one in (*case.memory_answers, *case.context_answers, case.subject)}
        for name in self._like(said, sorted(self.answers), asked.text):
            if _plain(name) in both or asked.first(name) in taken:
                continue
            texts = _replaced(case, pattern, name, question=False)
            if len(subject.findall("\n".join((texts[0], *texts[1])))) == kept:
                yield texts

    def _like(self, name: str, names: Sequence[str], text: str) -> Iterator[str]:
        """Other names of as many tokens that the text does not mention, from the next one on.

        (How many they have in the prompt is looked at later; this saves making it.)
        """
        start = bisect_right(names, name)
        for other in (*names[start:], *names[:start]):
            if other != name and self._count(other) == self._count(name) and other not in text:
                yield other

    def _count(self, name: str) -> int:
        if name not in self._tokens:
            ids = self.model.tokenizer(" " + name, add_special_tokens=False)["input_ids"]
            self._tokens[name] = len(ids)
        return self._tokens[name]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _word(name: str) -> re.Pattern[str]:
    """A name where it is no part of a longer word."""
    before = r"(?<!\w)" if name[:1].isalnum() else ""
    after = r"(?!\w)" if name[-1:].isalnum() else ""
    return re.compile(before + re.escape(name) + after)


def _replaced(case: Case, pattern: re.Pattern[str], name: str, *, question: bool) -> _Texts:
    put: Callable[[str], str] = lambda text: pattern.sub(lambda _: name, text)  # noqa: E731
    return (
        put(case.question) if question else case.question,
        tuple(put(context) for context in case.contexts),
    )
