"""Where an answer began, what a rule remembered there, and a stream that follows any rows of ids.

A logits processor is shown ids and nothing else. `Prefixes` finds the place of those ids among the
ones seen before; `Follower` moves a stream to them by re-ordering, rolling back and catching up.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from conflictkit import _hf
from conflictkit.errors import PrefixError
from conflictkit.streams import Stream
from conflictkit.types import Control, State

_MOST_PREFIXES = 16_384
_MOST_PROMPTS = 4096
"""What is remembered, in rows; the least recently used goes first."""
_MOST_GENERATIONS = 32
"""How many generations one thread may interleave: what a rule remembers is kept per token."""

_ADVICE = "pass prompt_length= to ConflictProcessor, or make a new one for each prompt"


class Prompts:
    """Prompts that answers began after, of all threads.

    Args:
        length: what the user says they are long; None: found out.
    """

    def __init__(self, length: int | None) -> None:
        self.length = length
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, keys: Sequence[bytes], length: int) -> None:
        """Remember the rows of a prompt."""
        with self._lock:
            for key in keys:
                self._known[key] = length
                self._known.move_to_end(key)
            while len(self._known) > _MOST_PROMPTS:
                self._known.popitem(last=False)

    def extended_by(self, ids: Tensor, groups: Sequence[int]) -> bool:
        """Whether some row of `[rows, length]` ids goes on after a known, shorter prompt."""
        with self._lock:
            known = dict(self._known)
        lengths = sorted({length for length in known.values() if length < ids.shape[1]})
        return any(key in known for length in lengths for key in _keys(ids[:, :length], groups))


@dataclass(frozen=True)
class Place:
    """Where some rows are in their answers.

    Attributes:
        start: width of the ids where the answers began.
        state: what the rule remembers before this step.
        keys: names of the rows.
        before: what is known of each row without its last token, if that belongs to its answer.
    """

    start: int
    state: State
    keys: tuple[bytes, ...]
    before: tuple[_Kept | None, ...]


@dataclass(frozen=True)
class _Kept:
    """What is known of a row of ids, as part of the answer that began at one place.

    Attributes:
        state, row: what the rule remembers after it, in this row.
        likeliest: the token that was likeliest to come next.
        generation: number of the generation it belongs to.
        next: the rows that came after it, with one token more.
    """

    state: State
    row: int
    likeliest: int
    generation: int
    next: set[bytes] = field(default_factory=set)

    def leads_to(self, key: bytes, token: int) -> bool:
        """Whether it may go on with `token` to the row `key`.

        Rows that go on do so at once, several of them if there are beams. A later one that goes
        elsewhere takes a draft back, and then the token is the likeliest.
        """
        return not self.next or key in self.next or token == self.likeliest


class Prefixes:
    """Rows of ids seen so far, with the rule's state after each.

    The state of a row is always computed anew from its parent's, the same ids without the last.
    So calls on made-up logits do no harm: whatever they leave is overwritten when the real logits
    arrive, before anything is built on it.
    """

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        # row -> where its answer began (both readings, if there are two) -> what is known of it
        self._seen: OrderedDict[bytes, dict[int, _Kept]] = OrderedDict()
        # numbers of generations, the least recently used first
        self._generations: OrderedDict[int, None] = OrderedDict()
        self._newest = 0

    def place(
        self, ids: Tensor, groups: Sequence[int], control: Control, device: torch.device
    ) -> Place:
        """Find the place of `[rows, length]` ids; `groups` names each row's prompt.

        Raises:
            PrefixError: it is not clear, or the rule needs a state that was never computed.
        """
        keys = _keys(ids, groups)
        parents = [self._seen.get(key, {}) for key in _keys(ids[:, :-1], groups)]
        start = self._start(ids, groups, keys, parents)
        before = tuple(parent.get(start) for parent in parents)
        state = control.initial(len(ids), device)
        if start == ids.shape[1]:
            self._prompts.add(keys, start)
        elif state:
            known = [kept for kept in before if kept is not None]
            if len(known) < len(before):
                missing = [row for row, kept in enumerate(before) if kept is None]
                raise PrefixError(
                    f"'{control.name}' remembers along the answer, but rows {missing} come after "
                    f"tokens it never saw: {ids.shape[1] - start} tokens of the answer are there"
                )
            state = {
                name: torch.stack([kept.state[name][kept.row].to(device) for kept in known])
                for name in state
            }
        return Place(start, state, keys, before)

    def keep(self, place: Place, state: State, likeliest: Sequence[int]) -> None:
        """Remember the state after the step at `place`, and each row's likeliest token."""
        number = max((kept.generation for kept in place.before if kept), default=self._newest + 1)
        self._newest = max(self._newest, number)
        for row, (key, kept) in enumerate(zip(place.keys, place.before, strict=True)):
            if kept is not None:
                kept.next.add(key)
            self._seen.setdefault(key, {})[place.start] = _Kept(state, row, likeliest[row], number)
            self._seen.move_to_end(key)
        while len(self._seen) > _MOST_PREFIXES:
            self._seen.popitem(last=False)
        self._generations[number] = None
        self._generations.move_to_end(number)
        while len(self._generations) > _MOST_GENERATIONS:
            self._forget(self._generations.popitem(last=False)[0])

    def _forget(self, generation: int) -> None:
        for key, readings in tuple(self._seen.items()):
            left = {at: kept for at, kept in readings.items() if kept.generation != generation}
            if left:
                self._seen[key] = left
            else:
                del self._seen[key]

    def _start(
        self,
        ids: Tensor,
        groups: Sequence[int],
        keys: Sequence[bytes],
        parents: Sequence[dict[int, _Kept]],
    ) -> int:
        width = ids.shape[1]
        if self._prompts.length is not None:
            start = self._prompts.length
            if width < start:
                raise PrefixError(
                    f"prompt_length={start}, but generate() has written {width} tokens: "
                    "padding on the left counts"
                )
            _same_prompts(ids[:, :start], groups)
            return start
        readings = set(parents[0]).intersection(*parents[1:])
        own = [self._seen.get(key, {}) for key in keys]
        if all(width in known for known in own):
            readings.add(width)
        if len(readings) > 1:
            raise PrefixError(
                f"these {width} tokens are a prompt seen before, and also an answer after a "
                f"shorter one: {_ADVICE}"
            )
        if readings:
            start = readings.pop()
            newest = ids[:, -1].tolist()
            beside = zip(parents, keys, newest, strict=True)
            if start < width and not all(p[start].leads_to(key, token) for p, key, token in beside):
                raise PrefixError(
                    "an answer seen before goes on with a token that was not written there: a "
                    f"draft that was drawn, or a prompt one token longer: {_ADVICE}"
                )
            return start
        if any(parents) or self._prompts.extended_by(ids, groups):
            raise PrefixError(
                "a prompt seen before goes on with tokens that were not written one by one, so it "
                f"is not clear where the answer begins: {_ADVICE}"
            )
        _same_prompts(ids, groups)
        return width


def _same_prompts(ids: Tensor, groups: Sequence[int]) -> None:
    first = [groups.index(group) for group in groups]
    if not torch.equal(ids, ids[first]):
        raise PrefixError(
            f"{len(ids)} rows with different beginnings for {len(set(groups))} rows of memory_ids: "
            "pass one row of memory_ids for each prompt, and begin each generation at its prompt"
        )


def _keys(ids: Tensor, groups: Sequence[int]) -> tuple[bytes, ...]:
    rows = ids.contiguous().numpy()
    return tuple(
        blake2b(row.tobytes(), digest_size=16, salt=group.to_bytes(8, "little")).digest()
        for row, group in zip(rows, groups, strict=True)
    )


class Follower:
    """A stream that reads whatever rows of ids it is shown, at the cost of what is new in them.

    Args:
        model: the model that reads.
        prompts: the ids that come before the answers, one row per group.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._model, self._prompts = model, prompts
        self._pad = _hf.pad_token(model) or 0
        self._stream: Stream | None = None
        self._said = torch.empty(0, 0, dtype=torch.long)
        self._groups: list[int] = []
        self._logits = torch.empty(0)

    def follow(self, answers: Tensor, groups: Sequence[int]) -> tuple[Tensor, int, int]:
        """Move to `answers`.

        Args:
            answers: `[rows, length]` ids after the prompts, on the CPU.
            groups: for each row, which prompt it follows.

        Returns:
            `[rows, vocab]` logits after them; passes over the weights; tokens read.
        """
        stream = self._stream
        before = (stream.forwards, stream.tokens) if stream else (0, 0)
        # Until all is read the stream is between two states: an interrupt must not leave it there.
        self._stream = None
        index, common = self._nearest(answers, groups) if stream else ([], 0)
        if stream and _hf.has_recurrent_layers(self._model) and common < self._said.shape[1]:
            stream, before = None, (0, 0)
        if stream is None:
            stream = Stream(self._model, self._prompts, pad_id=self._pad)
            self._logits = stream.prefill()
            self._said = answers.new_empty(len(self._prompts), 0)
            self._groups = list(range(len(self._prompts)))
            index, common = self._nearest(answers, groups)
        if index != list(range(stream.batch)):
            chosen = torch.tensor(index)
            stream.select(chosen)
            self._logits = self._logits[chosen.to(self._logits.device)]
        length = answers.shape[1]
        if not common == length == self._said.shape[1]:
            # Logits are those after the last token read, so at least that one is read again.
            kept = min(common, length - 1)
            stream.roll_back(self._said.shape[1] - max(kept, 0))
            if kept < 0:
                new = stream.ids[:, -1:]
                stream.roll_back(1)
            else:
                new = answers[:, kept:]
            self._logits = stream.extend(new)
        self._said, self._groups, self._stream = answers.clone(), list(groups), stream
        return self._logits, stream.forwards - before[0], stream.tokens - before[1]

    def _nearest(self, answers: Tensor, groups: Sequence[int]) -> tuple[list[int], int]:
        """For each row the stream's row with the longest beginning in common, and the length that
        all of them have in common with theirs."""
        width = min(answers.shape[1], self._said.shape[1])
        wanted, said = answers[:, :width], self._said[:, :width]
        if list(groups) == self._groups and torch.equal(wanted, said):
            return list(range(len(said))), width
        index, common = [0] * len(answers), width
        places: dict[int, list[int]] = {}
        for place, group in enumerate(self._groups):
            places.setdefault(group, []).append(place)
        for row, group in enumerate(groups):
            same = said[places[group]] == wanted[row]
            lengths = same.long().cumprod(-1).sum(-1)
            best = int(lengths.argmax())
            index[row] = places[group][best]
            common = min(common, int(lengths[best]))
        return index, common
