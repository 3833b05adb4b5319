"""The trace of one answer, and its forms that need no drawing (dictionary, JSON, dataframe)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from conflictkit.errors import UnsupportedError
from conflictkit.trace.decode import candidate_text, cut_at, token_kinds, token_texts
from conflictkit.trace.passages import AnswerPassages, TokenPassages
from conflictkit.trace.text import plain_data, visible

if TYPE_CHECKING:  # keeps torch out of readers that only draw a trace
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult

    from conflictkit.types import Generation, TokenRecord

CONFLICT_SCORE = "jsd"
"""The score that colours tokens. No other takes its place: in many of them high is not conflict."""

MAX_CONFLICT = math.log(2)
"""Upper end of the colour scale: the largest Jensen-Shannon divergence, in nats."""

CALM = 0.05
"""Below this conflict (nats) a token is drawn without any colour."""


@dataclass(frozen=True)
class Candidate:
    """One token that a stream considered.

    Attributes:
        text: the token alone, decoded; bytes of an unfinished character as `<0xE2 0x82>`.
        id: its token id.
        probability: the stream's probability of it.
    """

    text: str
    id: int
    probability: float


@dataclass(frozen=True)
class TokenTrace:
    """What happened at one answer token.

    Attributes:
        text: what the token adds to the answer; the texts of all tokens, joined, are the answer.
            Empty for a piece that completes no character, for special tokens, for the end and for
            what a stop text cut off.
        id: the token chosen.
        scores: name -> value.
        context_weight, memory_weight: the weights that the method used for this token.
        context_top, memory_top: the streams' candidates, most probable first.
        kind: `text`, `piece` (of a character that a later token completes), `special`, `end` or
            `stop` (cut off by a stop text).
        name: what a `special` token is called in the vocabulary.
        passages: what every passage alone makes of it, if they were read one by one.
    """

    text: str
    id: int
    scores: Mapping[str, float]
    context_weight: float
    memory_weight: float
    context_top: tuple[Candidate, ...] = ()
    memory_top: tuple[Candidate, ...] = ()
    kind: str = "text"
    name: str = ""
    passages: TokenPassages | None = None

    @property
    def label(self) -> str:
        """The token as shown to people: never empty, no control characters, spaces as dots."""
        if self.kind == "text":
            return visible(self.text, spaces=True) or "<empty>"
        return {"piece": "⋯", "end": "<end>", "stop": "<stop>"}.get(
            self.kind, visible(self.name) or "<special>"
        )

    def to_dict(self) -> dict[str, Any]:
        """The token as strict JSON data; `passages` is there if they were read one by one."""
        apart = {} if self.passages is None else {"passages": self.passages.to_dict()}
        return plain_data(
            {
                "text": self.text,
                "id": self.id,
                "kind": self.kind,
                "scores": self.scores,
                "context_weight": self.context_weight,
                "memory_weight": self.memory_weight,
                "context_top": [vars(candidate) for candidate in self.context_top],
                "memory_top": [vars(candidate) for candidate in self.memory_top],
            }
            | apart
        )


@dataclass(frozen=True, repr=False)
class Trace:
    """One answer, token by token. Draws itself in notebooks and prints itself in terminals.

    Attributes:
        question, contexts: what was asked; no contexts means closed book.
        method, params: the method's name and the parameters it ran with.
        answer: the answer's text.
        tokens: one entry per token, the end token included if it was reached.
        model: the model's name, if known.
        plain_answer: what the model says with the context and without the method, if known.
        memory_answer: what the model says without the context, if known.
    """

    question: str
    contexts: tuple[str, ...]
    method: str
    params: Mapping[str, Any]
    answer: str
    tokens: tuple[TokenTrace, ...]
    model: str | None = None
    plain_answer: str | None = None
    memory_answer: str | None = None

    @classmethod
    def from_generation(
        cls,
        generation: Generation,
        tokenizer: Any,
        *,
        question: str,
        contexts: Sequence[str] = (),
        method: str,
        params: Mapping[str, Any] | None = None,
        answer: str,
        model: str | None = None,
        plain_answer: str | None = None,
        memory_answer: str | None = None,
    ) -> Trace:
        """Put text to what the engine recorded.

        Args:
            generation: ids and records as the engine made them.
            tokenizer: the tokenizer that made the prompt.
            question, contexts, method, params, answer, model, plain_answer, memory_answer: see
                the attributes.
        """
        ids = [record.id for record in generation.records]
        kinds = token_kinds(tokenizer, ids, answer_length=len(generation.ids))
        texts, kinds = cut_at(len(answer), *token_texts(tokenizer, ids, kinds))
        names: dict[int, str] = {}

        def candidates(top: Sequence[tuple[int, float]]) -> tuple[Candidate, ...]:
            for token, _ in top:
                if token not in names:
                    names[token] = candidate_text(tokenizer, token)
            return tuple(Candidate(names[token], token, float(p)) for token, p in top)

        def passages(record: TokenRecord) -> TokenPassages | None:
            if record.comparison is None:
                return None
            tops = {name: candidates(top) for name, top in record.tops.items()}
            return TokenPassages.read(record.comparison, tops, len(contexts))

        tokens = tuple(
            TokenTrace(
                text=text,
                id=record.id,
                scores={name: float(value) for name, value in record.scores.items()},
                context_weight=float(record.context_weight),
                memory_weight=float(record.memory_weight),
                context_top=candidates(record.tops.get("context", ())),
                memory_top=candidates(record.tops.get("memory", ())),
                kind=kind,
                name=candidate_text(tokenizer, record.id) if kind == "special" else "",
                passages=passages(record),
            )
            for record, text, kind in zip(generation.records, texts, kinds, strict=True)
        )
        return cls(
            question=question,
            contexts=tuple(contexts),
            method=method,
            params=dict(params or {}),
            answer=answer,
            tokens=tokens,
            model=model,
            plain_answer=plain_answer,
            memory_answer=memory_answer,
        )

    @property
    def score_names(self) -> tuple[str, ...]:
        """All scores recorded, the one that colours the tokens first."""
        names = dict.fromkeys(name for token in self.tokens for name in token.scores)
        first = [CONFLICT_SCORE] if CONFLICT_SCORE in names else []
        return tuple(dict.fromkeys([*first, *names]))

    @property
    def conflict(self) -> tuple[float, ...]:
        """The Jensen-Shannon divergence at each token; NaN where it was not recorded."""
        return tuple(token.scores.get(CONFLICT_SCORE, math.nan) for token in self.tokens)

    @property
    def scored(self) -> bool:
        """Whether conflict was recorded at some token."""
        return any(CONFLICT_SCORE in token.scores for token in self.tokens)

    @property
    def acted(self) -> bool:
        """False if a gate or a marker kept the method from acting at every single token."""
        return not self.tokens or any(token.scores.get("active", 1.0) for token in self.tokens)

    @cached_property
    def passages(self) -> AnswerPassages | None:
        """Which passages the answer follows, and which contradict each other; None if they were
        not read one by one."""
        return AnswerPassages.of(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """The trace as strict JSON data: numbers that are not finite become None."""
        return plain_data(
            {
                "model": self.model,
                "method": self.method,
                "params": self.params,
                "question": self.question,
                "context": self.contexts,
                "answer": self.answer,
                "plain_answer": self.plain_answer,
                "memory_answer": self.memory_answer,
                "tokens": [token.to_dict() for token in self.tokens],
            }
            | ({} if self.passages is None else {"passages": self.passages.to_dict()})
        )

    def to_json(self, indent: int | None = 2) -> str:
        """The trace as strict JSON (no NaN, no Infinity, valid UTF-8)."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per token: text, id, kind, every score, weights, and each stream's best token.

        Raises:
            UnsupportedError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UnsupportedError(
                'a dataframe needs pandas: pip install "conflictkit[viz]"'
            ) from error
        return pandas.DataFrame(
            [self._row(token) for token in self.tokens], columns=self._columns()
        )

    def _columns(self) -> list[str]:
        best = [f"{stream}_{what}" for stream in ("context", "memory") for what in ("top", "p")]
        return ["text", "id", "kind", *self.score_names, "context_weight", "memory_weight", *best]

    def _row(self, token: TokenTrace) -> dict[str, Any]:
        row: dict[str, Any] = {
            **{name: token.scores.get(name, math.nan) for name in self.score_names},
            **{"text": token.text, "id": token.id, "kind": token.kind},
            **{"context_weight": token.context_weight, "memory_weight": token.memory_weight},
        }
        for stream, top in (("context", token.context_top), ("memory", token.memory_top)):
            row[f"{stream}_top"] = top[0].text if top else None
            row[f"{stream}_p"] = top[0].probability if top else math.nan
        return row

    def to_html(self) -> str:
        """One page that needs nothing else: no script, no network, everything escaped."""
        from conflictkit.trace.html import page

        return page(self)

    def _repr_html_(self) -> str:
        from conflictkit.trace.html import fragment

        return fragment(self)

    def __str__(self) -> str:
        from conflictkit.trace.terminal import plain

        return plain(self)

    # Shown by itself at a prompt, a trace should read like one, not like its constructor.
    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from conflictkit.trace.terminal import render

        yield from render(self, console, options)
