"""The streams of a run: which prompts each reads, and what is changed in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from conflictkit.controller import Controller
from conflictkit.detectors.probe import HEADS
from conflictkit.interventions.activations import Edit, Edits
from conflictkit.interventions.edited import EditRule, Prompts
from conflictkit.interventions.taps import LayerTap, ReadingTap
from conflictkit.per_row import PerRow
from conflictkit.prompt_cache import PromptCache
from conflictkit.streams import Stream
from conflictkit.types import Control

EDITED = ("edited", "masked")
"""Streams that read the context stream's prompts."""

Whose = tuple[Edit, Tensor | None]
"""An edit and the `[prompts]` bool of those that it acts on; None: all."""


def open_streams(
    model: Any,
    control: Control,
    prompts: Mapping[str, Sequence[Sequence[int]]],
    *,
    pad_id: int,
    names: Iterable[str] | None = None,
    spans: Sequence[tuple[int, int]] | None = None,
    use_cache: bool = True,
    read: Mapping[str, Stream] | None = None,
    prompts_read: PromptCache | None = None,
    end_ids: Sequence[int] = (),
) -> dict[str, Stream]:
    """Every stream of a run, none of them read yet, but for those that are given.

    Args:
        model: a transformers model.
        control: who wins; its edits go into the streams that they name.
        prompts: stream name -> token ids of every row; `edited` and `masked` read `context`.
        pad_id, use_cache: as `Stream`.
        names: the streams wanted; None: those that the control needs.
        spans: where each row's context stands, for edits that have to know.
        read: streams of the same rows that have been read; taken where nothing is changed in them.
        prompts_read: as `Stream`.
        end_ids: what ends an answer, which probes of heads have to know.

    Raises:
        InvalidParameterError, UnsupportedError: an edit that does not fit the model.
        EmptyInputError: a row without tokens.
    """
    wanted = dict.fromkeys(control.needs if names is None else names)
    lengths = [len(row) for row in prompts.get("context", ())]
    changes = _edits(control, Prompts(lengths, spans))
    looked: dict[str, Any] = {}
    taps = _taps(control, looked, end_ids, _unread(prompts))
    if taps:
        changes.setdefault("context", []).extend((tap, None) for tap in taps)
    # In this order, because an edit may need what another stream has just computed.
    streams: dict[str, Stream] = {}
    for name in sorted(wanted, key=lambda name: name in EDITED):
        if read and name in read and name not in changes:
            streams[name] = read[name]
            continue
        ids = prompts["context" if name in EDITED else name]
        acting = None
        if own := changes.get(name):
            edits, whose = [edit for edit, _ in own], [rows for _, rows in own]
            acting = Edits(model, edits, prompt_lengths=lengths, only=whose)
        origin = streams.get("context") if name == "masked" else None
        seen = looked if taps and name == "context" else None
        streams[name] = Stream(
            model,
            ids,
            pad_id=pad_id,
            use_cache=use_cache,
            acting=acting,
            origin=origin,
            seen=seen,
            prompts_read=prompts_read,
        )
    return streams


def has_edits(control: Control) -> bool:
    """Whether some row of a run edits activations."""
    return any(isinstance(one.rule, EditRule) for one, _ in _controllers(control))


def _controllers(control: Control) -> list[tuple[Controller, Tensor | None]]:
    if isinstance(control, PerRow):
        rows = torch.tensor(control.rows)
        return [(one, rows == number) for number, one in enumerate(control.controls)]
    return [(control, None)] if isinstance(control, Controller) else []


def _taps(
    control: Control, values: dict[str, Any], ends: Sequence[int], unread: Tensor | None
) -> list[LayerTap | ReadingTap]:
    """What the gates' probes read of the context stream, and put into `values`."""
    gates = [one.gate for one, _ in _controllers(control) if one.gate is not None]
    probes = {one.probe.place: one.probe for one in gates if one.probe is not None}
    reading = [one for one in probes.values() if one.kind == HEADS]
    places = [one.place for one in gates if one.place is not None and one.place[0] != HEADS]
    taps: list[Any] = [LayerTap(places, values)] if places else []
    return taps + [
        ReadingTap(one.place, one.layer, one.weights, ends, unread, values) for one in reading
    ]


def _unread(prompts: Mapping[str, Sequence[Sequence[int]]]) -> Tensor | None:
    """`[prompts]` bool, those without a passage: memory reads the same; None: none."""
    if "context" not in prompts or "memory" not in prompts:
        return None
    both = zip(prompts["context"], prompts["memory"], strict=True)
    same = torch.tensor([list(one) == list(other) for one, other in both])
    return same if bool(same.any()) else None


def _edits(control: Control, prompts: Prompts) -> dict[str, list[Whose]]:
    found: dict[str, list[Whose]] = {}
    for one, whose in _controllers(control):
        if isinstance(one.rule, EditRule):
            # A strength that follows a detector is the contrast's alone.
            strength = one.strength if isinstance(one.strength, float) else 1.0
            for stream, edits in one.rule.checked().edits(prompts, strength).items():
                found.setdefault(stream, []).extend((edit, whose) for edit in edits)
    return found
