"""Tri-state cases for any model from any question set: ask it closed book, then build conflicts.

What a model's memory says decides what a passage does to it. Where memory is `right`, a right
passage makes a case of agreement, a wrong one a case of resistance, and one about something else an
irrelevant one; where memory is `wrong`, a right passage makes a case of correction. Questions of
which the model is `uncertain` make none. The split is that of TriState-Bench (Jiang et al. 2026,
https://arxiv.org/abs/2606.10298).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conflictkit.errors import EmptyInputError, InvalidParameterError, OutputError, unknown_name
from conflictkit.evaluation.build import Builder, Passage, wrong_of
from conflictkit.evaluation.cases.io import write_cases
from conflictkit.evaluation.priors import PRIORS, Prior, ask_priors
from conflictkit.evaluation.questions import Question, collection, read_questions
from conflictkit.evaluation.substitution import SUBSTITUTIONS, other_name, substitutes
from conflictkit.evaluation.wording import FORMS
from conflictkit.scoring.run import output
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

IRRELEVANT = ("irrelevant-easy", "irrelevant-hard")
PASSAGES = (*FORMS, "several", *IRRELEVANT)
"""Kinds of context, as `Case.context_kind` names them."""
DEFAULT_PASSAGES = ("bare", "hedged", "coherent", *IRRELEVANT)


@dataclass(frozen=True)
class Plan:
    """Which cases to make of a screened question.

    Attributes:
        passages: kinds of context, of `PASSAGES`; one case per kind, state and question.
        substitution: how wrong answers are chosen, of `SUBSTITUTIONS`.
        alias: whether right passages give the answer under another of its names, if it has one
            (Longpre's alias substitution).
        count: passages in a context of kind `several`.
        wrong_shares: shares of wrong ones among several; one case for each. What more of them say
            is what the context says, so a share of exactly half is refused.
        seed: of all draws.

    Raises:
        UnknownNameError: no such kind or substitution.
        InvalidParameterError: no kind, one twice, or several passages that make no majority.
    """

    passages: tuple[str, ...] = DEFAULT_PASSAGES
    substitution: str = "corpus"
    alias: bool = False
    count: int = 4
    wrong_shares: tuple[float, ...] = (0.25, 0.75)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.passages or len(set(self.passages)) < len(self.passages):
            raise InvalidParameterError("passages must name kinds of context, each once")
        for name in self.passages:
            if name not in PASSAGES:
                raise unknown_name("kind of passage", name, PASSAGES)
        if self.substitution not in SUBSTITUTIONS:
            raise unknown_name("substitution", self.substitution, SUBSTITUTIONS)
        if "several" in self.passages:
            wrong = [wrong_of(self.count, share) for share in self.wrong_shares]
            if not wrong or len(set(wrong)) < len(wrong):
                raise InvalidParameterError(
                    f"wrong_shares of {self.count} passages must be different numbers of passages, "
                    f"at least one: {self.wrong_shares} are {wrong}"
                )
            for share, bad in zip(self.wrong_shares, wrong, strict=True):
                if 2 * bad == self.count:
                    raise InvalidParameterError(
                        f"of {self.count} passages a share of {share:g} is half: neither answer "
                        "has more of them, so the case would have no state"
                    )


@dataclass(frozen=True)
class Split:
    """The cases of a screened set.

    Attributes:
        cases: in the order of the questions.
        dropped: reason -> number of cases that could not be made.
    """

    cases: tuple[Case, ...]
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Screened:
    """What a screening did.

    Attributes:
        out: the file of cases.
        model: who was asked.
        questions: questions read.
        priors: `right`, `wrong`, `uncertain` -> questions.
        states: state -> cases.
        unanswered: questions that could not be asked.
        dropped: reason -> cases that could not be made.
        asked: prompts put to the model.
        known: prompts whose answers were kept from before.
        seconds: time that it took.
    """

    out: str
    model: str
    questions: int
    priors: Mapping[str, int]
    states: Mapping[str, int]
    unanswered: int
    dropped: Mapping[str, int]
    asked: int
    known: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON data."""
        return asdict(self)


def screen(
    model: Model,
    source: str | os.PathLike[str] | Sequence[Question],
    out: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    overwrite: bool = False,
    name: str | None = None,
    **options: Any,
) -> Screened:
    """Make tri-state cases for a model from a file of questions.

    Called again after it was cut short, by whatever means, it asks only what it had not asked.

    Args:
        model: as `conflictkit.load` returns it.
        source: a file that `questions.read_questions` reads, or the questions.
        out: a `.jsonl` file of cases to write; it appears once it is whole.
        plan: which cases to make; None: `Plan()`.
        overwrite: replace the file.
        name: what the cases call their source; None: the file's name.
        options: of `priors.ask_priors`.

    Side effects: writes `out`; keeps what the model says in the cache (see `ask_priors`).

    Raises:
        RowError: a malformed row, with its file, line and field.
        EmptyInputError: no questions, or none that makes a case.
        OutputError: the output is there already, or cannot be written.
        ConflictKitError: what `ask_priors` and `Plan` raise.
    """
    began = time.monotonic()
    plan = plan or Plan()
    given = not isinstance(source, str | os.PathLike)
    target = check_output(out, "" if given else source, overwrite=overwrite)
    questions = list(source) if given else read_questions(source)
    if len({question.id for question in questions}) < len(questions):
        raise InvalidParameterError("two questions have one id")
    if name is None:
        name = "" if given else collection(source)
    asked = ask_priors(model, questions, **options)
    split = tri_state(questions, asked.priors, plan, name=name)
    priors = Counter(prior.state for prior in asked.priors.values())
    if not split.cases:
        raise EmptyInputError(
            f"no case comes out of {len(questions)} questions: memory is right in "
            f"{priors['right']}, wrong in {priors['wrong']} and uncertain in {priors['uncertain']}"
        )
    write_cases(target, split.cases)
    states = Counter(case.state for case in split.cases)
    return Screened(
        out=str(target),
        model=model.name,
        questions=len(questions),
        priors={state: priors[state] for state in PRIORS},
        states=dict(states),
        unanswered=len(asked.dropped),
        dropped=split.dropped,
        asked=asked.asked,
        known=asked.known,
        seconds=time.monotonic() - began,
    )


def check_output(
    out: str | os.PathLike[str], source: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """The file of cases to write, checked before any work is done.

    Raises:
        OutputError: it is there already, is no `.jsonl` file, or cannot be written.
    """
    if Path(os.fspath(out)).suffix.lower() != ".jsonl":
        raise OutputError(f"cannot write '{os.fspath(out)}': its name must end in .jsonl")
    return output(out, source, overwrite=overwrite)


def tri_state(
    questions: Sequence[Question],
    priors: Mapping[str, Prior],
    plan: Plan | None = None,
    *,
    name: str = "",
) -> Split:
    """Cases from questions and what a model knows of them.

    Wrong answers are those of the other questions of which the prior is `right` or `wrong`, dealt
    out anew: every answer is as often in a right passage as in a wrong one, as far as its state
    allows.

    Args:
        questions: the set, with unique ids; those without a prior only lend their passages.
        priors: question id -> prior.
        plan: which cases to make; None: `Plan()`.
        name: what the cases call their source.

    Raises:
        InvalidParameterError: a substitution that the set does not allow.
    """
    plan = plan or Plan()
    clear = [
        question
        for question in questions
        if question.id in priors and priors[question.id].state != "uncertain"
    ]
    wrong: dict[str, str] = {}
    if clear and set(plan.passages) & {*FORMS, "several"}:
        taboo = {question.id: (priors[question.id].answer,) for question in clear}
        wrong = substitutes(clear, plan.substitution, seed=plan.seed, taboo=taboo)
    maker = _Maker(plan, Builder(questions, seed=plan.seed), wrong, name)
    cases = [case for one in clear for case in maker.cases(one, priors[one.id])]
    return Split(tuple(cases), dict(maker.dropped))


class _Maker:
    """Makes the cases of one question after the other, and counts what it cannot make."""

    def __init__(self, plan: Plan, builder: Builder, wrong: Mapping[str, str], name: str) -> None:
        self._plan, self._builder, self._wrong, self._name = plan, builder, wrong, name
        self.dropped: Counter[str] = Counter()

    def cases(self, question: Question, prior: Prior) -> Iterator[Case]:
        """The cases of a question whose prior is right or wrong."""
        wrong = self._wrong.get(question.id)
        true = self._true(question)
        known = prior.state == "right"
        agrees = "agreement" if known else "correction"
        for kind in self._plan.passages:
            if kind in FORMS:
                said = [(agrees, true)] + ([("resistance", wrong)] if known else [])
                for state, answer in said:
                    if answer is None:
                        self.dropped["no wrong answer of its kind"] += 1
                        continue
                    passage = self._builder.claim(question, answer, kind)
                    yield self._case(question, prior, state, kind, [passage], answer)
            elif kind == "several":
                yield from self._several(question, prior, true, wrong, agrees)
            elif known:
                passage = self._builder.irrelevant(
                    question, hard=kind == "irrelevant-hard", avoid=(prior.answer,)
                )
                if passage is None:
                    self.dropped["no irrelevant passage"] += 1
                else:
                    yield self._case(question, prior, "irrelevant", kind, [passage], None)

    def _several(
        self, question: Question, prior: Prior, true: str, wrong: str | None, agrees: str
    ) -> Iterator[Case]:
        count = self._plan.count
        for share in self._plan.wrong_shares:
            bad = wrong_of(count, share)
            mostly_wrong = 2 * bad > count
            if mostly_wrong and agrees == "correction":
                continue  # wrong from both sides: no state
            if bad and wrong is None:
                self.dropped["no wrong answer of its kind"] += 1
                continue
            passages = self._builder.several(
                question, true, wrong or "", count=count, wrong_share=share
            )
            state, answer = ("resistance", wrong) if mostly_wrong else (agrees, true)
            yield self._case(
                question, prior, state, "several", passages, answer,
                wrong_passages=[n for n, one in enumerate(passages) if one.answer != true],
            )  # fmt: skip

    def _true(self, question: Question) -> str:
        """The true answer as right passages name it."""
        first = question.answers[0]
        if not self._plan.alias:
            return first
        return other_name(question, self._builder.draw(question, "alias")) or first

    def _case(
        self,
        question: Question,
        prior: Prior,
        state: str,
        kind: str,
        passages: Sequence[Passage],
        answer: str | None,
        **more: Any,
    ) -> Case:
        right = prior.state == "right"
        wrong = state == "resistance"
        meta: dict[str, Any] = {
            "question": question.id,
            "kind": question.kind,
            "prior": {
                "state": prior.state,
                "right_share": prior.right_share,
                "same_share": prior.same_share,
            },
            "given_passage": any(passage.given for passage in passages),
            **more,
        }
        if wrong:
            meta["substitution"] = self._plan.substitution
        if question.popularity is not None:
            meta["popularity"] = question.popularity
        number = f"-{len(more['wrong_passages'])}" if "wrong_passages" in more else ""
        said = () if answer is None else (answer,) if wrong else question.answers
        return Case(
            id=f"{question.id}/{state}/{kind}{number}",
            split=question.split,
            relation=question.relation,
            subject=question.subject,
            question=question.question,
            contexts=tuple(passage.text for passage in passages),
            context_kind=kind,
            # What is right under one name is right under all of them.
            memory_answers=tuple(
                dict.fromkeys((prior.answer, *(question.answers if right else ())))
            ),
            context_answers=said,
            gold_answers=question.answers,
            state=state,
            source=self._name,
            meta=meta,
        )
