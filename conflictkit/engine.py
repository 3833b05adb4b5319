"""The decoding loop over streams, one pass per stream and step: the definition of correct.

The loop knows nothing of two streams: it reads every stream it is given, hands one `Step` to the
rule, and writes the rule's choice back into every stream. Cost for n answer tokens (end token
included) and s streams: s prefills and s * (n - 1) further forwards.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch

from conflictkit.beams import search
from conflictkit.sampling import Chooser
from conflictkit.stepping import Answer, Stepper
from conflictkit.types import Generation, TokenRecord


@dataclass(frozen=True)
class Event:
    """One answer token, as soon as it is chosen.

    Attributes:
        row: which question.
        sample: which of its answers.
        token: the token id.
        record: what happened there, if the run records.
        finish_reason: `eos`, `stop` or `length` with an answer's last token, else None. The token
            of an `eos` event is not part of the answer.
    """

    row: int
    sample: int
    token: int
    record: TokenRecord | None
    finish_reason: str | None


def stream(run: Stepper) -> Generator[Event, None, list[list[Generation]]]:
    """Decode, yielding every token as it is chosen; beams yield their answers at the end.

    Args:
        run: streams that have not been read yet, with rule and decoding.

    Returns:
        As the generator's value: `[question][answer]`, beams best first.

    Raises:
        LogitsError: a row that no rule can act on.
    """
    if run.decoding.num_beams > 1:
        answers = search(run)
        for row, candidates in enumerate(answers):
            for sample, answer in enumerate(candidates):
                yield from _replay(row, sample, answer)
    else:
        answers = yield from _sample(run)
    stats = run.stats()
    return [[answer.finished(stats) for answer in row] for row in answers]


def generate(run: Stepper) -> list[list[Generation]]:
    """Decode to the end: `[question][answer]`, beams best first. Raises as `stream`."""
    events = stream(run)
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def _sample(run: Stepper) -> Generator[Event, None, list[list[Answer]]]:
    """Greedy decoding and sampling, with or without drafts."""
    copies = run.decoding.n
    run.start(copies)
    answers = [[Answer() for _ in range(copies)] for _ in range(run.batch)]
    places = [(row, sample) for row in range(run.batch) for sample in range(copies)]
    chooser = Chooser(run.decoding, len(places))
    over: set[int] = set()  # rows whose answers have ended
    asking = set(range(len(places)))  # rows of which the next token is known before the next pass
    newest = [0] * len(places)
    drafts: list[list[int]] = [[] for _ in places]
    right = [0] * len(places)  # how many of its draft's tokens a row has chosen
    while True:
        every = len(asking) + len(over) == len(places)
        rows = None if every else torch.tensor([row in asking for row in range(len(places))])
        step, combined = run.predict(rows)
        tokens = chooser.choose(combined.logits, None if every else asking)
        if run.host and over:
            tokens[sorted(over)] = run.host.fill
            newest = [run.host.fill if row in over else one for row, one in enumerate(newest)]
        chosen = combined.logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        log = run.log(step, combined)
        # One transfer to the host per step.
        host = torch.stack([tokens.double(), chosen.double(), step.invalid.double()]).tolist()
        run.check(step, [bad > 0 and row in asking for row, bad in enumerate(host[2])])
        stopped = run.stopped(range(len(places)), [int(token) for token in host[0]])
        kept: set[int] = set()
        for position in sorted(asking):
            row, sample = places[position]
            answer, token = answers[row][sample], int(host[0][position])
            newest[position] = token
            answer.score += host[1][position]
            record = log.record(position, token) if log else None
            if record:
                answer.records.append(record)
            reason = run.ending([*answer.ids, token], token, stopped[position])
            if reason == "eos":
                answer.end_token = token
            else:
                answer.ids.append(token)
            if reason is not None:
                answer.finish_reason = reason
                over.add(position)
            if run.drafter is not None:
                guessed = drafts[position][right[position] : right[position] + 1] == [token]
                run.drafter.add(position, token, guessed=guessed)
                if guessed and reason is None:
                    kept.add(position)
            yield Event(row, sample, token, record, reason)
        if kept:
            for position in kept:
                right[position] += 1
            asking = kept
            run.accept(kept, tokens)
            continue
        if len(over) == len(places):
            break
        if run.drafter is not None:
            run.take_back([1 + count for count in right])
            for position, count in enumerate(right):
                run.drafter.settle(position, len(drafts[position]), count)
        going = [row for row in range(len(places)) if run.keeps_rows or row not in over]
        if len(going) < len(places):
            run.select(torch.tensor(going, device=tokens.device))
            chooser.select(going)
            places, newest = [places[row] for row in going], [newest[row] for row in going]
            over = set()
        if run.drafter is None:
            run.advance(torch.tensor(newest, device=tokens.device))
        else:
            columns, most = run.room_ahead(), run.decoding.max_new_tokens - 1
            room = [min(most - len(answers[r][s].ids), columns) for r, s in places]
            drafts = [run.drafter.draft(row, left) for row, left in enumerate(room)]
            run.advance_ahead(newest, drafts)
        right = [0] * len(places)
        asking = set(range(len(places))) - over
    return answers


def _replay(row: int, sample: int, answer: Answer) -> Iterator[Event]:
    """Events of an answer that was found as a whole."""
    tokens = answer.ids + ([answer.end_token] if answer.end_token is not None else [])
    for position, token in enumerate(tokens):
        last = position == len(tokens) - 1
        record = answer.records[position] if answer.records else None
        yield Event(row, sample, token, record, answer.finish_reason if last else None)
