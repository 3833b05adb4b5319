"""One batch of streams under one rule, step by step: what every decoding loop shares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from conflictkit._hf_compiled import Steps
from conflictkit._hf_packed import binds_rows
from conflictkit.detectors import Detector
from conflictkit.drafting import LONGEST, Drafter
from conflictkit.errors import InvalidParameterError, LogitsError, UnsupportedError
from conflictkit.interventions.contrast import mix
from conflictkit.passages import SourceLog
from conflictkit.sampling import Decoding
from conflictkit.steplog import StepLog
from conflictkit.streams import Stream
from conflictkit.together import Road, Together
from conflictkit.types import Combined, Control, Generation, Stats, Step, TokenRecord, merged

Processor = Callable[[Tensor, Tensor], Tensor]
"""transformers' logits processor: `(ids [batch, length], logits [batch, vocab]) -> logits`."""


@dataclass
class Answer:
    """An answer while it grows: everything that `Generation` holds but the run's cost.

    A beam's `path` names, for each of its tokens, the row of the batch that it was chosen in.
    """

    ids: list[int] = field(default_factory=list)
    records: list[TokenRecord] = field(default_factory=list)
    finish_reason: str = "length"
    score: float = 0.0
    end_token: int | None = None
    path: tuple[int, ...] = ()

    def finished(self, stats: Stats) -> Generation:
        """The answer as a `Generation`."""
        return Generation(
            tuple(self.ids), tuple(self.records), self.finish_reason, self.score, stats
        )


@dataclass
class Host:
    """What somebody else's loop, such as transformers' `generate`, asks of a run inside it.

    With a host rows stay in the batch after their answers have ended, because its processors may
    hold something per row.

    Attributes:
        ids: `[batch, length]` the prompts as the host knows them; processors, warpers and
            `stopping` see these ids and what follows, whatever the streams read.
        fill: token written behind an answer's end.
        warpers: applied to the controlled scores, in order.
        stopping: `(ids [rows, length], scores)` -> `[rows]` bool, which rows end there.
        keep: keep the answering stream's logits and the controlled scores of every step.
        logits, scores: what was kept, `[rows, vocab]` each.
    """

    ids: Tensor
    fill: int
    warpers: Sequence[Processor]
    stopping: Callable[[Tensor, Any], Tensor]
    keep: bool = False
    logits: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)


class Stepper:
    """The streams of a run, its rule and the rule's state, moved together.

    Args:
        streams: name -> stream, none of them read yet, all with the same number of rows. Every
            name in `rule.needs` must be there. The answering stream is the context stream where
            there are processors or a host to read it, otherwise the first that the rule needs.
        rule: who wins: a controller, or one controller per row.
        decoding: greedy, sampling or beams, lengths and stops.
        end_ids: token ids that end an answer.
        decode: ids -> text, to look for stop texts.
        detectors: scores to record beside the rule's own.
        top: number of candidates of each stream to record; None: record nothing at all.
        compare: names of streams to compare with one another at every token that is recorded.
        processors: transformers' logits processors, applied to the answering stream before the
            rule, in order; beams hand them log-probabilities, as transformers' do.
        host: the loop that this run is part of, if it is part of one.
        road: the best way through the answer to take; see `conflictkit.together`.
        drafts: most tokens to guess ahead in each row; None: as many as are worth it.
        steps: compile the step that all streams take together; where it may have been before.

    Raises:
        UnsupportedError: a step that cannot be compiled, or drafts that cannot be taken back.
        InvalidParameterError: a stream that the rule or a detector needs is missing, the streams
            have different numbers of rows, or drafts where a host, beams or processors choose.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        rule: Control,
        decoding: Decoding,
        *,
        end_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        detectors: Sequence[Detector] = (),
        top: int | None = 5,
        compare: Sequence[str] = (),
        processors: Sequence[Processor] = (),
        host: Host | None = None,
        road: Road = "packed",
        drafts: int | None = 0,
        steps: Steps | None = None,
    ) -> None:
        needed = [(f"rule '{rule.name}'", rule.needs)]
        needed += [(f"detector '{detector.name}'", detector.needs) for detector in detectors]
        needed.append(("the comparison", tuple(compare)))
        for who, names in needed:
            missing = [name for name in names if name not in streams]
            if missing:
                raise InvalidParameterError(f"{who} needs the stream '{missing[0]}'")
        if len({stream.batch for stream in streams.values()}) != 1:
            raise InvalidParameterError("all streams of a run must have the same number of rows")
        # What processors do to a row must not depend on what its batch mates need.
        read = "context" in streams and bool(processors or host)
        first = "context" if read else rule.needs[0]
        self.streams = {first: streams[first], **streams}
        self.rule = rule
        self.decoding = decoding
        self.end_ids = frozenset(end_ids)
        self.decode = decode
        self.detectors = tuple(detectors)
        self.top = top
        self.compare = tuple(compare)
        self.processors = tuple(processors)
        self.host = host
        self.first = first
        self.batch = self.streams[first].batch
        self._together = Together(self.streams, road, steps=steps, room=decoding.max_new_tokens)
        apart = bool(host or processors or steps) or decoding.num_beams > 1
        if drafts and apart:
            raise InvalidParameterError(
                "drafts are for answers chosen token by token: leave out beams, processors and "
                "compile"
            )
        model = self.streams[first].model
        if drafts and binds_rows(model):
            raise UnsupportedError(
                f"{type(model).__name__} cannot take drafts back, or counts them as places: leave "
                "drafts at 0"
            )
        drafting = drafts != 0 and not apart and not binds_rows(model)
        # Rows that stay in the batch after their answers have ended.
        self.keeps_rows = bool(host or steps)
        self.drafter = Drafter(self._prompts(), drafts) if drafting else None
        self._logits: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}
        self._state: Mapping[str, Tensor] = {}
        self._widths = [one.ids.shape[1] for one in self.streams.values()]
        self._written = [0] * self.batch  # tokens of each row's answer
        self._previous: Tensor | None = None
        # With drafts: the logits behind every token of the newest pass, and where each row is.
        self._ahead: Mapping[str, Tensor] = {}
        self._at: Tensor = torch.zeros(0)

    def _prompts(self) -> list[tuple[int, ...]]:
        """Where drafts come from: what the context stream reads, or the first."""
        return self.streams.get("context", self.streams[self.first]).rows()

    def start(self, copies: int) -> None:
        """Read the prompts and repeat every row `copies` times."""
        for name, stream in self.streams.items():
            self._logits[name] = stream.prefill()
        self._look()
        device = self._logits[self.first].device
        self._state = self.rule.initial(self.batch, device)
        if copies > 1:
            self.select(torch.arange(self.batch).repeat_interleave(copies))
            self._logits = {
                name: logits.repeat_interleave(copies, 0) for name, logits in self._logits.items()
            }
            self._seen = {
                name: values.repeat_interleave(copies, 0) for name, values in self._seen.items()
            }

    def _look(self, back: Tensor | int = 1) -> None:
        """Take what probes read of the newest pass, `back` positions from its end."""
        if "context" not in self.streams:
            return
        seen = self.streams["context"].seen
        apart = isinstance(back, Tensor)
        rows = torch.arange(len(back), device=back.device) if apart else slice(None)
        self._seen = {name: values[rows, -back] for name, values in seen.items()}

    def predict(self, rows: Tensor | None = None) -> tuple[Step, Combined]:
        """What every stream says about the next token, and what the rule makes of it.

        Args:
            rows: `[batch]` bool, those that ask; what the others remember stays as it is. None:
                all.
        """
        device = self._logits[self.first].device
        logits = {name: values.to(device) for name, values in self._logits.items()}
        if self.processors or self.host:
            if self.host and self.host.keep:
                self.host.logits.append(logits[self.first].float())
            # The edited stream speaks for the context, so what is asked of that is asked of it.
            for name in dict.fromkeys((self.first, "edited")):
                if name in logits:
                    own = logits[name].float()
                    if self.decoding.num_beams > 1:
                        own = own.log_softmax(-1)
                    for processor in self.processors:
                        own = processor(self.ids, own)
                    logits[name] = own
        step = Step.from_logits(logits, max(self._written), self._previous)
        if self._seen:
            step = replace(step, activations=self._seen)
        combined = mix(step, self.rule(step, self._state))
        self._state = combined.state if rows is None else merged(rows, combined.state, self._state)
        if self.host:
            warped = combined.logits
            for warper in self.host.warpers:
                warped = warper(self.ids, warped)
            if self.host.keep:
                self.host.scores.append(warped)
            combined = replace(combined, logits=warped)
        return step, combined

    @property
    def ids(self) -> Tensor:
        """`[batch, length]` prompt and answer so far, as processors see them."""
        return self.host.ids if self.host else self.streams[self.first].ids

    def stopped(self, rows: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Which of these tokens, each appended to its row, the host would end an answer with."""
        if self.host is None:
            return [False] * len(rows)
        ids = self.host.ids
        newest = torch.tensor(tokens, device=ids.device)[:, None]
        kept = tuple(self.host.scores) if self.host.keep else None
        return self.host.stopping(torch.cat([ids[list(rows)], newest], dim=1), kept).tolist()

    def advance(self, tokens: Tensor) -> None:
        """Append one token to every row of every stream."""
        self._written = [one + 1 for one in self._written]
        self._previous = tokens.to(self._logits[self.first].device)
        if self.host:
            newest = tokens.to(self.host.ids.device)[:, None]
            self.host.ids = torch.cat([self.host.ids, newest], dim=1)
        self._logits = self._together.step(tokens)
        self._look()

    def advance_ahead(self, tokens: Sequence[int], drafts: Sequence[Sequence[int]]) -> None:
        """Append one token to every row of every stream, and behind it what may come next."""
        width = 1 + max(map(len, drafts))
        if width == 1:
            self._ahead = {}
            self.advance(torch.tensor(tokens))
            return
        self._written = [one + 1 for one in self._written]
        rows = [[one, *draft] for one, draft in zip(tokens, drafts, strict=True)]
        device = self._logits[self.first].device
        ids = torch.tensor([row + [row[0]] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        self._ahead = self._together.follow(ids, mask.to(device), sum(map(len, rows)))
        self._at = torch.zeros(len(rows), dtype=torch.long, device=device)
        self._previous = ids[:, 0]
        self._here()

    def room_ahead(self) -> int:
        """How many tokens may be drafted so that no stream takes more columns than without drafts:
        a model's window may hold no more."""

        def left() -> int:
            most = self.decoding.max_new_tokens
            streams = zip(self.streams.values(), self._widths, strict=True)
            return min(width + most - one.mask.shape[1] for one, width in streams)

        if left() <= LONGEST:
            self._together.close_gaps()
        return left() - 1

    def accept(self, right: Collection[int], tokens: Tensor) -> None:
        """Go on with what was drafted, in these rows: it was right."""
        self._written = [one + (row in right) for row, one in enumerate(self._written)]
        rows = torch.tensor([row in right for row in range(len(self._written))])
        rows = rows.to(self._at.device)
        self._at = self._at + rows
        assert self._previous is not None
        self._previous = torch.where(rows, tokens.to(rows.device), self._previous)
        self._here()

    def _here(self) -> None:
        """What the streams say where each row is."""
        rows = torch.arange(len(self._at), device=self._at.device)
        self._logits = {
            name: values[rows.to(values.device), self._at.to(values.device)]
            for name, values in self._ahead.items()
        }
        width = next(iter(self._ahead.values())).shape[1]
        self._look(width - self._at)

    def take_back(self, kept: Sequence[int]) -> None:
        """Forget what was drafted in vain.

        Args:
            kept: of each row, how many tokens of the newest pass stay.
        """
        if not self._ahead:
            return
        width = next(iter(self._ahead.values())).shape[1]
        most = max(kept)
        self._together.roll_back(width - most)
        if min(kept) < most:
            places = torch.arange(most)
            self._together.forget((places < torch.tensor(kept)[:, None]).long())
        self._ahead = {}

    def select(self, index: Tensor) -> None:
        """Keep the rows `index` of every stream, of the rule's state and of what is drafted."""
        self._together.select(index)
        self._written = [self._written[row] for row in index.tolist()]
        if self.drafter is not None:
            self.drafter.select(index.tolist())
        if self.host:
            self.host.ids = self.host.ids[index.to(self.host.ids.device)]
        self._state = {
            name: values[index.to(values.device)] for name, values in self._state.items()
        }

    def log(self, step: Step, combined: Combined) -> StepLog | None:
        """What to remember of this step, for all rows; None if the run records nothing."""
        if self.top is None:
            return None
        # One spelling of score names, the one that rules use.
        scores = {item.name.replace("-", "_"): item(step) for item in self.detectors}
        for name, values in combined.scores.items():
            # A batch of several methods has no score in the rows of the others (NaN).
            known = scores.get(name, values)
            scores[name] = torch.where(values.isnan(), known, values)
        compared = SourceLog(step, self.compare) if self.compare else None
        return StepLog(step, combined, scores, self.top, compared)

    def check(self, step: Step, invalid: Sequence[bool]) -> None:
        """Raise `LogitsError` if some row cannot be acted on."""
        rows = [row for row, bad in enumerate(invalid) if bad]
        if rows:
            raise LogitsError(
                f"answer token {step.index + 1}, rows {rows}: logits hold NaN or +inf, or nothing "
                "finite is left to choose (look at the model's dtype and at the processors)"
            )

    def ending(self, ids: Sequence[int], token: int, stopped: bool) -> str | None:
        """Why an answer with these ids (`token` the newest) ends here, or None if it goes on.

        `stopped` is what `Stepper.stopped` says of it.
        """
        if token in self.end_ids:
            return "eos"
        if stopped:
            return "stop"
        if self.decoding.stop:
            text = self.decode(ids)
            if any(stop in text for stop in self.decoding.stop):
                return "stop"
        return "length" if len(ids) >= self.decoding.max_new_tokens else None

    def stats(self) -> Stats:
        """Cost so far of the streams that answering needs; what is only recorded is not counted."""
        needs = {self.first, *self.rule.needs}
        own = {name: stream for name, stream in self.streams.items() if name in needs}
        tokens = {name: stream.tokens for name, stream in own.items()}
        forwards = sum(stream.forwards for stream in own.values())
        passes = forwards - sum(stream.rides for stream in own.values())
        memory = tokens.pop("memory", 0)
        edits = sum(stream.edits for stream in own.values())
        road = self._together.road
        road = "single" if len(own) == 1 and road != "compiled" else road
        drafted = (self.drafter.drafted, self.drafter.accepted) if self.drafter else (0, 0)
        return Stats(forwards, sum(tokens.values()), memory, edits, passes, road, *drafted)
