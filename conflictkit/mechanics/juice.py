"""The heads that JuICE takes: those whose effect has one sign in every kind of prompt.

Paper: Li, Chen and Tong 2025, "Taming Knowledge Conflicts in Language Models" (ICML). Each head is
turned up, and turned down, alone: in a second run, `a` times its output of an unedited first run is
added at every position. The effect is the change of the memory answer's probability after the
prompt, `p(y | edited) - p(y | clean)`, in three prompts: closed book (clean), with one sentence for
another answer (substitution), with a coherent text for it.

    Pos(l, h, prompt) = mean over items and a in {1, 3, 5, 10, 30} of the effect
    Neg(l, h, prompt) = mean over items and a in {-1, -2, -5}
    enlarge:  heads with Pos > 0 in all three prompts, largest sum first
    suppress: heads with Neg > 0 in all three prompts, largest sum first

The paper takes the best 5 or 10 of each (about 2.4 % of all heads), from 4 items that the model
answers right closed book. The released program computes the clean run again for every head; here it
is computed once. It also keeps an unused third list (`context`): the first, sorted by the sum over
the two prompts with a context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import anatomy
from conflictkit.errors import (
    InvalidParameterError,
)
from conflictkit.evaluation.asking import CASE_ERRORS
from conflictkit.interventions.heads import Head, HeadAdd, HeadTap
from conflictkit.mechanics._runs import Progress, need, network, read, tell
from conflictkit.mechanics.items import NO_CONFLICT, NOT_ASKED, gives_another
from conflictkit.prompts import answer_ids
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

UP = (1.0, 3.0, 5.0, 10.0, 30.0)
DOWN = (-1.0, -2.0, -5.0)
GENTLE_UP, GENTLE_DOWN, SLACK = (0.25, 0.5, 1.0, 2.0), (-0.25, -0.5, -1.0), 0.05
"""Ours, for a model that is nearly sure closed book and that the paper's strengths break: smaller
ones, and a head may take up to this probability from the clean answer."""
PROMPTS = ("clean", "substitution", "coherent")
NO_STATEMENT = "no statement for a one-sentence context (meta['statement'])"

_TOKENS = 4096  # read in one pass, over all its rows


@dataclass(frozen=True)
class Triple:
    """One fact in three prompts.

    Attributes:
        clean, substitution, coherent: ids of the closed-book prompt and of the two with a context
            for another answer.
        target: first token of the memory answer.
        case_id: of the case.
    """

    clean: tuple[int, ...]
    substitution: tuple[int, ...]
    coherent: tuple[int, ...]
    target: int
    case_id: str = ""


@dataclass(frozen=True)
class Lists:
    """Heads to turn up and down, best first; see the module."""

    enlarge: tuple[Head, ...]
    suppress: tuple[Head, ...]
    context: tuple[Head, ...]


@dataclass(frozen=True)
class Effects:
    """What each head alone does to the probability of the memory answer.

    Attributes:
        up: `[items, layers, heads, prompts, len(ups)]` float32, in probability.
        down: the same for the strengths below zero.
    """

    up: Tensor
    down: Tensor

    def lists(self) -> Lists:
        """The heads that have one sign in all three prompts."""
        return rank(means(self.up), means(self.down))


def build(
    model: Model, cases: Sequence[Case], **wording: Any
) -> tuple[list[Triple], dict[str, int]]:
    """Three prompts of each conflict case.

    The coherent context is the case's own; the substitution is its statement completed with the
    same answer ("The capital of Poland is London."). So cases with longer contexts are the ones to
    hand in; JuICE's are paragraphs.

    Args:
        model: whose tokenizer and prompt form are used.
        cases: with a statement prefix in `meta["statement"]`, as Atlas's have.
        wording: arguments of `Model.prompts` (`chat`, `template`).

    Returns:
        The triples, and why cases were left out -> how many.
    """
    found: list[Triple] = []
    dropped: Counter[str] = Counter()
    form = {name: wording.get(name) for name in ("chat", "template")}
    for case in cases:
        statement = case.meta.get("statement")
        if not (case.contexts and gives_another(case)):
            dropped[NO_CONFLICT] += 1
        elif not isinstance(statement, str):
            dropped[NO_STATEMENT] += 1
        else:
            sentence = f"{statement} {case.context_answers[0]}."
            try:
                first = model.prompts(case.question, [sentence], **wording)
                second = model.prompts(case.question, list(case.contexts), **wording)
                answer = answer_ids(model.tokenizer, case.question, case.memory_answers[0], **form)
            except CASE_ERRORS:
                dropped[NOT_ASKED] += 1
                continue
            prompts = first["memory"].ids, first["context"].ids, second["context"].ids
            found.append(Triple(*prompts, target=answer[0], case_id=case.id))
    return found, dict(dropped)


@torch.no_grad()
def effects(
    model: Model | Module,
    triples: Sequence[Triple],
    *,
    ups: Sequence[float] = UP,
    downs: Sequence[float] = DOWN,
    progress: Progress | None = None,
) -> Effects:
    """Turn every head up and down alone, by JuICE's dual run, in all three prompts.

    Args:
        model: a toolkit's model or a plain transformers model.
        triples: what to read.
        ups, downs: the strengths a.
        progress: called with triples done and all triples.

    Raises:
        EmptyInputError: no triple.
        InvalidParameterError: no strength of a kind.
        UnsupportedError: the model's heads cannot be found.
    """
    need(triples, "triple")
    if not ups or not downs:
        raise InvalidParameterError("effects needs at least one strength up and one down")
    hf = network(model)
    body = anatomy.find(hf)
    strengths = (*ups, *downs)
    shape = len(triples), len(body.layers), body.heads, len(PROMPTS), len(strengths)
    found = torch.zeros(shape)
    for number, triple in enumerate(triples):
        for kind, name in enumerate(PROMPTS):
            changes = _alone(hf, body, getattr(triple, name), triple.target, strengths)
            found[number, :, :, kind] = changes
        tell(progress, number + 1, len(triples))
    return Effects(found[..., : len(ups)], found[..., len(ups) :])


def _alone(
    hf: Any, body: anatomy.Anatomy, ids: Sequence[int], target: int, strengths: Sequence[float]
) -> Tensor:
    """`[layers, heads, strengths]` changes of the target's probability after one prompt."""
    tap = HeadTap()
    with tap.attach(hf):
        before = _probability(read(hf, [ids]), target)
    trials = [(head, one) for head in body.names() for one in strengths]
    most = max(1, _TOKENS // len(ids))
    found = torch.zeros(len(body.layers), body.heads, len(strengths))
    changes: list[Tensor] = []
    for start in range(0, len(trials), most):
        some = trials[start : start + most]
        # Each row turns its own head: the strengths of all others are 0 there.
        amounts: dict[Head, list[float]] = {head: [0.0] * len(some) for head, _ in some}
        for row, (head, one) in enumerate(some):
            amounts[head][row] = one
        copies = {name: one.expand(len(some), -1, -1) for name, one in tap.values.items()}
        with HeadAdd(amounts, HeadTap(values=copies)).attach(hf):
            changes.append(_probability(read(hf, [ids] * len(some)), target) - before)
    layers, heads = torch.tensor(body.names()).T
    found[layers, heads] = torch.cat(changes).cpu().unflatten(0, (-1, len(strengths)))
    return found


def _probability(logits: Tensor, target: int) -> Tensor:
    return logits.float().softmax(-1)[:, target]


def means(changes: Tensor) -> Tensor:
    """`[items, layers, heads, prompts, strengths]` -> `[layers, heads, prompts]` float64."""
    return changes.double().mean(-1).mean(0)


def rank(up: Tensor, down: Tensor, slack: float = 0.0) -> Lists:
    """JuICE's lists from mean effects; of equal heads the first comes first.

    Args:
        up, down: `[layers, heads, 3]`, prompts in the order of `PROMPTS`.
        slack: probability that a head may take from the clean answer; the paper: none.

    Raises:
        InvalidParameterError: other shapes.
    """
    if up.dim() != 3 or up.shape != down.shape or up.shape[-1] != len(PROMPTS):
        raise InvalidParameterError(
            f"rank needs two tables [layers, heads, 3], not {list(up.shape)}, {list(down.shape)}"
        )
    bounds = torch.tensor([-slack, 0.0, 0.0], dtype=up.dtype)
    return Lists(
        _list(up, bounds, up.sum(-1)),
        _list(down, bounds, down.sum(-1)),
        _list(up, bounds, up[..., 1:].sum(-1)),
    )


def _list(table: Tensor, bounds: Tensor, by: Tensor) -> tuple[Head, ...]:
    alike = (table > bounds).all(-1)
    heads = [(layer, head) for layer, head in alike.nonzero().tolist()]
    return tuple(sorted(heads, key=lambda head: -float(by[head])))
