"""Beam search over the controlled scores, for any rule and any number of streams.

Beams add the rule's normalised log-probabilities. Candidates, the ranking by
`score / length ** length_penalty` (length counts the end token) and the moment to stop follow
transformers' beam search with its default `early_stopping=False`, so that both find the same
answers; a width of at least vocab ** (n - 1) makes the search exhaustive.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from conflictkit.steplog import StepLog
from conflictkit.stepping import Answer, Stepper
from conflictkit.types import TokenRecord


@dataclass(frozen=True)
class _Beam:
    """A prefix: its tokens, what was recorded of them, its summed score, the row of each token."""

    score: float
    ids: tuple[int, ...] = ()
    records: tuple[TokenRecord, ...] = ()
    path: tuple[int, ...] = ()


@dataclass
class _Row:
    """The search of one question."""

    live: list[_Beam]
    done: list[tuple[float, _Beam, str]] = field(default_factory=list)  # ranking score, best first
    closed: bool = False


_NEVER = -1e9
"""transformers' score of beams and answers that are not there, with which it fills up to the width
where processors leave less than that to choose from."""


def search(run: Stepper) -> list[list[Answer]]:
    """Best `decoding.n` answers of every row, best first.

    Fewer where the scores left fewer to choose. With a host always as many, as in transformers:
    an answer may then be there twice, have no tokens (score -1e9), or hold forbidden ones (-inf).
    """
    width = run.decoding.num_beams
    run.start(width)
    rows = [_begin(run, width) for _ in range(run.batch)]
    keep = max(2, 1 + len(run.end_ids)) * width
    while True:
        step, combined = run.predict()
        run.check(step, step.invalid.tolist())
        log = run.log(step, combined)
        # A host adds what its processors left of the log-probabilities, normalised or not.
        scores = combined.logits if run.host else combined.logits.log_softmax(-1)
        for number, row in enumerate(rows):
            if row.closed:
                continue
            offset = number * width
            base = torch.tensor([beam.score for beam in row.live], device=scores.device)
            totals = (scores[offset : offset + len(row.live)] + base[:, None]).flatten()
            best = totals.topk(min(keep, totals.numel()))
            vocab = scores.shape[-1]
            found = [
                (total, place // vocab, place % vocab)
                for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                if run.host or total > -torch.inf
            ]
            _extend(run, row, found, offset, log)
        if all(row.closed for row in rows):
            break
        _move(run, rows, width)
    return [
        [_answer(beam, reason) for _, beam, reason in row.done[: run.decoding.n]] for row in rows
    ]


def _begin(run: Stepper, width: int) -> _Row:
    if run.host is None:
        return _Row([_Beam(0.0)])
    nothing = _Beam(_NEVER)
    idle = [nothing] * (width - 1)
    return _Row([_Beam(0.0), *idle], [(_NEVER, nothing, "length")] * width)


def _extend(
    run: Stepper,
    row: _Row,
    found: list[tuple[float, int, int]],
    offset: int,
    log: StepLog | None,
) -> None:
    """One step of one row: candidates become live beams or finished answers."""
    width, penalty = run.decoding.num_beams, run.decoding.length_penalty
    length = len(row.live[0].ids) + 1
    live: list[_Beam] = []
    rows = [offset + parent for _, parent, _ in found]
    stopped = run.stopped(rows, [token for _, _, token in found])
    for rank, (total, parent, token) in enumerate(found):
        source = row.live[parent]
        ids = (*source.ids, token)
        reason = run.ending(ids, token, stopped[rank])
        # An end that is not among the best `width` is no answer, nor is a beam beyond them.
        if len(live) == width if reason is None else rank >= width:
            continue
        records = source.records
        if log is not None:
            records = (*records, log.record(offset + parent, token))
        beam = _Beam(total, ids, records, (*source.path, offset + parent))
        if reason is None:
            live.append(beam)
        else:
            row.done.append((total / length**penalty, beam, reason))
    row.done.sort(key=lambda entry: -entry[0])
    del row.done[width:]
    row.live = live
    if not live:
        row.closed = True
    elif len(row.done) == width:
        row.closed = live[0].score / length**penalty <= row.done[-1][0]


def _move(run: Stepper, rows: list[_Row], width: int) -> None:
    """Put every live beam into a row of the streams; idle rows repeat one."""
    index: list[int] = []
    tokens: list[int] = []
    for number, row in enumerate(rows):
        beams = [] if row.closed else row.live
        origins = [beam.path[-1] for beam in beams] or [number * width]
        newest = [beam.ids[-1] for beam in beams] or [0]
        spare = width - len(origins)
        index += origins + [origins[0]] * spare
        tokens += newest + [newest[0]] * spare
    run.select(torch.tensor(index))
    run.advance(torch.tensor(tokens))


def _answer(beam: _Beam, reason: str) -> Answer:
    ids, end = (beam.ids[:-1], beam.ids[-1]) if reason == "eos" else (beam.ids, None)
    return Answer(list(ids), list(beam.records), reason, beam.score, end, beam.path)
