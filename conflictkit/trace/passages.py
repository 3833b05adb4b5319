"""Which passage a token agrees with, and who contradicts whom: at each token, over an answer.

A *source* is a passage read alone, or memory. Sources go by the names of their streams: `memory`,
`passage 1`, `passage 2` and so on, in the order in which the passages were given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the trace is built on this module
    from conflictkit.trace.record import Candidate, TokenTrace
    from conflictkit.types import Comparison

MEMORY = "memory"

ALIKE = math.log(2)
"""An answer at most twice as probable under one source as under another follows both (nats)."""

CONTRADICTION = math.log(2) / 2
"""From this divergence on (nats, half of the largest) two sources contradict each other."""


@dataclass(frozen=True)
class TokenPassages:
    """What every passage, read alone, makes of one answer token.

    A token *agrees with* the passage under which it is most probable, if it is more probable there
    than from memory by more than 1e-5; passages within 1e-5 of the most probable one tie, and all
    of them are named. It agrees with `memory` if it is more probable from memory than under any
    passage by more than 1e-5. Otherwise nothing tells the sources apart, and nobody is named.

    Attributes:
        names: the sources, `memory` first.
        agrees_with: names of those the token agrees with; empty: nobody.
        logprobs: log-probability of the token from each source.
        jsd: `[n][n]` Jensen-Shannon divergence between any two sources, in nats.
        tops: each source's candidates, most probable first.
    """

    names: tuple[str, ...]
    agrees_with: tuple[str, ...]
    logprobs: tuple[float, ...]
    jsd: tuple[tuple[float, ...], ...]
    tops: tuple[tuple[Candidate, ...], ...]

    @classmethod
    def read(
        cls, comparison: Comparison, tops: Mapping[str, tuple[Candidate, ...]], count: int
    ) -> TokenPassages:
        """What was recorded of a row with `count` passages: a batch may hold rows with more."""
        kept = range(count + 1)
        names = comparison.names[: count + 1]
        logprobs = comparison.logprobs[: count + 1]
        return cls(
            names=names,
            agrees_with=agreement(names, [math.exp(value) for value in logprobs]),
            logprobs=logprobs,
            jsd=tuple(tuple(comparison.jsd[i][j] for j in kept) for i in kept),
            tops=tuple(tops.get(name, ()) for name in names),
        )

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probability of the token from each source."""
        return tuple(math.exp(value) for value in self.logprobs)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; the matrix `jsd` is that of the passages, without memory."""
        memory, *passages = self.probabilities
        return {
            "agrees_with": self.agrees_with,
            "memory_probability": memory,
            "passages": [
                {
                    "name": self.names[place],
                    "probability": probability,
                    "top": [vars(candidate) for candidate in self.tops[place]],
                    "jsd_memory": self.jsd[place][0],
                }
                for place, probability in enumerate(passages, 1)
            ],
            "jsd": [line[1:] for line in self.jsd[1:]],
        }


def agreement(names: Sequence[str], probabilities: Sequence[float]) -> tuple[str, ...]:
    """The sources a token agrees with; see `TokenPassages`.

    Args:
        names: the sources, `memory` first.
        probabilities: probability of the token from each.
    """
    from conflictkit.types import GATE_TOLERANCE  # late: reading a trace needs no torch

    memory, *passages = probabilities
    best = max(passages)
    if best > memory + GATE_TOLERANCE:
        pairs = zip(names[1:], passages, strict=True)
        return tuple(name for name, value in pairs if value >= best - GATE_TOLERANCE)
    return (names[0],) if memory > best + GATE_TOLERANCE else ()


@dataclass(frozen=True)
class Widest:
    """Where two sources are furthest apart.

    Attributes:
        jsd: their Jensen-Shannon divergence there, in nats.
        between: their names.
        token: index of the token in the answer.
    """

    jsd: float
    between: tuple[str, str]
    token: int


@dataclass(frozen=True)
class AnswerPassages:
    """The same over a whole answer: its end, and what a stop text cut off, do not count.

    Attributes:
        names: the sources, `memory` first.
        counts: number of tokens that agree with each; a tie counts for all that tie.
        total: number of tokens looked at.
        logprobs: log-probability of the whole answer from each source.
        jsd: `[n][n]` the largest divergence over the tokens between any two sources, in nats.
        passages_apart: where two passages are furthest apart; None with a single passage.
        memory_apart: where a passage and memory are furthest apart.
        follows: the source under which the answer is most probable, and those under which it is
            at least half as probable.
        memory_sides_with: the passages nearest to memory where the passages are furthest apart;
            nobody if they do not differ there, or all are equally near, or all contradict memory.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    total: int
    logprobs: tuple[float, ...]
    jsd: tuple[tuple[float, ...], ...]
    passages_apart: Widest | None
    memory_apart: Widest
    follows: tuple[str, ...]
    memory_sides_with: tuple[str, ...]

    @classmethod
    def of(cls, tokens: Sequence[TokenTrace]) -> AnswerPassages | None:
        """Summary of an answer's tokens; None if the passages were not read one by one."""
        read = [(place, one, one.passages) for place, one in enumerate(tokens)]
        known = [(place, one.kind, found) for place, one, found in read if found is not None]
        # An empty answer is all end: then that is what there is to look at.
        own = [entry for entry in known if entry[1] not in ("end", "stop")] or known
        if not own:
            return None
        found = [(place, passages) for place, _, passages in own]
        names = found[0][1].names
        size = range(len(names))
        logprobs = tuple(sum(one.logprobs[i] for _, one in found) for i in size)
        jsd = tuple(tuple(max(one.jsd[i][j] for _, one in found) for j in size) for i in size)
        pairs = [(i, j) for i in size for j in size if 0 < i < j]
        apart = _widest(found, pairs) if pairs else None
        best = max(logprobs)
        return cls(
            names=names,
            counts=tuple(sum(name in one.agrees_with for _, one in found) for name in names),
            total=len(found),
            logprobs=logprobs,
            jsd=jsd,
            passages_apart=apart,
            memory_apart=_widest(found, [(i, 0) for i in size if i]),
            follows=tuple(names[i] for i in size if logprobs[i] >= best - ALIKE),
            memory_sides_with=_nearest(tokens[apart.token].passages) if apart else (),
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the tokens that agree with each source, 0 to 1."""
        return tuple(count / self.total for count in self.counts)

    @property
    def peak(self) -> int:
        """Index of the token to look at: where the passages are furthest apart, or, if they do not
        contradict each other and one of them is further from memory, where that is."""
        apart = self.passages_apart
        if apart is not None and apart.jsd >= min(CONTRADICTION, self.memory_apart.jsd):
            return apart.token
        return self.memory_apart.token

    def to_dict(self) -> dict[str, Any]:
        """As plain data; the matrix `jsd` is that of the passages, without memory."""
        entries = [
            {
                "name": name,
                "tokens": self.counts[place],
                "share": self.shares[place],
                "logprob": self.logprobs[place],
                "max_jsd_memory": self.jsd[place][0],
            }
            for place, name in enumerate(self.names)
        ]
        entries[0].pop("max_jsd_memory")
        return {
            "tokens": self.total,
            "follows": self.follows,
            "memory_sides_with": self.memory_sides_with,
            "max_disagreement": vars(self.passages_apart) if self.passages_apart else None,
            "max_memory_disagreement": vars(self.memory_apart),
            "memory": entries[0],
            "passages": entries[1:],
            "max_jsd": [line[1:] for line in self.jsd[1:]],
        }


def _widest(found: Sequence[tuple[int, TokenPassages]], pairs: Sequence[tuple[int, int]]) -> Widest:
    """The first token and pair with the largest divergence."""
    place, one, (i, j) = max(
        ((place, one, pair) for place, one in found for pair in pairs),
        key=lambda entry: entry[1].jsd[entry[2][0]][entry[2][1]],
    )
    return Widest(one.jsd[i][j], (one.names[i], one.names[j]), place)


def _nearest(token: TokenPassages | None) -> tuple[str, ...]:
    """The passages whose prediction at a token is nearest to that of memory."""
    from conflictkit.types import GATE_TOLERANCE

    if token is None:
        return ()
    distances = [line[0] for line in token.jsd[1:]]
    least = min(distances)
    if least >= CONTRADICTION:
        return ()
    near = [distance <= least + GATE_TOLERANCE for distance in distances]
    if all(near):
        return ()
    return tuple(name for name, is_near in zip(token.names[1:], near, strict=True) if is_near)
