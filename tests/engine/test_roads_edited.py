"""Edits where several streams ride in one pass: each acts as it does in a pass for each stream."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from conflictkit.errors import UnsupportedError
from conflictkit.interventions.activations import Edits, Handle
from conflictkit.interventions.attention import AttentionBias, FocusDirections, MaskedHeads
from conflictkit.interventions.directions import DirectionAdd, Directions
from conflictkit.interventions.heads import HeadAdd, HeadScale, HeadTap
from conflictkit.interventions.taps import LayerTap
from conflictkit.streams import Stream
from conflictkit.together import Road, Together
from tests.anatomy.families import UNDISPATCHED, model
from tests.engine.riding import drawn, near, opened, some

LENGTHS = [(9, 6, 4), (2, 4, 3), (5, 5, 7)]
PROMPTS = LENGTHS[0]
"""What positions in words are counted by, in every stream."""
FAMILIES = ("llama", "mistral", "gpt2", "gemma2", "falcon-7b")
_DRAW = torch.Generator().manual_seed(2)
VECTOR = torch.randn(32, generator=_DRAW)
WORDS = (None, "prompt", "last", "answer", "decoding", (3, 8))


def turned(where: Any, width: int = 8) -> Any:
    return FocusDirections({(0, 1): VECTOR[:width]}, 2.0, where)


HEADS: dict[str, Callable[[Any], Any]] = {
    "heads off": lambda where: HeadScale({(0, 1): 0.0, (1, 2): -2.0}, where),
    "heads by row": lambda where: HeadScale({(0, 1): (0.0, 1.0, 3.0)}, where),
    "a direction": lambda where: DirectionAdd(Directions({0: VECTOR}), 0.7, where),
}
ATTENTION: dict[str, Callable[[Any], Any]] = {
    "a bias outside spans": lambda where: AttentionBias(
        [[(1, 4)], [], [(0, 2), (3, 4)]], 0.05, positions=where
    ),
    "a bias inside spans": lambda where: AttentionBias(
        [(1, 3)], (3.0, 0.2, 1.0), heads=[(0, 1), (1, 2)], inside=True, positions=where
    ),
    "queries turned": turned,
    "queries off": lambda where: MaskedHeads([(0, 1), (1, 3)], positions=where),
}


def followed(hf: Any, road: Road, edits: Any) -> tuple[str, list[Tensor], int]:
    """A user's edits attached around prompts and four passes behind them: road, logits, count."""
    draw = torch.Generator().manual_seed(4)
    with Handle(hf, edits, prompt_lengths=PROMPTS) as handle:
        together = Together(opened(hf, LENGTHS), road)
        found = [
            one
            for new in (1, 1, 3, 1)
            for one in together.follow(torch.randint(3, 60, (3, new), generator=draw)).values()
        ]
    return together.road, found, handle.edits


def check_users(hf: Any, edits: Callable[[], Any], roads: dict[Road, Road]) -> None:
    plain = followed(hf, "sequential", edits())
    for best, taken in roads.items():
        road, found, count = followed(hf, best, edits())
        assert road == taken
        near(found, plain[1])
        assert count == plain[2]
    _, unedited, _ = followed(hf, "packed", [LayerTap([("residual", 0)])])
    with pytest.raises(AssertionError):
        near(unedited, plain[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", some(FAMILIES, "llama", "falcon-7b"))
@pytest.mark.parametrize("kind", HEADS)
def test_a_users_edit_acts_on_every_stream_by_every_road(name: str, kind: str) -> None:
    best: Road = "padded" if name in UNDISPATCHED else "packed"
    for where in (None, "decoding", (3, 8)):
        check_users(model(name), lambda at=where: [HEADS[kind](at)],
                    {"packed": best, "padded": "padded"})  # fmt: skip


@pytest.mark.parametrize("name", some(FAMILIES[:-1], "mistral"))
@pytest.mark.parametrize("kind", ATTENTION)
def test_a_users_edit_of_attention_acts_on_every_stream(name: str, kind: str) -> None:
    make = ATTENTION[kind]
    if make is turned and name == "gemma2":
        make = partial(turned, width=16)
    for where in (None, "decoding", (3, 8)):
        check_users(model(name), lambda at=where: [make(at)], {"packed": "packed"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*HEADS, *ATTENTION])
@pytest.mark.parametrize("where", WORDS)
def test_positions_are_counted_in_each_streams_own_rows(kind: str, where: Any) -> None:
    made = (HEADS | ATTENTION)[kind]
    check_users(model("llama"), lambda: [made(where), HEADS["heads off"](None)],
                {"packed": "packed"})  # fmt: skip


def test_a_users_edit_of_attention_is_refused_where_streams_are_padded_into_one() -> None:
    hf = copy.deepcopy(model("llama"))
    with pytest.raises(UnsupportedError, match="road='sequential'"):
        followed(hf, "padded", [ATTENTION["queries off"](None)])
    assert followed(hf, "packed", [HEADS["heads off"](None)])[0] == "packed"


def test_a_users_tap_and_what_adds_from_it_go_stream_by_stream() -> None:
    def pair() -> list[Any]:
        tap = HeadTap()
        return [tap, HeadAdd({(0, 1): 1.0, (1, 2): -2.0}, tap)]

    check_users(model("llama"), pair, {"packed": "packed", "padded": "padded"})


def test_a_users_tap_sees_the_stream_that_is_read_last() -> None:
    seen = []
    for road in ("packed", "padded", "sequential"):
        tap = LayerTap([("residual", 1), ("mlp", 0), ("attention", 0)])
        followed(model("llama"), road, [tap])
        seen.append([tap.values[name] for name in sorted(tap.values)])
    near(seen[0], seen[2])
    near(seen[1], seen[2])


# Edits of one stream


def edited(
    hf: Any, road: Road, acting: dict[int, list[Any]], only: Any = None
) -> tuple[dict[str, list[Tensor]], list[int], str]:
    """Streams of which some have edits: logits of each, how often each was edited, the road."""
    streams = {}
    for number, lengths in enumerate(LENGTHS):
        mine = acting.get(number)
        own = None if mine is None else Edits(
            hf, mine, prompt_lengths=lengths, only=None if only is None else [only] * len(mine)
        )  # fmt: skip
        streams[f"stream {number}"] = Stream(hf, drawn(lengths, number), pad_id=2, acting=own)
    found = {name: [one.prefill()] for name, one in streams.items()}
    together = Together(streams, road)
    draw = torch.Generator().manual_seed(4)
    for new, rows in ((1, 3), (2, 3), (1, 4), (1, 4)):
        tokens = torch.randint(3, 60, (rows, new), generator=draw)
        for name, logits in together.follow(tokens).items():
            found[name].append(logits)
        if new == 2:
            together.select(torch.tensor([2, 0, 0, 1]))
    return found, [one.edits for one in streams.values()], together.road


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*HEADS, *ATTENTION])
@pytest.mark.parametrize("road", ["packed", "padded"])
def test_an_edit_of_one_stream_leaves_the_others_alone(kind: str, road: Road) -> None:
    hf = model("llama")
    edit = (HEADS | ATTENTION)[kind]("decoding")
    if kind in ATTENTION and kind.startswith("a bias"):
        edit = AttentionBias([(0, 2)], 0.05, positions="decoding")  # fits the shorter prompts
    taken = "sequential" if kind in ATTENTION and road == "padded" else road
    plain, _, _ = edited(hf, "sequential", {})
    for number in range(3):
        wanted, counts, _ = edited(hf, "sequential", {number: [edit]})
        found, mine, way = edited(hf, road, {number: [edit]})
        assert (mine, way) == (counts, taken)
        assert [at for at, count in enumerate(mine) if count] == [number]
        for at, name in enumerate(found):
            near(found[name], wanted[name])
            near(found[name], plain[name], 1e-4 if at != number else 1e9)
        with pytest.raises(AssertionError):
            near(found[f"stream {number}"], plain[f"stream {number}"])


def test_two_streams_with_edits_of_their_own_beside_a_users() -> None:
    hf = model("llama")
    only = torch.tensor([True, False, True])
    acting = {0: [HEADS["heads off"](None)], 2: [ATTENTION["queries turned"]("decoding")]}
    made = []
    for road in ("packed", "sequential"):
        with HeadScale({(1, 0): 4.0}).attach(hf) as handle:
            made.append((*edited(hf, road, acting, only), handle.edits))
    assert made[0][1] == made[1][1]
    assert made[0][3] == made[1][3] > 0
    assert (made[0][2], made[1][2]) == ("packed", "sequential")
    for name in made[0][0]:
        near(made[0][0][name], made[1][0][name])


@pytest.mark.parametrize("road", ["packed", "padded", "sequential"])
def test_a_tap_of_one_stream_sees_that_stream(road: Road) -> None:
    hf, name = model("llama"), "residual.0"
    wanted = []
    for number in range(3):
        tap = LayerTap([("residual", 0)])
        alone, _, _ = edited(hf, "sequential", {number: [tap]})
        wanted.append(tap.values[name])
        tap = LayerTap([("residual", 0)])
        edited(hf, road, {number: [tap], (number + 1) % 3: [HEADS["heads off"](None)]})
        near([tap.values[name]], [wanted[-1]])
        assert alone
    with pytest.raises(AssertionError):
        near(wanted[:2], wanted[1:])
