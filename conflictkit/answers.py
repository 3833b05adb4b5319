"""What comes back from a question: one answer, or its text piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conflictkit.engine import Event
from conflictkit.errors import UnsupportedError
from conflictkit.trace import Trace
from conflictkit.types import Generation, Stats


@dataclass(frozen=True)
class Answer:
    """What the model said, and why.

    Attributes:
        model: name the model was loaded by.
        method: method that wrote the answer; `memory` when there was no context.
        params: its parameters.
        question, contexts: what was asked, and the passages.
        text: the answer, without surrounding white space.
        trace: what happened at each token; draws itself in notebooks and terminals. None if it was
            switched off.
        stats: cost of the method's own run; in a batch, of the whole batch.
        finish_reason: `eos`, `stop` or `length`.
        score: sum of the controlled log-probabilities of the tokens, natural log.
        plain_answer: what the model says with the context and no control, if compared.
        memory_answer: what it says without the context, if compared.
        truncated: whether the end of the passages was cut off to fit the window.
        alternatives: further answers when more than one was asked for.
        passage_cost: with `per_passage`, what reading the passages one by one took beside `stats`:
            `forwards` and `tokens`, in a batch of the whole batch.
    """

    model: str
    method: str
    params: Mapping[str, object]
    question: str
    contexts: tuple[str, ...]
    text: str
    trace: Trace | None
    stats: Stats
    finish_reason: str
    score: float
    plain_answer: str | None = None
    memory_answer: str | None = None
    truncated: bool = False
    alternatives: tuple[Answer, ...] = ()
    passage_cost: Mapping[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain data, ready for JSON; `passages` is there if they were read one by
        one."""
        traced: dict[str, Any] = self.trace.to_dict() if self.trace is not None else {"tokens": []}
        apart = {}
        if "passages" in traced:
            apart = {"passages": traced["passages"] | {"cost": dict(self.passage_cost or {})}}
        return {
            "model": self.model,
            "method": self.method,
            "params": dict(self.params),
            "question": self.question,
            "context": list(self.contexts),
            "truncated": self.truncated,
            "answer": self.text,
            "plain_answer": self.plain_answer,
            "memory_answer": self.memory_answer,
            "finish_reason": self.finish_reason,
            "score": self.score,
            "tokens": traced["tokens"],
            "stats": dict(vars(self.stats)),
            "alternatives": [other.text for other in self.alternatives],
        } | apart


class AnswerStream:
    """Pieces of an answer's text as they are made; `answer` is there once they are exhausted."""

    def __init__(
        self,
        events: Iterator[Event],
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        finish: Callable[[Generation], Answer],
    ) -> None:
        self._answer: Answer | None = None

        def end(made: Generation) -> Answer:
            self._answer = finish(made)
            return self._answer

        self._pieces = _text_pieces(events, decode, stops, end)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def answer(self) -> Answer:
        """The whole answer; drains the stream if that has not been done."""
        for _ in self._pieces:
            pass
        if self._answer is None:
            raise UnsupportedError("this stream failed before its answer was finished")
        return self._answer


def _text_pieces(
    events: Iterator[Event],
    decode: Callable[[Sequence[int]], str],
    stops: Sequence[str],
    end: Callable[[Generation], Answer],
) -> Iterator[str]:
    """Text of one answer as its tokens arrive, stripped at both ends.

    A piece is held back while it may still be the beginning of a stop text or of a character, or
    white space at the end.

    Args:
        events: `conflictkit.engine.stream` over one row.
        decode: ids -> text.
        stops: texts that end the answer.
        end: called with the finished generation; its answer's text settles what is left.
    """
    ids: list[int] = []
    told = ""
    while True:
        try:
            event = next(events)
        except StopIteration as stop:
            ((made,),) = stop.value
            break
        if event.finish_reason != "eos":
            ids.append(event.token)
        text = before_stop(decode(ids), stops)
        sure = text[: len(text) - _unsure(text, stops)].strip()
        if len(sure) > len(told):
            yield sure[len(told) :]
            told = sure
    answer = end(made)
    if len(answer.text) > len(told):
        yield answer.text[len(told) :]


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Text up to the first stop text."""
    found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(found)] if found else text


def _unsure(text: str, stops: Sequence[str]) -> int:
    """Number of last characters that later tokens may still change or take back."""
    held = len(text) - len(text.rstrip("\ufffd"))
    for stop in stops:
        longest = min(len(stop) - 1, len(text))
        held = max(held, *(n for n in range(longest + 1) if stop.startswith(text[len(text) - n :])))
    return held
