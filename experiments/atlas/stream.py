"""From documents to batches: tokens, targets and their weights, without packing.

A chunk of documents is written, sorted by length and cut into batches of about the same number of
tokens. Chunk `n` of a seed is always the same text, which is what makes a run resumable.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import torch
from blend import FACTS_FROM
from documents import Document, Writer
from torch import Tensor

CHUNK = 512
ANSWER_WEIGHT = 4.0
PASSAGE_WEIGHT = 0.25
"""Weight of passage tokens, and only where the subject is invented: elsewhere a passage must not
teach memory."""


def request_weight(step: float) -> float:
    """Weight of the request's tokens. Repeating a name after a passage is how reading begins;
    later the tokens of a request are noise, because nobody can foresee them."""
    return 1.0 if step < FACTS_FROM else 0.2


@dataclass(frozen=True)
class Batch:
    """`ids`: [rows, length], padded right; `weights`: [rows, length - 1] of the next token."""

    ids: Tensor
    weights: Tensor


def encode(
    document: Document, tokenizer, ids: list[int], asked: float = 1.0
) -> tuple[list[int], list[float]]:
    """Token ids with EOS, and the loss weight of every token but the first (`asked`: of the
    request's tokens)."""
    answer = len(tokenizer(document.completion, add_special_tokens=False).input_ids)
    request = len(tokenizer(document.tail, add_special_tokens=False).input_ids)
    later: list[float] = []
    for prompt, said in document.later:
        later += [asked] * len(tokenizer(prompt, add_special_tokens=False).input_ids)
        later += [ANSWER_WEIGHT] * len(
            tokenizer(f" {said}<|eos|>", add_special_tokens=False).input_ids
        )
    before = len(ids) - answer - request - 1 - len(later)
    passage = PASSAGE_WEIGHT if document.kind == "invented" else 0.0
    weights = [passage] * before + [asked] * request + [ANSWER_WEIGHT] * answer + [ANSWER_WEIGHT]
    weights += later
    return [*ids, tokenizer.eos_token_id], weights


def documents_of(writer: Writer, seed: int, chunk: int, step: float) -> list[Document]:
    """The documents of one chunk, of which `step` is the first step."""
    rng = random.Random(f"{seed}/{chunk}")
    return [writer.write(rng, step) for _ in range(CHUNK)]


def batches_of(
    documents: list[Document], tokenizer, tokens: int, seed: int, chunk: int, step: float
) -> list[Batch]:
    """Batches of at most `tokens` tokens, padding included (one document may be longer)."""
    encoded = tokenizer([d.text for d in documents]).input_ids
    asked = request_weight(step)
    rows = [encode(d, tokenizer, ids, asked) for d, ids in zip(documents, encoded, strict=True)]
    rows.sort(key=lambda row: len(row[0]))
    groups: list[list] = [[]]
    for row in rows:
        if groups[-1] and len(row[0]) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(row)
    random.Random(f"{seed}/{chunk}/order").shuffle(groups)
    return [_pad(group, tokenizer.pad_token_id) for group in groups]


def _pad(rows: list, pad: int) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), length), pad)
    weights = torch.zeros(len(rows), length - 1)
    for i, (tokens, weight) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        weights[i, : len(weight)] = torch.tensor(weight)
    return Batch(ids, weights)


def count_memory(documents: list[Document], counts: Counter) -> None:
    """Count closed-book documents per fact: the frequency that `facts()` reports."""
    for d in documents:
        if d.kind == "memory":
            counts[d.subject, d.relation] += 1
