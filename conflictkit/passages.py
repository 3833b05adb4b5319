"""One stream per passage: its name, its prompt, and how it compares with the others at a token.

A passage's stream reads the question with that passage alone, worded as if it were the only one.
It is read for the record: no method decides by it, and the answer is the same without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from conflictkit.detectors.divergence import pairwise_jsd
from conflictkit.errors import InvalidParameterError
from conflictkit.streams import Stream
from conflictkit.types import Comparison, Step


def stream_name(number: int) -> str:
    """Name of the stream that reads passage `number`, counted from 1."""
    return f"passage {number}"


def add_prompts(
    rows: Sequence[tuple[str, tuple[str, ...]]],
    prompts: Sequence[dict[str, Any]],
    build: Callable[[str, str], Mapping[str, Any]],
) -> None:
    """Put a prompt for every passage beside the prompts of its row, in place.

    Args:
        rows: question and passages of every row.
        prompts: stream name -> `Prompt` of every row.
        build: question, passage -> prompts; its `context` is taken.

    Raises:
        InvalidParameterError: a row without passages.
        ContextTooLongError, BoundaryError: as `conflictkit.prompts.build_prompts`.
    """
    for number, (_, passages) in enumerate(rows, 1):
        if not passages:
            where = f"row {number} has none" if len(rows) > 1 else "there are none"
            raise InvalidParameterError(
                f"per_passage reads the passages one by one, but {where}: pass documents=[...] "
                "(command line: --context)"
            )
    for (question, passages), own in zip(rows, prompts, strict=True):
        for number, passage in enumerate(passages, 1):
            own[stream_name(number)] = build(question, passage)["context"]


def sources(prompts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the streams to compare in a batch: `memory`, then the passages of its longest row.

    Args:
        prompts: stream name -> prompt of every row, with those of the passages.
    """
    names = dict.fromkeys(name for row in prompts for name in row)
    return ("memory", *(name for name in names if name not in ("memory", "context")))


def ids(prompts: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, ...]]:
    """What the stream `name` reads in every row.

    A row with fewer passages than the longest reads its memory prompt in place of those it lacks;
    nothing is recorded of that.
    """
    return [row.get(name, row["memory"]).ids for row in prompts]


def cost(streams: Mapping[str, Stream], compared: Sequence[str]) -> dict[str, int]:
    """What reading the passages one by one took: forwards of their streams, and tokens read.

    A row with fewer passages than another of its batch reads its memory prompt in their place,
    which is counted.

    Args:
        streams: the streams of a run.
        compared: result of `sources`.
    """
    own = [streams[name] for name in compared if name != "memory"]
    return {
        "forwards": sum(stream.forwards for stream in own),
        "tokens": sum(stream.tokens for stream in own),
    }


class SourceLog:
    """What several streams make of one step.

    Their divergences are computed in float32 where the logits are and moved to the host at once.

    Args:
        step: the step; it holds every stream named.
        names: at least one stream.
    """

    def __init__(self, step: Step, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._logprobs = torch.stack([step.logprobs[name] for name in names], dim=1)
        self._jsd = pairwise_jsd(self._logprobs).tolist()

    def of(self, row: int, token: int) -> Comparison:
        """The comparison of `row`, where `token` was chosen."""
        return Comparison(
            names=self._names,
            logprobs=tuple(self._logprobs[row, :, token].tolist()),
            jsd=tuple(tuple(line) for line in self._jsd[row]),
        )
