"""GRD (Jiang et al. 2026, arXiv 2606.10298): decide once per answer whom to trust.

With a_c, a_m the top tokens of the streams, a row is undecided until the first step at which
a_c != a_m. There it trusts memory if the gate holds, the context otherwise, for the rest of the
answer:

    gate full       : p_m(a_m) > 0.5  and  H_m < H_c
    gate confidence : p_m(a_m) > 0.5
    gate entropy    : H_m < H_c

Rows that trust memory are mixed wherever the tops differ; everywhere else the context stream is
left alone bit for bit:

    m_c = l_c(a_c) - l_c(a_m),  m_p = l_m(a_m) - l_m(a_c)
    tau = (1 - depth) * m_p / (m_c + m_p)       (ratio 1 if the sum is within 1e-9 of 0)
    score = tau * l_c + (1 - tau) * l_m

m_p / (m_c + m_p) is where the two tops tie; `depth` says how far below it to go. Weights
`[batch, 1]`; state `decision` `[batch]` int64. Defaults depth 0.75, gate full.

Where released code differs (keith-Jiang/conflict-aware-decoding): it is written for greedy
decoding of one row; here the decision is state per row, so beams carry it along. The gates need a
margin of 1e-5, so that rounding cannot decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from conflictkit.detectors.confidence import confidence, entropy
from conflictkit.interventions.contrast._base import Rule, param
from conflictkit.types import GATE_TOLERANCE, Mix, State, Step

UNDECIDED, CONTEXT, MEMORY = 0, 1, 2
_WIDEST = 1e30  # margins beyond it would be inf / inf


@dataclass(frozen=True)
class GRD(Rule):
    """At the first disagreement choose a source for the whole answer."""

    name: ClassVar[str] = "grd"

    depth: float = param(0.75, low=0, high=1, doc="how far towards memory; 1: memory alone")
    gate: str = param(
        "full", choices=("full", "confidence", "entropy"), doc="test that memory must pass"
    )

    def initial(self, batch: int, device: torch.device | str = "cpu") -> State:
        """`decision`: `[batch]` int64, every row undecided."""
        return {"decision": torch.full((batch,), UNDECIDED, dtype=torch.int64, device=device)}

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights (tau, 1 - tau), `[batch, 1]` each.

        Scores: `decision` (0, 1, 2), `tau`, `context_entropy`, `memory_entropy`.
        """
        l_c, l_m = step.context, step.memory
        h_c, h_m = entropy(l_c), entropy(l_m)
        top_c, top_m = l_c.argmax(-1, keepdim=True), l_m.argmax(-1, keepdim=True)
        differ = (top_c != top_m).squeeze(-1)
        verdict = torch.where(self._trusts_memory(l_m, h_c, h_m), MEMORY, CONTEXT)
        decision = state["decision"]
        decision = torch.where((decision == UNDECIDED) & differ, verdict, decision)

        margin_c = (l_c.gather(-1, top_c) - l_c.gather(-1, top_m)).squeeze(-1)
        margin_m = (l_m.gather(-1, top_m) - l_m.gather(-1, top_c)).squeeze(-1)
        total = (margin_c + margin_m).clamp(max=_WIDEST)
        flat = total.abs() <= 1e-9
        balance = torch.where(
            flat, 1.0, margin_m.clamp(max=_WIDEST) / torch.where(flat, 1.0, total)
        )
        tau = torch.where((decision == MEMORY) & differ, (1.0 - self.depth) * balance, 1.0)
        return Mix(
            tau.unsqueeze(-1),
            (1.0 - tau).unsqueeze(-1),
            scores={
                "decision": decision.float(),
                "tau": tau,
                "context_entropy": h_c,
                "memory_entropy": h_m,
            },
            state={"decision": decision},
        )

    def _trusts_memory(self, l_m: Tensor, h_c: Tensor, h_m: Tensor) -> Tensor:
        confident = confidence(l_m) > 0.5 + GATE_TOLERANCE
        surer = h_m < h_c - GATE_TOLERANCE
        if self.gate == "full":
            return confident & surer
        return confident if self.gate == "confidence" else surer
