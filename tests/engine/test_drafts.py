"""Drafts cost passes less and change nothing else: every answer against the plain road's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from conflictkit import engine, methods, together
from conflictkit.controller import Controller
from conflictkit.errors import UnsupportedError
from conflictkit.interventions.contrast import Rule
from conflictkit.together import Road, Together
from conflictkit.types import Mix
from tests.anatomy import families
from tests.engine import reference
from tests.engine.drafted import (
    SIZES,
    TOKENS,
    VOCAB,
    continued,
    ids_of,
    in_common,
    made,
    make,
    repeating,
    run_of,
    same,
    spied,
    texts_of,
)
from tests.engine.riding import BY_LENGTH, FAR, built, some
from tests.engine.test_roads import ATTENDS, spec_of
from tests.probed import Passes
from tests.tiny import gpt2, llama, recurrent, sliding

MODELS = {"llama": llama, "gpt2": gpt2, "sliding": sliding}
COOL: dict[str, Any] = {"temperature": 0.7, "seed": 5}
HOT: dict[str, Any] = {"temperature": 1.3, "seed": 9, "n": 2}


QUICK = ("memory", "cad", "coiecd", "grd", "ph3", "juice", "decore", "focus", "spare", "caa")
ROADS = some(("packed", "padded", "sequential"), "packed")


@pytest.mark.parametrize("name", some(methods.names(), *QUICK))
def test_a_method_says_the_same_with_drafts(name: str, tmp_path: Path) -> None:
    hf, spec, rows = llama(VOCAB, seed=4), spec_of(name, tmp_path), repeating(0)[:3]
    decoding = COOL | {"end_ids": ()}
    stats = same(made(hf, spec, rows, 2, **decoding), made(hf, spec, rows, **decoding))
    assert 0 < stats.accepted < stats.drafted


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", methods.names())
def test_a_method_says_the_same_however_it_is_drafted(
    name: str, family: str, tmp_path: Path
) -> None:
    hf, spec = MODELS[family](VOCAB, seed=4), spec_of(name, tmp_path)
    for batch in (repeating(1), repeating(2)[:1]):
        for decoding in (COOL, HOT):
            wanted = made(hf, spec, batch, **decoding)
            for drafts, road in ((1, "sequential"), (3, "padded"), (None, "packed")):
                found = made(hf, spec, batch, drafts, road, **decoding)
                stats = same(found, wanted)
                taken = "sequential" if road == "padded" and name in ATTENDS else road
                assert stats.road in (taken, "single")


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("family", some(MODELS, "sliding"))
def test_every_road_and_length_of_drafts(family: str, road: Road) -> None:
    hf, accepted = MODELS[family](VOCAB, seed=4), Counter[Any]()
    for decoding in ({}, COOL):
        rows = repeating(3)
        wanted = made(hf, "cad", rows, **decoding)
        for drafts in (1, 3, 32, None):
            stats = same(made(hf, "cad", rows, drafts, road, **decoding), wanted)
            assert stats.road == road
            accepted[drafts] += stats.accepted
    assert min(accepted[drafts] for drafts in (1, 3, 32)) > 0


def test_a_run_without_a_cache_is_drafted_too() -> None:
    hf, rows = gpt2(VOCAB, seed=4), repeating(3)
    with Passes(hf) as plain:
        wanted = made(hf, "adacad", rows[:1], end_ids=())
    with Passes(hf) as drafted:
        stats = same(made(hf, "adacad", rows[:1], None, use_cache=False, end_ids=()), wanted)
    assert drafted.count == stats.passes < plain.count
    same(made(hf, "adacad", rows, 3, use_cache=False, **HOT), made(hf, "adacad", rows, **HOT))


# What finds places by columns would take a gap for a place.
BY_COLUMNS = ("mistral", "mpt", "gemma3n", "gpt-neo", "gpt-oss", "falcon-7b", "bloom")


@pytest.mark.parametrize("name", some(BY_COLUMNS, "mistral", "mpt"))
def test_gaps_that_drafts_leave_are_no_places(name: str) -> None:
    hf = families.model(name) if name in families.CONFIGS else built(FAR[name]())
    for seed in range(2):
        rows = repeating(seed, SIZES[:3], 64)
        wanted = made(hf, "cad", rows, end_ids=())
        assert same(made(hf, "cad", rows[:1], 4, end_ids=()), wanted[:1]).drafted
        same(made(hf, "cad", rows, 4, end_ids=()), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("road", ["packed", "padded"])
@pytest.mark.parametrize("name", ["gpt-neo", "mpt", "gptj", "opt"])
def test_gaps_need_no_place_in_a_window_that_is_full(name: str, road: Road) -> None:
    """Some tables of a model are as wide as its window, gaps or no gaps."""
    hf = families.model(name) if name in families.CONFIGS else built(FAR[name]())
    rows = repeating(0, [(9, 4)] * 6, 64)
    rest = 128 - max(len(row["context"]) for row in rows)
    options: dict[str, Any] = {"end_ids": (), "max_new_tokens": rest, "temperature": 1.5, "seed": 3}
    same(made(hf, "cad", rows, 4, road, **options), made(hf, "cad", rows, **options))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BY_LENGTH, "recurrent"])
def test_models_that_cannot_take_drafts_back_or_feel_them_are_not_drafted(name: str) -> None:
    """What feels how long everything is that is read at once would feel drafts."""

    def hf() -> Any:
        """A new one each time: dynamic frequencies remember what was read last."""
        return recurrent(64) if name == "recurrent" else built(BY_LENGTH[name]())

    for rows in (repeating(0, [(9, 4)] * 3, 64), repeating(1, [(2, 1)], 64)):
        with pytest.raises(UnsupportedError, match="cannot take drafts back"):
            run_of(hf(), "cad", rows, 3)
        wanted = made(hf(), "cad", rows, end_ids=())
        assert same(made(hf(), "cad", rows, None, end_ids=()), wanted).drafted == 0


# Drafts made to order: always right, never right, right in one row


def truth(hf: Any, spec: str, rows: Any, **options: Any) -> tuple[Any, list[list[int]]]:
    """The plain road's answers, and the prompts with them behind."""
    wanted = made(hf, spec, rows, **options)
    return wanted, texts_of(rows, wanted)


@pytest.mark.parametrize(("drafts", "rounds"), [(1, 8), (3, 4), (32, 1), (None, 3)])
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_drafts_that_are_always_right_save_all_that_can_be_saved(
    drafts: int | None, rounds: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)[:size]
    wanted, texts = truth(hf, "cad", rows, end_ids=())
    seen = make(monkeypatch, lambda ids, most: continued(ids, texts)[:most])
    with Passes(hf) as passes:
        stats = same(made(hf, "cad", rows, drafts, end_ids=()), wanted)
    assert passes.count == stats.passes == 2 + rounds
    assert stats.forwards == 2 * (1 + rounds)
    # Every token but the first, and one of each pass, was guessed.
    assert stats.drafted == stats.accepted == size * (TOKENS - 1 - rounds)
    assert stats.drafted == sum(map(len, seen))
    answered = size * (TOKENS - 1)
    assert stats.context_tokens == sum(len(row["context"]) for row in rows) + answered


def test_an_answer_is_no_longer_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    _, texts = truth(hf, "cad", rows, end_ids=())
    make(monkeypatch, lambda ids, most: [*continued(ids, texts), *[3] * 40][:most])
    for most in (1, 2, 5, 6, 7):
        wanted = made(hf, "cad", rows, end_ids=(), max_new_tokens=most)
        run = run_of(hf, "cad", rows, 4, end_ids=(), max_new_tokens=most)
        same(engine.generate(run), wanted)
        for name, stream in run.streams.items():
            assert stream.ids.shape[1] == max(len(row[name]) for row in rows) + most - 1


@pytest.mark.parametrize("drafts", [3, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["end", "stop"])
def test_an_answer_may_end_in_the_middle_of_a_draft(
    what: str, drafts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    free, texts = truth(hf, "cad", rows, end_ids=(), **COOL)
    make(monkeypatch, lambda ids, most: continued(ids, texts)[:most])
    lengths = set()
    for place in range(4):
        first, second = free[place % 4][0].ids[place : place + 2]
        ending: dict[str, Any] = {"end_ids": (second,)}
        if what == "stop":
            ending = {"end_ids": (), "stop": (f"{first} {second}",)}  # over two tokens
        wanted = made(hf, "cad", rows, **ending, **COOL)
        assert same(made(hf, "cad", rows, drafts, **ending, **COOL), wanted).accepted
        lengths |= {len(one.ids) for (one,) in wanted}
        reasons = {"end": "eos", "stop": "stop"}
        assert reasons[what] in {one.finish_reason for (one,) in wanted}
        events = list(engine.stream(run_of(hf, "cad", rows, drafts, **ending, **COOL)))
        for row, (one,) in enumerate(wanted):
            told = [event for event in events if event.row == row]
            assert [event.token for event in told] == [record.id for record in one.records]
            endings = [event.finish_reason for event in told]
            assert endings == [None] * (len(told) - 1) + [one.finish_reason]
    assert len(lengths) > 2


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("size", [1, 4])
def test_drafts_that_are_always_wrong_leave_nothing_behind(
    size: int, road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, rows = gpt2(VOCAB, seed=4), repeating(1)[:size]
    wanted, texts = truth(hf, "cad", rows, end_ids=())
    make(monkeypatch, lambda ids, most: [(one + 1) % VOCAB for one in continued(ids, texts)][:most])
    lengths = watched(monkeypatch, rows, wanted)
    for drafts in (3, None):
        lengths.clear()
        run = run_of(hf, "cad", rows, drafts, road, end_ids=())
        stats = same(engine.generate(run), wanted)
        # Nothing but the tokens said: not a gap.
        for name in ("context", "memory"):
            longest = max(len(row[name]) for row in rows)
            assert lengths[name] == [longest + said for said in range(TOKENS - 1)]
        assert (stats.accepted, stats.forwards) == (0, 2 * TOKENS)
        if drafts == 3:
            assert stats.drafted == size * (3 * (TOKENS - 4) + 2 + 1)
        else:
            assert stats.drafted == size * (4 + TOKENS - 3)


def watched(monkeypatch: pytest.MonkeyPatch, rows: Any, answers: Any) -> dict[str, list[int]]:
    """Let every pass check that streams hold the beginnings of their texts and nothing else;
    how many columns each stream had before it."""
    texts = {name: texts_of(rows, answers, name) for name in rows[0]}
    lengths: dict[str, list[int]] = {}
    follow = Together.follow

    def checked(self: Together, tokens: Any, *rest: Any) -> Any:
        streams = dict(zip(self._names, self._streams, strict=True))
        for name, stream in streams.items():
            lengths.setdefault(name, []).append(stream.ids.shape[1])
            if stream.cache is not None:
                keys = [layer.keys.shape[-2] for layer in stream.cache.layers]
                assert set(keys) == {stream.mask.shape[1]}
            if stream.batch == 1:
                assert stream.mask.all()
            several = zip(stream.ids, stream.mask.bool(), tokens, strict=True)
            for ids, there, new in several:
                own = [*ids[there].tolist(), int(new[0])]
                assert own in [one[: len(own)] for one in texts[name]]
        return follow(self, tokens, *rest)

    monkeypatch.setattr(Together, "follow", checked)
    return lengths


@pytest.mark.parametrize("gaps", [together._GAPS, 4])
@pytest.mark.parametrize("road", ROADS)
def test_rows_go_on_at_their_own_pace(
    road: Road, gaps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    wanted = paced(hf, rows, monkeypatch)
    monkeypatch.setattr(together, "_GAPS", gaps)
    watched(monkeypatch, rows, wanted)
    run = run_of(hf, "cad", rows, 4, road, end_ids=())
    ends = [event.row for event in engine.stream(run) if event.finish_reason]
    assert ends == [0, 1, 2, 3]
    same(made(hf, "cad", rows, 4, road, end_ids=()), wanted)


@pytest.mark.parametrize("road", ["packed", "padded", "sequential"])
def test_gaps_do_not_pile_up(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    hf, rows, gaps = llama(VOCAB, seed=4), repeating(0), 4
    wanted = paced(hf, rows, monkeypatch)
    monkeypatch.setattr(together, "_GAPS", gaps)
    lengths = watched(monkeypatch, rows, wanted)
    made(hf, "cad", rows, 4, road, end_ids=())
    assert max(lengths["context"]) <= max(map(len, texts_of(rows, wanted))) + gaps + 5


def paced(hf: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answers, and drafts for them: one row's are always right, one's now and then, one's never;
    one is given none."""
    wanted, texts = truth(hf, "cad", rows, end_ids=())
    assert len({tuple(one[:12]) for one in texts}) == 4

    def draft(ids: list[int], most: int) -> list[int]:
        row = next(row for row in range(4) if ids == texts[row][: len(ids)])
        right = continued(ids, texts)[: [most, len(ids) % 3, 0, 0][row]]
        false = [(one + 1) % VOCAB for one in continued(ids, texts)[len(right) :]]
        return [*right, *false][:most] if row < 3 else []

    make(monkeypatch, draft)
    return wanted


# What is counted


@pytest.mark.parametrize("drafts", [1, pytest.param(3, marks=pytest.mark.slow), None])
@pytest.mark.parametrize("decoding", [{}, COOL], ids=["greedy", "sampled"])
def test_what_drafts_are_and_how_many_were_right(
    drafts: int | None, decoding: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    wanted, texts = truth(hf, "cad", rows, **decoding)
    with spied(monkeypatch) as seen:
        stats = same(made(hf, "cad", rows, drafts, **decoding), wanted)
    assert stats.drafted == sum(len(draft) for _, draft in seen)
    right = [in_common(draft, continued(so_far, texts)) for so_far, draft in seen]
    assert stats.accepted == sum(right)
    assert 0 < stats.accepted < stats.drafted


@pytest.mark.parametrize("spec", ["plain", "cad"])
def test_passes_fall_by_as_many_as_drafts_were_right(spec: str) -> None:
    hf, saved = gpt2(VOCAB, seed=4), 0
    for row in repeating(0):
        wanted = made(hf, spec, [row], end_ids=())
        with Passes(hf) as passes:
            stats = same(made(hf, spec, [row], 4, end_ids=()), wanted)
        streams = 1 if spec == "plain" else 2
        rounds = TOKENS - 1 - stats.accepted
        assert passes.count == stats.passes == streams + rounds
        assert stats.forwards == streams * (1 + rounds)
        read = len(row["context"]) + rounds + stats.drafted
        assert stats.context_tokens == read
        saved += stats.accepted
    assert saved > 10


def test_drawn_tokens_have_the_probabilities_of_the_method() -> None:
    hf, rule, count = llama(6, seed=3), methods.build("cad"), 2000
    row = repeating(2, [(8, 5)], 6)[0]
    run = run_of(hf, "cad", [row], 2, end_ids=(), top=None, max_new_tokens=3, temperature=1.0,
                 seed=11, n=count)  # fmt: skip
    found = ids_of(engine.generate(run))[0]
    assert 200 < run.stats().accepted < run.stats().drafted

    def after(*said: int) -> torch.Tensor:
        return reference.scores(hf, rule, row["context"], row["memory"], said).double().exp()

    second = torch.stack([after(one) for one in range(6)])
    third = torch.stack([torch.stack([after(one, two) for two in range(6)]) for one in range(6)])
    wanted = [after() @ second, torch.einsum("a,ab,abc->c", after(), second, third)]
    for place, shares in enumerate(wanted, 1):
        times = Counter(ids[place] for ids in found)
        seen = torch.tensor([float(times[one]) for one in range(6)], dtype=torch.float64)
        assert float(((seen - count * shares) ** 2 / (count * shares)).sum()) < 20.5  # 1 in 1,000


def test_a_stream_that_was_forked_does_not_feel_drafts() -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(3)
    wanted = made(hf, "cad", rows)
    read = run_of(hf, "cad", rows).streams
    before = {name: (one.prefill().clone(), one.ids.clone()) for name, one in read.items()}
    for drafts, decoding in ((None, {}), (3, HOT), (0, {}), (0, HOT)):
        streams = {name: one.fork() for name, one in read.items()}
        found = made(hf, "cad", rows, drafts, streams=streams, **decoding)
        same(found, made(hf, "cad", rows, **decoding) if decoding else wanted)
        for name, one in read.items():
            assert torch.equal(one.prefill(), before[name][0])
            assert torch.equal(one.ids, before[name][1])
            assert one.cache.layers[0].keys.shape[-2] == one.ids.shape[1]
            assert one.forwards == 1


class _Indexed(Rule):
    """Leaves everything as it is, and says what the step's index was."""

    name = "indexed"
    needs = ("context",)

    def __call__(self, step: Any, state: Any) -> Mix:
        ones = step.logits.new_ones(step.logits.shape[0], 1)
        return Mix(ones, ones * 0, scores={"index": ones[:, 0] * step.index})


def test_a_step_knows_how_far_the_furthest_row_is(monkeypatch: pytest.MonkeyPatch) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)[:2]
    wanted, texts = truth(hf, "plain", rows, end_ids=())

    def draft(ids: list[int], most: int) -> list[int]:
        """Of one row and of the other, by turns."""
        first = ids == texts[0][: len(ids)]
        return continued(ids, texts)[:most] if first == (len(seen) // 2 % 2 == 0) else []

    seen = make(monkeypatch, draft)
    found = made(hf, Controller(_Indexed()), rows, 4, end_ids=())
    assert ids_of(found) == ids_of(wanted)
    told = [[record.scores["index"] for record in one.records] for (one,) in found]
    assert max(map(max, told)) == TOKENS - 1
