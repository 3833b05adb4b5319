"""What context and memory make of an answer that is already there, in one pass per stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conflictkit import _hf
from conflictkit.detectors import Detector
from conflictkit.errors import LogitsError
from conflictkit.streams import Stream
from conflictkit.types import Step

MOST_LOGITS = 2**28
"""Numbers that one stream's logits may hold at a time; more rows than that are read in parts."""

STREAMS = ("context", "memory")


@dataclass(frozen=True)
class Reading:
    """One answer as both streams read it: a line per token.

    Attributes:
        context, memory: log-probability of every token (natural log).
        scores: one tuple per detector, in their order, with its score at every token.
    """

    context: tuple[float, ...]
    memory: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]


def read(
    model: Any,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
    answers: Sequence[Sequence[int]],
    detectors: Sequence[Detector],
    *,
    pad_id: int,
) -> list[Reading]:
    """Score answers token by token, as decoding would have seen them.

    Args:
        model: a Hugging Face decoder-only model.
        prompts: ids of context and memory prompt of every row.
        answers: ids of every row's answer; at least one.
        detectors: what to measure.
        pad_id: id written at padding.

    Returns:
        One reading per row. Rows do not touch each other.

    Raises:
        LogitsError: logits that hold NaN or +inf, or nothing finite.
    """
    longest = max(len(answer) for answer in answers)
    vocab = model.get_input_embeddings().weight.shape[0]
    if len(answers) > 1 and len(answers) * longest * vocab > MOST_LOGITS:
        half = len(answers) // 2
        return [
            reading
            for part in (slice(None, half), slice(half, None))
            for reading in read(model, prompts[part], answers[part], detectors, pad_id=pad_id)
        ]
    logits = [
        _logits(model, [row[place] for row in prompts], answers, longest, pad_id)
        for place in range(len(STREAMS))
    ]
    lengths = torch.tensor([len(answer) for answer in answers])
    padded = torch.tensor([[*answer, *[pad_id] * (longest - len(answer))] for answer in answers])
    columns: list[list[tuple[float, ...]]] = [[] for _ in answers]
    for index in range(longest):
        rows = (lengths > index).nonzero()[:, 0]
        found = _step(logits, rows, longest - lengths[rows] + index, padded, index, detectors)
        for row, values in zip(rows.tolist(), found.T.tolist(), strict=True):
            columns[row].append(tuple(values))
    return [_reading(list(zip(*column, strict=True))) for column in columns]


def _logits(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    keep: int,
    pad: int,
) -> Tensor:
    """`[batch, keep, vocab]`; the last column predicts every row's last token."""
    texts = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    rows = Stream(model, texts, pad_id=pad, use_cache=False)
    return _hf.tail_logits(
        model,
        rows.ids,
        attention_mask=rows.mask,
        position_ids=(rows.mask.cumsum(-1) - 1).clamp_min(0),
        keep=keep,
    )


def _step(
    logits: Sequence[Tensor],
    rows: Tensor,
    places: Tensor,
    answers: Tensor,
    index: int,
    detectors: Sequence[Detector],
) -> Tensor:
    """`[2 + detectors, rows]` on the host: what is known of the answers' token `index`."""
    device = logits[0].device
    here = (rows.to(device), places.to(device))
    previous = answers[rows, index - 1].to(device) if index else None
    streams = {name: values[here] for name, values in zip(STREAMS, logits, strict=True)}
    step = Step.from_logits(streams, index, previous)
    tokens = answers[rows, index].to(device)[:, None]
    said = [step.logprobs[name].gather(-1, tokens)[:, 0] for name in STREAMS]
    measured = [detector(step) for detector in detectors]
    found = torch.stack([*said, *measured, step.invalid.float()]).cpu()
    if found[-1].any():
        bad = rows[found[-1].bool()].tolist()
        raise LogitsError(
            f"answer token {index + 1}, rows {bad}: logits hold NaN or +inf, or nothing finite "
            "(look at the model's dtype)"
        )
    return found[:-1]


def _reading(columns: list[tuple[float, ...]]) -> Reading:
    return Reading(columns[0], columns[1], tuple(columns[2:]))
