"""Scoring rows with one model: prompts, answers, batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conflictkit import detectors, engine
from conflictkit.answers import before_stop
from conflictkit.errors import (
    BoundaryError,
    ConflictKitError,
    ContextTooLongError,
    EmptyInputError,
    InvalidParameterError,
)
from conflictkit.options import TRACED, Contexts, passages_of, resolve
from conflictkit.prompts import Prompt, answer_ids
from conflictkit.scoring.forced import Reading, read
from conflictkit.scoring.record import Score, ScoredToken
from conflictkit.scoring.rows import Row
from conflictkit.trace.decode import cut_at, decode, token_kinds, token_texts

if TYPE_CHECKING:
    from conflictkit.policy import Policy
    from conflictkit.toolkit import Model
    from conflictkit.types import Generation

# What `Model.ask` takes and means nothing here: there is one answer per row, and no trace of it.
_ELSEWHERE = (
    "trace", "top", "compare", "per_passage", "documents", "processors", "n",
    "temperature", "top_k", "top_p", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Ready:
    """A row whose prompts are built.

    Attributes:
        row: the row.
        prompts: stream name -> prompt.
        answer: ids of the given answer; None: it has to be written.
    """

    row: Row
    prompts: dict[str, Prompt]
    answer: tuple[int, ...] | None

    @property
    def size(self) -> tuple[bool, int]:
        """Whether the answer has to be written, and the tokens that the longer stream reads, a
        given answer included: what rows of a batch share."""
        return self.answer is None, len(self.prompts["context"].ids) + len(self.answer or ())


@dataclass(frozen=True)
class _Said:
    """The answer of one row: its tokens, their texts, and how it came about."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    answer: str
    method: str | None = None
    finish_reason: str | None = None


class Scorer:
    """A model, the scores to take, and how answers are written where none is given.

    Args:
        model: as `conflictkit.load` returns it.
        method: writes the answers of rows without one, as in `Model.ask`; None: `plain`, greedily,
            unless a policy is given.
        scores: names of the detectors.
        options: the method's parameters, and of the options of `Model` those that say how an
            answer is worded and decoded: `policy`, `when`, `strength`, `start_after`,
            `max_new_tokens`, `stop`, `num_beams`, `length_penalty`, `chat`, `template`, `truncate`.

    Attributes:
        model: the model.
        names: the scores, spelled as in traces.
        policy: what writes answers.
        gate: the policy's gate, which flags answers, given ones too; None: nothing is flagged.

    Raises:
        UnknownNameError, InvalidParameterError, PolicyError: a method, detector or option.
    """

    def __init__(
        self,
        model: Model,
        method: Any = None,
        *,
        scores: Sequence[str] = TRACED,
        **options: Any,
    ) -> None:
        for name in _ELSEWHERE:
            if name in options:
                raise InvalidParameterError(f"{name}= says nothing about a score: leave it out")
        if isinstance(scores, str) or not scores:
            raise InvalidParameterError("scores must be a list of at least one detector's name")
        if method is None and options.get("policy") is None:
            method = "plain"
        self.model = model
        asked = {**options, "trace": False}
        gate = resolve(method, asked, 1)[0].policies[0].controller.gate
        if gate is not None and gate.reads_activations:
            raise InvalidParameterError(
                f"the gate '{gate}' reads activations, which a score does not: take a gate on a "
                "detector (as in 'jsd > 0.3'), or ask with it (ask, evaluate)"
            )
        self._job, self.wording = model._resolve(method, asked, 1)
        self.gate = self.policy.controller.gate
        wanted = [*scores, self.gate.detector] if self.gate else scores
        self.detectors = tuple(detectors.get(name) for name in dict.fromkeys(wanted))
        self.names = tuple(detector.name.replace("-", "_") for detector in self.detectors)

    @property
    def policy(self) -> Policy:
        return self._job.policies[0]

    @property
    def decoding(self) -> Any:
        """How answers are decoded; a `conflictkit.sampling.Decoding`."""
        return self._job.decoding

    def prepare(self, row: Row) -> Ready:
        """Build the prompts of a row, and check that they fit.

        Raises:
            EmptyInputError: no context, or a text that is empty.
            ContextTooLongError: prompt and answer do not fit the window.
            BoundaryError, TokenizerError, InvalidParameterError: what cannot be tokenised.
        """
        if not row.contexts:
            raise EmptyInputError("without a context there is nothing to compare: pass one")
        wording, answer = dict(self.wording), self._answer(row)
        if answer is not None:
            if self.model.window is not None and len(answer) >= self.model.window:
                raise ContextTooLongError(
                    f"the answer alone has {len(answer)} tokens, the window {self.model.window}"
                )
            wording["max_new_tokens"] = len(answer)
        return Ready(row, self.model.prompts(row.question, row.contexts, **wording), answer)

    def at_fault(self, row: Row, error: ConflictKitError) -> str | None:
        """Which part of a row `prepare` refused by `error`: `question`, `context` or `answer`; None
        if that cannot be told."""
        if not isinstance(error, ContextTooLongError | BoundaryError):
            return None
        try:
            answer = self._answer(row) or ()
        except BoundaryError:
            return "answer"
        if isinstance(error, BoundaryError) or self._fits_without_context(row, len(answer)):
            return "context"
        asked = self.model.tokenizer(row.question, add_special_tokens=False)["input_ids"]
        return "answer" if len(answer) > len(asked) else "question"

    def _fits_without_context(self, row: Row, answer: int) -> bool:
        """False also where all of the context may be cut away, and that was not enough."""
        room = self.wording["max_new_tokens"] if row.answer is None else answer
        if self.wording["truncate"] or (self.model.window or room + 1) <= room:
            return False
        try:
            self.model.prompts(row.question, **{**self.wording, "max_new_tokens": room})
        except ContextTooLongError:
            return False
        return True

    def _answer(self, row: Row) -> tuple[int, ...] | None:
        """Ids of the given answer."""
        if row.answer is None:
            return None
        form = {name: self.wording[name] for name in ("chat", "template")}
        return answer_ids(self.model.tokenizer, row.question, row.answer, **form)

    def score(self, rows: Iterable[Row | Ready]) -> list[Score]:
        """Score some rows in one batch; rows do not touch each other.

        Returns:
            One score per row, in order.

        Raises:
            ConflictKitError: as `prepare`; LogitsError if the model's logits cannot be used.
        """
        ready = [row if isinstance(row, Ready) else self.prepare(row) for row in rows]
        said = self._said(ready)
        spoken = [place for place, one in enumerate(said) if one.ids]
        readings: dict[int, Reading] = {}
        if spoken:
            streams = [
                (ready[p].prompts["context"].ids, ready[p].prompts["memory"].ids) for p in spoken
            ]
            found = read(
                self.model.model,
                streams,
                [said[place].ids for place in spoken],
                self.detectors,
                pad_id=self.model.tokenizer.pad_token_id,
            )
            readings = dict(zip(spoken, found, strict=True))
        return [
            self._score(ready[place], said[place], readings.get(place))
            for place in range(len(ready))
        ]

    def stream(
        self, rows: Iterable[Row], *, batch_size: int = 16, batch_tokens: int = 16384
    ) -> Iterator[Score]:
        """Score any number of rows in batches of like length, in the order of the rows.

        Holds 16 batches of rows at a time. Arguments as `score_file`; raises as `score`.
        """
        waiting: list[Ready] = []
        for row in rows:
            waiting.append(self.prepare(row))
            if len(waiting) == 16 * batch_size:
                yield from self._in_order(waiting, batch_size, batch_tokens)
                waiting = []
        yield from self._in_order(waiting, batch_size, batch_tokens)

    def _in_order(self, ready: list[Ready], batch_size: int, batch_tokens: int) -> list[Score]:
        made: dict[int, Score] = {}
        for places in batches([one.size for one in ready], batch_size, batch_tokens):
            made |= zip(places, self.score([ready[place] for place in places]), strict=True)
        return [made[place] for place in range(len(ready))]

    def _said(self, ready: Sequence[Ready]) -> list[_Said]:
        """What every row answers: what was given, or what the method writes."""
        silent = [place for place, one in enumerate(ready) if one.answer is None]
        written: dict[int, _Said] = {}
        if silent:
            run = self.model._stepper(self._job, [ready[place].prompts for place in silent])
            made = engine.generate(run)
            written = {
                place: self._written(row[0]) for place, row in zip(silent, made, strict=True)
            }
        return [
            written[place] if place in written else self._given(one.answer or (), one.row.answer)
            for place, one in enumerate(ready)
        ]

    def _given(self, ids: tuple[int, ...], answer: str | None) -> _Said:
        tokenizer = self.model.tokenizer
        texts, _ = token_texts(tokenizer, ids, token_kinds(tokenizer, ids, len(ids)))
        return _Said(ids, tuple(texts), (answer or "").strip())

    def _written(self, made: Generation) -> _Said:
        tokenizer = self.model.tokenizer
        text = before_stop(decode(tokenizer, made.ids), self._job.decoding.stop)
        kinds = token_kinds(tokenizer, made.ids, len(made.ids))
        texts, kinds = cut_at(len(text), *token_texts(tokenizer, made.ids, kinds))
        # Tokens that a stop text cut off are no part of the answer.
        end = kinds.index("stop") if "stop" in kinds else len(kinds)
        name = self.policy.controller.name
        return _Said(made.ids[:end], tuple(texts[:end]), text.strip(), name, made.finish_reason)

    def _score(self, ready: Ready, said: _Said, reading: Reading | None) -> Score:
        tokens: tuple[ScoredToken, ...] = ()
        if reading is not None:
            lines = zip(said.texts, said.ids, reading.context, reading.memory, strict=True)
            scores = zip(*reading.scores, strict=True)
            tokens = tuple(
                ScoredToken(*line, dict(zip(self.names, values, strict=True)))
                for line, values in zip(lines, scores, strict=True)
            )
        return Score(
            question=ready.row.question,
            contexts=ready.row.contexts,
            answer=said.answer,
            method=said.method,
            finish_reason=said.finish_reason,
            truncated=ready.prompts["context"].truncated,
            names=self.names,
            tokens=tokens,
            gate=self.gate,
            start=self.policy.controller.uncontrolled(said.ids),
        )


def batches(
    sizes: Sequence[tuple[bool, int]], batch_size: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Places of rows to read together: of one kind and of like length.

    Args:
        sizes: kind and length in tokens of every row.
        batch_size: most rows in a batch.
        batch_tokens: most tokens in a batch, padding included; a longer row is a batch by itself.
    """
    batch: list[int] = []
    for place in sorted(range(len(sizes)), key=lambda place: (*sizes[place], place)):
        kind, length = sizes[place]
        unlike = batch and sizes[batch[0]][0] != kind
        # The newest row is the longest.
        full = len(batch) == batch_size or (len(batch) + 1) * length > batch_tokens
        if batch and (unlike or full):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def score(
    model: Model,
    question: str,
    context: Contexts,
    answer: str | None = None,
    method: Any = None,
    **options: Any,
) -> Score:
    """How far context and memory are apart on one answer; `Model.score` is this function.

    Args:
        model: as `conflictkit.load` returns it.
        question: what is asked.
        context: one passage, or several in order.
        answer: the answer to score; None: the one that `method` writes.
        method: as `Scorer`; only without an answer. A `policy` beside an answer only flags it.
        options: `scores` and the options of `Scorer`.

    Returns:
        The scores of every token and of the whole answer; see `conflictkit.scoring.Score`.

    Raises:
        EmptyInputError: no context: there is nothing to compare; or a text that is empty.
        InvalidParameterError: a method, or a policy without a gate, beside a given answer, or what
            `Scorer` refuses.
        ConflictKitError: what `Model.ask` raises.
    """
    if answer is not None and method is not None:
        raise InvalidParameterError("the answer is given: leave method= out")
    scorer = Scorer(model, method, **options)
    if answer is not None and options.get("policy") is not None and scorer.gate is None:
        raise InvalidParameterError("the answer is given and the policy has no gate: leave it out")
    return scorer.score([Row(question, passages_of(context), answer)])[0]
