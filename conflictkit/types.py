"""The nouns that every room shares: a decoding step, a rule's decision about it, a case.

Shapes: `batch` is the number of rows decoded together, `vocab` the width of the logits. All
scores are float32, natural log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""What a rule remembers along an answer: named tensors whose first dimension is the row."""

GATE_TOLERANCE = 1e-5
"""Two scores that a gate compares count as equal within this distance (nats or probability)."""


@dataclass(frozen=True)
class Step:
    """One decoding position: what every stream predicts next.

    Build it with `Step.from_logits`, which applies the rules for -inf once, so that no detector
    or rule has to think about them.

    Attributes:
        logits: `[batch, vocab]` float32, the answering stream's logits as handed in.
        logprobs: stream name -> `[batch, vocab]` float32 log-probabilities. -inf only where the
            answering stream is -inf.
        allowed: `[batch, vocab]` bool, tokens that are not -inf in the answering stream.
        invalid: `[batch]` bool, rows that no rule can act on (NaN, +inf, or nothing finite).
        answering: name of the stream whose answer is written.
        index: number of answer tokens before this position; in a batch with drafts, whose rows go
            on at their own pace, in the row that is furthest.
        previous: `[batch]` ids of the answer token before this position; None at the first.
        raw: stream name -> `[batch, vocab]` float32, the logits as handed in. Only bug-compatible
            variants of released code read them.
        activations: `kind.layer` -> `[batch, width]` of the context stream at this position; only
            what a probe asked for is there.
    """

    logits: Tensor
    logprobs: Mapping[str, Tensor]
    allowed: Tensor
    invalid: Tensor
    answering: str = "context"
    index: int = 0
    previous: Tensor | None = None
    raw: Mapping[str, Tensor] = field(default_factory=dict)
    activations: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_logits(
        cls, streams: Mapping[str, Tensor], index: int = 0, previous: Tensor | None = None
    ) -> Step:
        """Normalise raw logits of all streams; the first stream named is the answering one.

        A token at -inf in the answering stream leaves every distribution. -inf in another stream
        alone counts as that row's smallest finite log-probability (a zero there would be an
        infinite argument for the token once it is subtracted).

        Args:
            streams: stream name -> `[batch, vocab]` logits of any floating dtype, same shape.
            index: number of answer tokens before this position.
            previous: `[batch]` ids of the token before it, if there is one.
        """
        answering = next(iter(streams))
        logits = streams[answering].float()
        allowed = logits > -torch.inf
        invalid = ~allowed.any(-1) | _not_numbers(logits)
        logprobs = {answering: logits.log_softmax(-1)}
        raws = {answering: logits}
        for name, other in streams.items():
            if name == answering:
                continue
            raws[name] = raw = other.float()
            finite = raw > -torch.inf
            invalid = invalid | _not_numbers(raw) | ~(finite & allowed).any(-1)
            kept = raw.masked_fill(~allowed, -torch.inf).log_softmax(-1)
            floor = kept.masked_fill(~(finite & allowed), torch.inf).amin(-1, keepdim=True)
            missing = allowed & ~finite
            floored = torch.where(missing, floor, kept)
            # Rows without a missing token keep their exact values.
            logprobs[name] = torch.where(
                missing.any(-1, keepdim=True), floored.log_softmax(-1), kept
            )
        return cls(logits, logprobs, allowed, invalid, answering, index, previous, raws)

    @property
    def context(self) -> Tensor:
        """`[batch, vocab]` log-probabilities of the context stream."""
        return self.logprobs["context"]

    @property
    def memory(self) -> Tensor:
        """`[batch, vocab]` log-probabilities of the memory stream."""
        return self.logprobs["memory"]


def _not_numbers(logits: Tensor) -> Tensor:
    return (logits.isnan() | (logits == torch.inf)).any(-1)


@dataclass(frozen=True)
class Mix:
    """A rule's decision at one step: `context_weight * l_c + memory_weight * l_m` on a support.

    Attributes:
        context_weight: `[batch, 1]` or `[batch, vocab]` weight of the context stream.
        memory_weight: the same shape, weight of the memory stream (of the reference stream, where
            that is another one).
        support: `[batch, vocab]` bool, tokens that may be chosen; None: all of them.
        bias: `[batch, vocab]` added after the mix; None: nothing. Only bug-compatible variants of
            released code need it.
        edited: `[batch]` bool, rows in which the stream `edited` (the context stream with changed
            activations) speaks for the context; None: no row.
        reference: `[batch, vocab]` log-probabilities that `memory_weight` belongs to; None: those
            of the memory stream.
        scores: name -> `[batch]`, what the rule computed on the way.
        state: what the rule remembers for the next step of the same rows.
    """

    context_weight: Tensor
    memory_weight: Tensor
    support: Tensor | None = None
    bias: Tensor | None = None
    edited: Tensor | None = None
    reference: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    state: State = field(default_factory=dict)


@dataclass(frozen=True)
class Combined:
    """A mix carried out.

    Attributes:
        logits: `[batch, vocab]` float32: the answering stream's logits bit for bit in rows that
            give it weight 1 and the other 0, with full support and no bias; normalised
            log-probabilities in all others.
        context_weight, memory_weight, scores, state: as in `Mix`.
    """

    logits: Tensor
    context_weight: Tensor
    memory_weight: Tensor
    scores: Mapping[str, Tensor]
    state: State


def merged(rows: Tensor, new: State, old: State) -> State:
    """What rows remember: the `new` where `rows` `[batch]` is true, the `old` elsewhere."""
    found = {}
    for name, values in new.items():
        mine = rows.to(values.device).view(-1, *[1] * (values.dim() - 1))
        found[name] = torch.where(mine, values, old[name])
    return found


class Control(Protocol):
    """Who wins at each step: what the decoding loop asks of a rule, a controller or a batch of
    them. A control holds no state of its own; it is a fold over the steps of each row."""

    @property
    def name(self) -> str:
        """What traces call it."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the streams it reads; the first is the answering one."""
        ...

    def initial(self, batch: int, device: torch.device | str = "cpu") -> State:
        """What `batch` rows remember before their first step."""
        ...

    def __call__(self, step: Step, state: State) -> Mix:
        """The weights of one step, given what the rows remember."""
        ...


@dataclass(frozen=True)
class Case:
    """One question with passages whose relation to memory and truth is known.

    Attributes:
        id: unique within its collection.
        split: `train`, `validation` or `test`.
        relation, subject: what the question asks about.
        question: the question alone.
        contexts: the passages, in order.
        context_kind: how the passage is written (`bare`, `assertive`, `hedged`, ...).
        memory_answers: what the model was taught; any of them counts.
        context_answers: what the passages say; empty if they do not answer the question.
        gold_answers: what is true.
        state: one of `conflictkit.states`.
        source: the collection it comes from.
        choices: answers to choose from, if it is a multiple-choice question.
        prompt, memory_prompt: the exact text that the context and the memory stream read, where a
            benchmark fixes it; None: built from question and contexts.
        aligned: whether the two prompts differ in the context alone.
        meta: anything else.
    """

    id: str
    split: str
    relation: str
    subject: str
    question: str
    contexts: tuple[str, ...]
    context_kind: str
    memory_answers: tuple[str, ...]
    context_answers: tuple[str, ...]
    gold_answers: tuple[str, ...]
    state: str
    source: str = ""
    choices: tuple[str, ...] = ()
    prompt: str | None = None
    memory_prompt: str | None = None
    aligned: bool = True
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """What several streams make of one answer token, each read beside the answering one.

    Attributes:
        names: the streams.
        logprobs: log-probability of the token under each (natural log).
        jsd: `[n][n]` Jensen-Shannon divergences of their predictions, in nats; 0 on the diagonal.
    """

    names: tuple[str, ...]
    logprobs: tuple[float, ...]
    jsd: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TokenRecord:
    """What happened at one answer token.

    Attributes:
        id: the token chosen.
        scores: name -> value of every detector asked for and of what the rule computed.
        context_weight, memory_weight: the weights used for the chosen token.
        tops: stream name -> `((token id, probability), ...)`, most probable first.
        comparison: of the streams that the run was told to compare, if any.
    """

    id: int
    scores: Mapping[str, float]
    context_weight: float
    memory_weight: float
    tops: Mapping[str, tuple[tuple[int, float], ...]]
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Stats:
    """What one run cost.

    Attributes:
        forwards: forwards of the streams, prefills included.
        context_tokens, memory_tokens: tokens read by each stream, prompt and answer, padding not
            counted.
        edits: positions at which an activation was changed.
        passes: passes over the weights: forwards of several streams may ride in one.
        road: how the streams went through the answer: `packed`, `padded`, `sequential`, `compiled`
            (see `conflictkit.together`), or `single` where there is one.
        drafted, accepted: tokens that were guessed ahead, and those of them that were chosen (see
            `conflictkit.drafting`).
    """

    forwards: int = 0
    context_tokens: int = 0
    memory_tokens: int = 0
    edits: int = 0
    passes: int = 0
    road: str = "single"
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Generation:
    """One answer as the engine made it.

    Attributes:
        ids: the answer's token ids, the end token not included.
        records: one per id (and one more for the end token, if it was reached).
        finish_reason: `eos`, `stop` or `length`.
        score: sum of the controlled log-probabilities of the tokens chosen, end token included.
        stats: cost of the run that made it (the whole batch's run).
    """

    ids: tuple[int, ...]
    records: tuple[TokenRecord, ...]
    finish_reason: str
    score: float
    stats: Stats
