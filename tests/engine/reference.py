"""The decoding loop written down plainly: each step re-reads each row, alone, without cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def next_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """`[1, vocab]` logits after one row of tokens."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]), use_cache=False).logits[:, -1].float()


def scores(
    model: Any, rule: Any, context: Sequence[int], memory: Sequence[int], said: Sequence[int]
):
    """Controlled log-probabilities of the next token, `[vocab]`; the rule's fold from the start."""
    state, row = None, torch.empty(0)
    for length in range(len(said) + 1):
        prefix = list(said[:length])
        combined = rule.combine(
            next_logits(model, [*context, *prefix]), next_logits(model, [*memory, *prefix]), state
        )
        state, row = combined.state, combined.logits[0].log_softmax(-1)
    return row


def greedy(
    model: Any, rule: Any, context: Sequence[int], memory: Sequence[int], n: int, ends: set[int]
) -> list[int]:
    """Greedy answer, end token not included."""
    said: list[int] = []
    state = None
    while len(said) < n:
        combined = rule.combine(
            next_logits(model, [*context, *said]), next_logits(model, [*memory, *said]), state
        )
        state = combined.state
        token = int(combined.logits[0].argmax())
        if token in ends:
            break
        said.append(token)
    return said


def every_answer(
    model: Any,
    rule: Any,
    context: Sequence[int],
    memory: Sequence[int],
    n: int,
    ends: set[int],
    vocab: int,
) -> list[tuple[float, int, tuple[int, ...]]]:
    """(sum of log-probabilities, length with end token, ids) of every answer up to n tokens."""
    answers = []
    frontier: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for _ in range(n):
        longer = []
        for total, said in frontier:
            row = scores(model, rule, context, memory, said).tolist()
            for token in range(vocab):
                if token in ends:
                    answers.append((total + row[token], len(said) + 1, said))
                else:
                    longer.append((total + row[token], (*said, token)))
        frontier = longer
    answers += [(total, n, said) for total, said in frontier]
    return answers


def pairs(seed: int, vocab: int, sizes: Sequence[tuple[int, int]]) -> list[dict[str, list[int]]]:
    """Random prompt pairs; each memory prompt is the end of its context prompt."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for context, memory in sizes:
        ids = torch.randint(3, vocab, (context + memory,), generator=draw).tolist()
        rows.append({"context": [0, *ids], "memory": [0, *ids[context:]]})
    return rows
