"""A batch of cases whose prompts are read once, however many methods answer them.

Every method decodes from a fork of the streams that it needs, by its own clock, and nothing is
recorded meanwhile but its weights. What both streams make of the answers is read afterwards, once
for each different answer, whichever methods gave it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conflictkit import detectors, engine
from conflictkit.errors import LogitsError
from conflictkit.evaluation.asking import Ids, Ready
from conflictkit.evaluation.contenders import Contender, Group
from conflictkit.evaluation.record import Cost
from conflictkit.interventions.contrast import mix
from conflictkit.per_row import PerRow
from conflictkit.plan import open_streams
from conflictkit.prompt_cache import PromptCache
from conflictkit.scoring.forced import MOST_LOGITS
from conflictkit.stepping import Stepper
from conflictkit.streams import Stream
from conflictkit.types import Control, Generation, Step

if TYPE_CHECKING:
    from conflictkit.sampling import Decoding
    from conflictkit.toolkit import Model

SWEEP_ROWS = 128
"""Rows that the values of a sweep are decoded in at most, unless one value alone has more."""

Spoken = tuple[int, Ids]
"""Place in the batch and ids of an answer; at least one id."""


@dataclass(frozen=True)
class Reading:
    """One token of an answer as the streams see it.

    Attributes:
        scores: name -> value of every detector whose streams were read.
        tops: stream name -> `((token id, probability), ...)`, most probable first.
        logprobs: stream name -> log-probability of the token, natural log.
    """

    scores: Mapping[str, float]
    tops: Mapping[str, tuple[tuple[int, float], ...]]
    logprobs: Mapping[str, float]


class PromptsRead:
    """Prompts that a run has read, and what reading takes.

    Args:
        cache: where they are kept.
    """

    def __init__(self, cache: PromptCache) -> None:
        self.cache = cache
        self._rates: dict[str, float] = {}

    def seconds(
        self, name: str, taken: float, read: int, tokens: int, whole: Callable[[], float]
    ) -> float:
        """What `tokens` of prompts of a stream cost, had none of them been read before.

        Args:
            taken: seconds that it took to read `read` of them.
            whole: reads all of them, and says how long that took; where nothing else tells.
        """
        if 4 * read >= tokens:
            self._rates[name] = taken / read
        elif name not in self._rates:
            self._rates[name] = whole() / tokens
        return max(taken, self._rates[name] * tokens)


class Batch:
    """Cases of like length, all with a context or all without.

    Args:
        model: who is asked.
        ready: the cases.
        decoding: how answers are decoded; its seed belongs to the run's first case.
        read: prompts that have been read before.

    Side effects: reads every prompt that has not been read.
    """

    def __init__(
        self, model: Model, ready: Sequence[Ready], decoding: Decoding, read: PromptsRead
    ) -> None:
        self.model, self.ready, self._decoding = model, ready, decoding
        self._device = model.model.get_input_embeddings().weight.device
        self._pad = model.tokenizer.pad_token_id
        self._streams: dict[str, Stream] = {}
        self._seconds: dict[str, float] = {}
        for name in ready[0].prompts:
            prompts = [one.prompts[name] for one in ready]
            stream = Stream(model.model, prompts, pad_id=self._pad, prompts_read=read.cache)
            taken = self._timed(stream.prefill)[1]
            tokens, anew = sum(map(len, prompts)), partial(self._read_anew, prompts)
            self._seconds[name] = read.seconds(name, taken, stream.tokens, tokens, anew)
            self._streams[name] = stream

    @property
    def forwards(self) -> int:
        """Passes over the weights that read the prompts."""
        return sum(stream.forwards for stream in self._streams.values())

    def answers(self, group: Group) -> Iterator[tuple[Contender, list[tuple[Generation, Cost]]]]:
        """Answers of every case, in order, under every method of the group; records hold weights
        and the methods' own scores, and nothing else.

        Raises:
            LogitsError: a row that no rule can act on.
        """
        size = len(self.ready)
        together = max(1, SWEEP_ROWS // size)
        for start in range(0, len(group), together):
            part = group[start : start + together]
            made, seconds = self._timed(lambda part=part: self._decode(part))
            for number, one in enumerate(part):
                mine = made[number * size : (number + 1) * size]
                share = seconds / len(made) + self._prefill(one) / size
                yield (
                    one,
                    [
                        (answer, self._cost(row, one, answer, share))
                        for row, answer in enumerate(mine)
                    ],
                )

    def read(self, said: Sequence[Spoken], top: int) -> Iterator[tuple[Spoken, list[Reading]]]:
        """What the streams make of answers, token by token, as decoding would have seen them.

        Args:
            said: answers of at least one id, in any order.
            top: candidates of each stream to keep.

        Raises:
            LogitsError: logits that hold NaN or +inf, or nothing finite.
        """
        for part in self._parts(said):
            logits, _ = self._follow(part)
            places = [(row, i) for row, (_, ids) in enumerate(part) for i in range(len(ids))]
            rows, columns = torch.tensor(places, device=self._device).T
            step = Step.from_logits({name: value[rows, columns] for name, value in logits.items()})
            tokens = [token for _, ids in part for token in ids]
            readings = iter(_readings(step, tokens, top))
            for one in part:
                yield one, [next(readings) for _ in one[1]]

    def choices(self, control: Control, said: Sequence[Spoken]) -> dict[Spoken, float]:
        """Log-probability of answers (natural log, summed over their tokens) under a method.

        Raises:
            LogitsError: as `answers`.
        """
        found: dict[Spoken, float] = {}
        for part in self._parts(said):
            found |= zip(part, self._fold(control, *self._follow(part, control), part), strict=True)
        return found

    def _fold(
        self,
        control: Control,
        logits: Mapping[str, Tensor],
        seen: Sequence[Mapping[str, Tensor]],
        part: Sequence[Spoken],
    ) -> list[float]:
        lengths = torch.tensor([len(ids) for _, ids in part], device=self._device)
        tokens = self._padded(part)
        state = control.initial(len(part), self._device)
        total = torch.zeros(len(part), device=self._device, dtype=torch.float64)
        for index in range(tokens.shape[1]):
            here = {name: logits[name][:, index] for name in control.needs}
            step = Step.from_logits(here, index, tokens[:, index - 1] if index else None)
            step = replace(step, activations=seen[index]) if seen else step
            combined = mix(step, control(step, state))
            state = combined.state
            going = lengths > index
            _check(step, going)
            said = combined.logits.log_softmax(-1).gather(-1, tokens[:, index : index + 1])[:, 0]
            total += torch.where(going, said.double(), 0.0)
        return total.tolist()

    def _decode(self, part: Group) -> list[Generation]:
        """The answers of all methods, one method's after the other's."""
        size = len(self.ready)
        control = PerRow.of([one.policy.controller for one in part for _ in range(size)])
        needed = self._open(control, torch.arange(size).repeat(len(part)))
        decoding = self._decoding
        if isinstance(decoding.seed, int):
            # A case draws the same numbers under every method and in every batch.
            seeds = tuple(decoding.seed + one.number for one in self.ready)
            decoding = replace(decoding, seed=seeds * len(part))
        run = Stepper(
            needed,
            control,
            decoding,
            end_ids=self.model._end_ids,
            decode=self.model._decode,
            top=0,
        )
        return [row[0] for row in engine.generate(run)]

    def _open(self, control: Control | None, rows: Tensor) -> dict[str, Stream]:
        """The streams that a control needs (None: all that were read), for these rows of the batch;
        what is changed while it is read has to be read again."""
        names = [n for n in self._streams if control is None or n in control.needs]
        read = {name: self._streams[name].fork() for name in names}
        for stream in read.values():
            stream.select(rows)
        if control is None:
            return read
        mine = [self.ready[row] for row in rows.tolist()]
        spans = [one.span for one in mine if one.span is not None]
        return open_streams(
            self.model.model,
            control,
            {name: [one.prompts[name] for one in mine] for name in self._streams},
            pad_id=self._pad,
            end_ids=self.model._end_ids,
            spans=spans if len(spans) == len(mine) else None,
            read=read,
        )

    def _read_anew(self, prompts: Sequence[Ids]) -> float:
        """Seconds of reading prompts of which nothing is kept."""
        stream = Stream(self.model.model, prompts, pad_id=self._pad)
        return self._timed(stream.prefill)[1]

    def _prefill(self, one: Contender) -> float:
        """Seconds of the streams that were read before; others are read while it decodes."""
        return sum(self._seconds.get(name, 0.0) for name in one.needs)

    def _cost(self, row: int, one: Contender, answer: Generation, seconds: float) -> Cost:
        """What this row would have taken by itself, but for the seconds."""
        chosen = len(answer.records)
        prompts = self.ready[row].prompts
        # The last token chosen is read by no stream; `masked` takes over all but one of the prompt.
        before = {name: len(ids) for name, ids in prompts.items()}
        before |= {"edited": before.get("context", 0), "masked": 1}
        read = {name: before[name] + chosen - 1 for name in one.needs}
        extra = 0.0
        for name in one.needs[1:] or ("memory",):
            growing, fixed = self._cache[name if name in self._cache else "context"]
            extra += growing * read[name] + fixed if name in read else 0.0
        memory = read.pop("memory", 0)
        return Cost(
            forwards=chosen * len(one.needs),
            context_tokens=sum(read.values()),
            memory_tokens=memory,
            seconds=seconds,
            cache_bytes=round(extra),
        )

    @cached_property
    def _cache(self) -> dict[str, tuple[float, float]]:
        return {name: stream.cache_bytes for name, stream in self._streams.items()}

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What some work returns, and its seconds on the device."""
        self._wait()
        began = time.perf_counter()
        made = work()
        self._wait()
        return made, time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _parts(self, said: Sequence[Spoken]) -> Iterator[list[Spoken]]:
        """Answers of like length, as many as may be read at once."""
        vocab = self.model.model.get_input_embeddings().weight.shape[0]
        part: list[Spoken] = []
        for one in sorted(said, key=lambda one: (len(one[1]), one)):
            full = len(part) == max(len(self.ready), 2)
            if part and (full or (len(part) + 1) * len(one[1]) * vocab > MOST_LOGITS):
                yield part
                part = []
            part.append(one)
        if part:
            yield part

    def _padded(self, part: Sequence[Spoken]) -> Tensor:
        longest = max(len(ids) for _, ids in part)
        rows = [[*ids, *[self._pad] * (longest - len(ids))] for _, ids in part]
        return torch.tensor(rows, device=self._device)

    def _follow(
        self, part: Sequence[Spoken], control: Control | None = None
    ) -> tuple[dict[str, Tensor], list[Mapping[str, Tensor]]]:
        """Stream name -> `[rows, longest, vocab]` logits before every token of these answers: the
        streams of the prompts, or those that a control needs; and what its probes read there."""
        index = torch.tensor([row for row, _ in part], device=self._device)
        tokens = self._padded(part)[:, :-1]
        lengths = torch.tensor([len(ids) for _, ids in part], device=self._device)
        mask = torch.arange(tokens.shape[1], device=self._device) < lengths[:, None] - 1
        found: dict[str, Tensor] = {}
        seen: list[Mapping[str, Tensor]] = []
        for name, stream in self._open(control, index).items():
            logits = [stream.prefill()[:, None]]
            seen += [_last(stream)] if stream.seen else []
            # Only the end of a pass is seen.
            size = 1 if stream.seen else max(tokens.shape[1], 1)
            for several, where in zip(tokens.split(size, 1), mask.split(size, 1), strict=True):
                if several.shape[1]:
                    logits.append(stream.follow(several, where))
                    seen += [_last(stream)] if stream.seen else []
            found[name] = torch.cat(logits, dim=1)
        return found, seen


def _last(stream: Stream) -> dict[str, Tensor]:
    """What probes read at the end of the newest pass."""
    return {name: values[:, -1] for name, values in stream.seen.items()}


def _readings(step: Step, tokens: Sequence[int], top: int) -> list[Reading]:
    _check(step, torch.ones_like(step.invalid))
    known = [detectors.get(name) for name in detectors.names()]
    measured = [one for one in known if set(one.needs) <= set(step.logprobs)]
    names = [one.name.replace("-", "_") for one in measured]
    scores = torch.stack([one(step) for one in measured], dim=1).tolist()
    column = torch.tensor(tokens, device=step.invalid.device)[:, None]
    said, tops = {}, {}
    for name, logprobs in step.logprobs.items():
        said[name] = logprobs.gather(-1, column)[:, 0].tolist()
        best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
        pairs = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        tops[name] = [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return [
        Reading(
            dict(zip(names, scores[place], strict=True)),
            {name: rows[place] for name, rows in tops.items()},
            {name: rows[place] for name, rows in said.items()},
        )
        for place in range(len(tokens))
    ]


def _check(step: Step, rows: Tensor) -> None:
    if (step.invalid & rows).any():
        raise LogitsError(
            f"answer token {step.index + 1}: logits hold NaN or +inf, or nothing finite "
            "(look at the model's dtype)"
        )
