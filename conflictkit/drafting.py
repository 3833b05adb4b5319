"""Guesses of what comes next, looked up in what was read: answers that quote their context.

A row's draft is what followed the longest earlier occurrence of its last tokens, in its prompt or
in its answer so far (prompt lookup decoding, Saxena 2023; nearest to PLD as transformers has it).
A draft costs a longer pass and nothing else: the engine takes of it what the method would have
chosen, token by token, and no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from conflictkit.errors import InvalidParameterError

LONGEST = 32
"""Most tokens of a draft."""
_FIRST = 4
"""Tokens of a row's first draft, where lengths adapt."""
_LIKELY, _SURE = 2, 4
"""Tokens alike that make a draft worth its pass, where lengths adapt, and those that do even where
the last ones were wrong."""
_PAUSE = 15
"""Tokens that a row whose drafts are wrong goes on without one, at most."""
_CANDIDATES = 64
"""How many earlier occurrences are compared, the latest."""
_MATCH = 16
"""Longest suffix that is compared; beyond it, the latest occurrence counts."""


def check_drafts(drafts: object) -> int | None:
    """A number of tokens, or None for lengths that adapt (`auto`).

    Raises:
        InvalidParameterError: anything else.
    """
    if drafts == "auto":
        return None
    if isinstance(drafts, int) and not isinstance(drafts, bool) and 0 <= drafts <= LONGEST:
        return drafts
    raise InvalidParameterError(f"drafts must be 'auto' or from 0 to {LONGEST}, not {drafts!r}")


class Lookup:
    """A text that grows, and what followed its last tokens before.

    Args:
        ids: the text so far.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)
        # Where a token, or a pair of them, ended before: index of what follows. What the text began
        # with is shared by its copies.
        self._began: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._ends: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, one in enumerate(self._ids[:-1]):
            self._began[one,].append(place + 1)
        for place, pair in enumerate(pairwise(self._ids[:-1])):
            self._began[pair].append(place + 2)

    def copy(self) -> Lookup:
        """The same text, which goes its own way."""
        other = Lookup(())
        other._ids, other._began = list(self._ids), self._began
        for key, places in self._ends.items():
            other._ends[key] = list(places)
        return other

    def extend(self, ids: Sequence[int]) -> None:
        """Append to the text."""
        for one in ids:
            place = len(self._ids)
            for size in (1, 2):
                if place >= size:
                    self._ends[tuple(self._ids[-size:])].append(place)
            self._ids.append(one)

    def draft(self, most: int, least: int = 1) -> list[int]:
        """Up to `most` tokens that followed the longest suffix seen before, of `least` tokens or
        more; the latest of several.

        A copy that reaches the end of the text goes on with itself, so that loops are drafted too.
        """
        if most < 1 or not self._ids:
            return []
        for size in (2, 1):
            last = tuple(self._ids[-size:])
            both = [ends.get(last, [])[-_CANDIDATES:] for ends in (self._began, self._ends)]
            places = sum(both, [])[-_CANDIDATES:]
            if len(self._ids) >= size and places:
                alike, best = max((self._match(place), place) for place in places)
                return self._copied(best, most) if alike >= least else []
        return []

    def _match(self, place: int) -> int:
        """How many tokens before `place` equal the last ones of the text."""
        ids, size = self._ids, 0
        while size < min(place, _MATCH) and ids[place - 1 - size] == ids[-1 - size]:
            size += 1
        return size

    def _copied(self, place: int, most: int) -> list[int]:
        found = self._ids[place : place + most]
        period = len(self._ids) - place
        while len(found) < most:
            found.append(found[len(found) - period])
        return found


@dataclass
class _Row:
    """A row's text, how many tokens its next draft may have, how many tokens to go without one, and
    of how many the latest pause was."""

    text: Lookup
    most: int
    waits: int = 0
    pause: int = 0


class Drafter:
    """Drafts for the rows of a batch.

    Args:
        prompts: token ids of every row: where drafts are looked up.
        drafts: most tokens of each draft; None: as long as they have lately been right.

    Attributes:
        drafted, accepted: tokens proposed, and those of them that were chosen.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], drafts: int | None) -> None:
        self._adapts = drafts is None
        most = _FIRST if drafts is None else drafts
        self._rows = [_Row(Lookup(ids), most) for ids in prompts]
        self.drafted = self.accepted = 0

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in that order."""
        again: set[int] = set()
        kept = []
        for row in rows:
            one = self._rows[row]
            kept.append(replace(one, text=one.text.copy()) if row in again else one)
            again.add(row)
        self._rows = kept

    def add(self, row: int, token: int, *, guessed: bool) -> None:
        """Append a token that was chosen."""
        self.accepted += guessed
        self._rows[row].text.extend([token])

    def draft(self, row: int, room: int) -> list[int]:
        """What may come next in a row; at most `room` tokens."""
        one = self._rows[row]
        least = 1 if not self._adapts else _SURE if one.waits else _LIKELY
        one.waits = max(one.waits - 1, 0)
        found = one.text.draft(min(one.most, room), least)
        self.drafted += len(found)
        return found

    def settle(self, row: int, drafted: int, accepted: int) -> None:
        """Learn how much of a row's newest draft was right."""
        if self._adapts and drafted:
            one = self._rows[row]
            one.most = min(2 * one.most if accepted == drafted else accepted + 1, LONGEST)
            one.waits = one.pause = 0 if accepted else min(2 * one.pause + 1, _PAUSE)
