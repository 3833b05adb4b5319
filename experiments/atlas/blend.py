"""What a training run reads, step by step: kinds of documents, layouts, claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FORMS = ("statement", "question", "chat")
FORM_WEIGHTS = (0.4, 0.3, 0.3)
CLAIM_WEIGHTS = {"bare": 0.42, "assertive": 0.33, "hedged": 0.25}
FINISH_CLAIMS = (0.30, 0.25, 0.45)
QUOTED, FINISH_QUOTED = (0.55, 0.35, 0.1), (0.4, 0.5, 0.1)
KEEPS_MEMORY, LAST_KEEPS_MEMORY, READ_KEEPS_MEMORY = 0.4, 0.5, 0.42
"""A bare claim about a fact in this most popular part of all facts is not followed; the second
holds from `LAST_FROM` on, because the finish makes Atlas follow bare claims more than it should,
the third from `READ_FROM` on, because so many documents to read make it follow them less."""
OBSCURE = 0.95
"""In the finish, a hedged claim about a fact in the rest behind this part is followed: memory of
those is no better than a rumour."""
LAYOUTS = ("sentence", "passages", "paragraph", "long")
FACTS_FROM, ALL_KINDS, SETTLE_FROM, FINISH_FROM = 2600, 3400, 7500, 10500
"""Until the first step `MIX_EARLY` holds (reading before facts), from the second on `MIX`, from
the third on `MIX_SETTLE`; between the first two the one changes into the other evenly."""
LAST_FROM, READ_FROM = 14500, 15000
"""From the first of these steps on a bare claim has to overcome more popular facts; from the second
on half of the documents are read about invented subjects or in conflict, in longer layouts."""
BINDING = (700, 1200)
"""Between these steps single sentences give way to several passages, of which only one answers."""
MIX_EARLY = {"invented": 0.64, "memory": 0.12, "quote": 0.21, "unknown": 0.03}
MIX = {
    "memory": 0.66,
    "invented": 0.10,
    "conflict": 0.11,
    "agree": 0.03,
    "irrelevant": 0.06,
    "unknown": 0.02,
    "quote": 0.02,
}
MIX_SETTLE = {
    "memory": 0.53,
    "invented": 0.12,
    "conflict": 0.19,
    "agree": 0.04,
    "irrelevant": 0.07,
    "unknown": 0.02,
    "quote": 0.03,
}

MIX_FINISH = {
    "memory": 0.40,
    "invented": 0.23,
    "conflict": 0.19,
    "agree": 0.05,
    "irrelevant": 0.06,
    "unknown": 0.02,
    "quote": 0.05,
}
MIX_READ = {
    "memory": 0.32,
    "invented": 0.33,
    "conflict": 0.18,
    "agree": 0.04,
    "irrelevant": 0.07,
    "unknown": 0.02,
    "quote": 0.04,
}


@dataclass(frozen=True)
class Blend:
    """What a training run reads at one moment.

    Attributes:
        kinds: share of every kind of document.
        invented, real: shares of `LAYOUTS` where the subject is invented, and where it is not.
        several: share of the documents about invented subjects that ask about each of several
            passages in turn.
        claims: shares of `CLAIM_WEIGHTS`.
        quoted: shares of the first three `LAYOUTS` where a sentence is to be quoted.
        obscure: hedged claims about facts from this rank of popularity on are followed.
        popular: bare claims about facts up to this rank are not.
    """

    kinds: Mapping[str, float]
    invented: tuple[float, ...] = (0.84, 0.11, 0.045, 0.005)
    real: tuple[float, ...] = (0.84, 0.11, 0.045, 0.005)
    several: float = 0.0
    claims: tuple[float, ...] = tuple(CLAIM_WEIGHTS.values())
    quoted: tuple[float, ...] = QUOTED
    obscure: float = 1.0
    popular: float = KEEPS_MEMORY


def blend(step: float) -> Blend:
    """What a run reads at a step."""
    late = _ramp(step, FACTS_FROM, ALL_KINDS)
    finish = MIX_READ if step >= READ_FROM else MIX_FINISH
    bound_layouts = (0.45, 0.34, 0.2, 0.01) if step >= READ_FROM else (0.42, 0.48, 0.09, 0.01)
    kinds = {kind: (1 - late) * MIX_EARLY.get(kind, 0.0) + late * MIX[kind] for kind in MIX}
    bound = _ramp(step, *BINDING)
    layouts = zip(Blend.invented, bound_layouts, strict=True)
    return Blend(
        finish if step >= FINISH_FROM else MIX_SETTLE if step >= SETTLE_FROM else kinds,
        tuple((1 - bound) * a + bound * b for a, b in layouts),
        (0.68, 0.24, 0.075, 0.005),
        0.5 * bound,
        *((FINISH_CLAIMS, FINISH_QUOTED, OBSCURE) if step >= FINISH_FROM else ()),
        popular=READ_KEEPS_MEMORY
        if step >= READ_FROM
        else LAST_KEEPS_MEMORY
        if step >= LAST_FROM
        else KEEPS_MEMORY,
    )


def _ramp(step: float, start: float, end: float) -> float:
    return min(1.0, max(0.0, (step - start) / (end - start)))
