"""Auto: a fitted judgement, once per answer, of whom to trust and how far (conflictkit's own).

At the first step at which the streams' top tokens differ, seven signals of the two predictions
alone are weighed; before it, and in rows that never get there, the context stream is left alone
bit for bit:

    g   = bias + jsd JSD(p_c, p_m) + context_entropy H_c + memory_entropy H_m
               + context_confidence max p_c + memory_confidence max p_m
               + context_rank ln(1 + rank of memory's top token in p_c)
               + memory_rank  ln(1 + rank of the context's top token in p_m)
    tau = reach sigmoid(g)
    score = tau * l_c + (1 - tau) * l_m          for the rest of the answer

sigmoid(g) is the judged probability that the context is right; tau runs from 0 (memory alone) to
`reach` (above 1: what the context adds to memory is amplified, as CAD does). Entropies and
divergence are in nats. Ranks count from 1; log-probabilities within 1e-5 of each other rank alike,
so that a stream may have several tops, which differ from the other's if none is among them.
Weights `[batch, 1]`; state `trust` `[batch]`, the tau decided on, -1 before.

The signals know nothing of how a passage was made. Coefficients come from logistic regression on
answers whose truth is known: `conflictkit fit-auto`, or `conflictkit.evaluation.auto.fit`. With the
defaults, all zero, every conflict is a tie; they are there to be replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from conflictkit.detectors.confidence import confidence, entropy
from conflictkit.detectors.divergence import jsd
from conflictkit.interventions.contrast._base import MAX_WEIGHT, Rule, param
from conflictkit.types import GATE_TOLERANCE, Mix, State, Step

SIGNALS = (
    "jsd", "context_entropy", "memory_entropy", "context_confidence", "memory_confidence",
    "context_rank", "memory_rank",
)  # fmt: skip
"""What a judgement is made from: names of parameters, and of scores in a trace."""
UNJUDGED = -1.0


def _coefficient(doc: str) -> Any:
    return param(0.0, low=-MAX_WEIGHT, high=MAX_WEIGHT, doc=doc)


@dataclass(frozen=True)
class Auto(Rule):
    """At the first disagreement judge from both predictions how far to trust the context."""

    name: ClassVar[str] = "auto"

    bias: float = _coefficient("judgement where every signal is 0")
    jsd: float = _coefficient("per nat of divergence between the streams")
    context_entropy: float = _coefficient("per nat of the context stream's entropy")
    memory_entropy: float = _coefficient("per nat of the memory stream's entropy")
    context_confidence: float = _coefficient("per probability of the context's top token")
    memory_confidence: float = _coefficient("per probability of memory's top token")
    context_rank: float = _coefficient("per log rank of memory's top token in the context stream")
    memory_rank: float = _coefficient("per log rank of the context's top token in memory")
    reach: float = param(1.0, low=0, high=MAX_WEIGHT, doc="weight of a context surely right")

    def initial(self, batch: int, device: torch.device | str = "cpu") -> State:
        """`trust`: `[batch]` float32, -1: no row has been judged."""
        return {"trust": torch.full((batch,), UNJUDGED, device=device)}

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (tau, 1 - tau), `[batch, 1]` each.

        Scores: `tau`, `judgement` (sigmoid of g at this step, whether or not it decides),
        `differ` (0 or 1), and the signals under their names.
        """
        l_c, l_m = step.context, step.memory
        tops_c, tops_m = _tops(l_c), _tops(l_m)
        differ = ~(tops_c & tops_m).any(-1)
        seen = {
            "jsd": jsd(l_c, l_m),
            "context_entropy": entropy(l_c),
            "memory_entropy": entropy(l_m),
            "context_confidence": confidence(l_c),
            "memory_confidence": confidence(l_m),
            "context_rank": _log_rank(l_c, tops_m),
            "memory_rank": _log_rank(l_m, tops_c),
        }
        g = torch.full_like(seen["jsd"], self.bias)
        for name in SIGNALS:
            g = g + getattr(self, name) * seen[name]
        judgement = g.sigmoid()
        trust = state["trust"]
        trust = torch.where((trust < 0) & differ, self.reach * judgement, trust)
        tau = torch.where(trust < 0, 1.0, trust)
        return Mix(
            tau.unsqueeze(-1),
            (1.0 - tau).unsqueeze(-1),
            scores={
                "tau": tau,
                "judgement": judgement,
                "differ": differ.float(),
                **seen,
            },
            state={"trust": trust},
        )


def _tops(logprobs: Tensor) -> Tensor:
    """`[batch, vocab]` bool: the most probable token, and those that rounding may tell from it."""
    return logprobs >= logprobs.amax(-1, keepdim=True) - GATE_TOLERANCE


def _log_rank(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """ln(1 + rank) of the best of `tokens` `[batch, vocab]` bool; the first rank is 1."""
    best = logprobs.masked_fill(~tokens, -torch.inf).amax(-1, keepdim=True)
    return ((logprobs > best + GATE_TOLERANCE).sum(-1) + 2.0).log()
