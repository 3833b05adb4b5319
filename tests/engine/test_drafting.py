"""Looking drafts up: against their definition, as a loop over all that was read."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conflictkit.drafting import LONGEST, Drafter, Lookup, check_drafts
from conflictkit.errors import InvalidParameterError

LETTERS = st.integers(0, 2)
# Many occurrences of everything, and repeats far longer than what is compared.
TEXTS = st.one_of(
    st.lists(LETTERS, max_size=30),
    st.lists(LETTERS, min_size=150, max_size=220),
    st.builds(
        lambda part, times, between, end: (part + between) * times + end,
        st.lists(LETTERS, min_size=1, max_size=24),
        st.integers(1, 8),
        st.lists(st.integers(0, 9), max_size=2),
        st.lists(st.integers(0, 9), max_size=3),
    ),
)


def by_definition(text: list[int], most: int) -> list[int]:
    """What followed the longest of the latest 64 occurrences of the last two tokens (of the last
    one, if there are none), as a loop; of the longest, the latest."""
    for size in (2, 1):
        ends = [end for end in range(size, len(text))
                if len(text) >= size and text[end - size : end] == text[-size:]]  # fmt: skip
        best, longest = -1, 0
        for end in ends[-64:]:
            same = 0
            while same < min(16, end) and text[end - 1 - same] == text[len(text) - 1 - same]:
                same += 1
            if same >= longest:
                best, longest = end, same
        if best >= 0:
            grown = list(text)
            for _ in range(most):
                grown.append(grown[best + len(grown) - len(text)])
            return grown[len(text) :]
    return []


@given(TEXTS, st.integers(0, 40), st.integers(0, 220))
def test_drafts_are_what_followed_before(text: list[int], most: int, cut: int) -> None:
    lookup = Lookup(text)
    wanted = by_definition(text, most)
    assert lookup.draft(most) == wanted
    assert lookup.draft(most) == wanted  # asking changes nothing
    grown = Lookup(text[:cut])
    for one in text[cut : cut + 3]:
        grown.extend([one])
    grown.extend(text[cut + 3 :])
    assert grown.draft(most) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ([], []),
        ([7], []),
        ([7, 8, 9], []),
        ([5, 5], [5, 5, 5, 5, 5]),
        ([1, 2, 3, 1, 2], [3, 1, 2, 3, 1]),  # on with itself behind the end
        ([1, 2, 3, 4, 5, 6, 3], [4, 5, 6, 3, 4]),  # one token will do
        ([9, 2, 5, 8, 3, 2, 6, 8, 9, 2], [5, 8, 3, 2, 6]),  # two say more than a later one
        ([1, 2, 5, 4, 2, 6, 4, 2], [6, 4, 2, 6, 4]),
        ([9, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2], [5, 8, 1, 2, 6]),  # three more than a later two
        ([1, 2, 5, 1, 2, 6, 1, 2], [6, 1, 2, 6, 1]),  # the latest of several
    ],
)
def test_drafts_written_down(text: list[int], wanted: list[int]) -> None:
    assert Lookup(text).draft(5) == wanted
    assert Lookup(text).draft(2) == wanted[:2]
    assert Lookup(text).draft(0) == Lookup(text).draft(-1) == []


def test_beyond_sixteen_tokens_the_latest_counts() -> None:
    """The earlier of two has one token more in common."""

    def text(size: int) -> list[int]:
        part = list(range(100, 100 + size))
        return [7, *part, 1, 8, *part, 2, 7, *part]

    assert Lookup(text(15)).draft(1) == [1]
    assert Lookup(text(16)).draft(1) == [2]


def test_no_more_than_the_latest_sixty_four_are_compared() -> None:
    def text(others: int) -> list[int]:
        return [9, 1, 2, 5, *([8, 1, 2, 6] * others), 9, 1, 2]

    assert Lookup(text(63)).draft(1) == [5]
    assert Lookup(text(64)).draft(1) == [6]


def test_a_drafter_drafts_no_longer_than_it_may() -> None:
    drafter = Drafter([[5, 5], [1, 2, 3, 1], [4]], 3)
    assert [drafter.draft(row, 9) for row in range(3)] == [[5] * 3, [2, 3, 1], []]
    assert [drafter.draft(1, room) for room in (2, 1, 0, -1)] == [[2, 3], [2], [], []]
    assert (drafter.drafted, drafter.accepted) == (6 + 3, 0)
    drafter.settle(0, 3, 0)
    drafter.settle(1, 3, 3)
    assert [len(drafter.draft(row, 99)) for row in range(2)] == [3, 3]  # told, not learnt
    drafter.add(0, 7, guessed=False)
    drafter.add(0, 5, guessed=True)
    assert drafter.draft(0, 3) == [7, 5, 7]
    assert drafter.accepted == 1


def test_lengths_that_adapt() -> None:
    """Twice as many after a draft that was right, one more than were right after any other."""
    drafter = Drafter([[5, 5, 5], [6, 6, 6]], None)

    def length(row: int = 0) -> int:
        return len(drafter.draft(row, 99))

    lengths = [length()]
    for _ in range(5):
        drafter.settle(0, lengths[-1], lengths[-1])
        lengths.append(length())
    assert lengths == [4, 8, 16, 32, LONGEST, LONGEST]
    for right, pause, wanted in (
        (5, 0, 6), (0, 1, 1), (1, 0, 2), (0, 1, 1), (0, 3, 1), (0, 7, 1), (0, 15, 1), (0, 15, 1),
    ):  # fmt: skip
        drafter.settle(0, length(), right)
        assert [length() for _ in range(pause)] == [0] * pause
        assert length() == wanted
    drafter.settle(0, 0, 0)  # nothing was drafted, so nothing is learnt
    drafter.settle(1, 0, 0)
    assert (length(0), length(1)) == (1, 4)
    drafter.settle(0, LONGEST, LONGEST - 1)
    assert length() == LONGEST


def test_a_token_alike_makes_no_draft_likely() -> None:
    read = [1, 2, 9, 3, 2]
    assert [Drafter([read], drafts).draft(0, 2) for drafts in (None, 2)] == [[], [9, 3]]
    assert len(Drafter([[*read, 9]], None).draft(0, 2)) == 2


@pytest.mark.parametrize(("alike", "drafted"), [(3, []), (4, [9])])
def test_what_is_surely_copied_is_drafted_during_a_pause(alike: int, drafted: list[int]) -> None:
    read = [1, 2, 3, 4, 9, 8, *[1, 2, 3, 4][-alike:]]
    drafter = Drafter([read, read], None)
    drafter.settle(0, 4, 0)
    assert drafter.draft(0, 99) == drafted
    assert len(drafter.draft(1, 99)) == 4  # where nothing was wrong
    told = Drafter([read], 2)
    told.settle(0, 2, 0)
    assert told.draft(0, 99) == [9, 8]


def test_rows_of_a_drafter_are_moved_dropped_and_repeated() -> None:
    drafter = Drafter([[5, 5], [1, 2, 1, 2], [4, 3, 4, 3]], None)
    drafter.settle(1, 4, 4)
    drafter.settle(2, 4, 1)
    drafter.select([2, 1, 1, 1])
    assert [drafter.draft(row, 99) for row in range(4)] == [[4, 3]] + [[1, 2] * 4] * 3
    # Copies go their own ways, in texts and in lengths.
    for row, token in ((1, 7), (2, 1), (3, 1)):
        drafter.add(row, token, guessed=False)
    drafter.settle(3, 8, 1)
    assert [drafter.draft(row, 3) for row in range(4)] == [[4, 3], [], [2, 1, 2], [2, 1]]
    drafter.select([1])
    assert drafter.draft(0, 5) == []
    drafter.add(0, 1, guessed=False)
    drafter.add(0, 2, guessed=False)
    assert drafter.draft(0, 5) == [7, 1, 2, 7, 1]
    # Pauses go with their rows.
    drafter = Drafter([[5, 5, 5], [6, 6, 6]], None)
    drafter.settle(0, 4, 0)
    drafter.settle(0, 4, 0)
    drafter.select([1, 0, 0])
    assert [[len(drafter.draft(row, 1)) for _ in range(4)] for row in range(3)] == [
        [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1],
    ]  # fmt: skip


@given(TEXTS, st.lists(st.tuples(st.integers(0, 2), LETTERS), max_size=30))
def test_copies_of_a_text_go_their_own_ways(text: list[int], added: list[tuple[int, int]]) -> None:
    lookups, texts = [Lookup(text)], [list(text)]
    for which, token in added:
        if which == 2 and len(lookups) < 4:
            lookups.append(lookups[0].copy())
            texts.append(list(texts[0]))
        lookups[which % len(lookups)].extend([token])
        texts[which % len(lookups)].append(token)
    for lookup, own in zip(lookups, texts, strict=True):
        assert lookup.draft(3) == by_definition(own, 3)


@pytest.mark.parametrize(("given", "wanted"), [("auto", None), (0, 0), (1, 1), (32, 32)])
def test_how_many_to_draft(given: object, wanted: int | None) -> None:
    assert check_drafts(given) == wanted


@pytest.mark.parametrize(
    "given", ["x", "Auto", "3", "", -1, 33, True, False, 2.0, 2.5, math.nan, None, [3], (), b"auto"]
)
def test_any_other_number_is_refused(given: object) -> None:
    with pytest.raises(InvalidParameterError, match="drafts must be 'auto' or from 0 to 32, not"):
        check_drafts(given)
