"""Prompts that were read before: the same logits, and no more passes than are told."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conflictkit import engine, methods
from conflictkit.controller import Controller
from conflictkit.plan import open_streams
from conflictkit.prompt_cache import PromptCache
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from conflictkit.streams import Stream
from tests.anatomy import families
from tests.engine.riding import BY_LENGTH, GROUPED, built, drawn, near, some
from tests.tiny import gpt2, llama, sliding

VOCAB = 40
DOC, OTHER = drawn([40, 37], 1, VOCAB)
ASKED = drawn([5, 6, 9], 2, VOCAB)
LONG = drawn([70], 3, VOCAB)[0]

Row = list[int]


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens, padding left out, of every pass."""
    seen: list[tuple[int, int]] = []

    def hook(_: Any, __: Any, named: dict[str, Any]) -> None:
        ids = named["input_ids"]
        seen.append((len(ids), int(named["attention_mask"][:, -ids.shape[1] :].sum())))

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def read(model: Any, prompts: Sequence[Row], kept: PromptCache | None) -> tuple[Stream, Tensor]:
    stream = Stream(model, prompts, pad_id=2, prompts_read=kept)
    return stream, stream.prefill()


def passes(model: Any, prompts: Sequence[Row], kept: PromptCache) -> list[tuple[int, int]]:
    """What reading takes; the stream and the cache tell the same, and the logits are right."""
    before = (kept.tokens_read, kept.tokens_reused)
    with watched(model) as seen:
        stream, logits = read(model, prompts, kept)
    taken = sum(tokens for _, tokens in seen)
    assert (stream.forwards, stream.tokens) == (len(seen), taken)
    assert kept.tokens_read - before[0] == taken
    assert kept.tokens_reused - before[1] == sum(map(len, prompts)) - taken
    near([logits], [read(model, prompts, None)[1]])
    return seen


# Logits

BATCHES: list[list[Row]] = [
    [DOC + ASKED[0]],
    [DOC + ASKED[1], DOC + ASKED[0], OTHER + ASKED[0], DOC + ASKED[1]],  # prefix, whole, miss, twin
    [ASKED[2], DOC[:20], DOC + ASKED[0] + ASKED[1], DOC],  # beginnings of others, and longer
    [OTHER + ASKED[2], [7], OTHER[:16] + ASKED[1], DOC[:15] + ASKED[2]],
    [DOC, OTHER + ASKED[0], ASKED[2]],  # all of it kept
]
QUICK = ("llama", "mistral", "gpt2", "gemma2", "falcon-7b")


def go_on(stream: Stream) -> list[Tensor]:
    """Logits of all that a stream can do behind its prompts."""
    rows = stream.batch
    seen = [stream.step(torch.arange(rows) + 3), stream.extend(torch.arange(2 * rows).view(-1, 2))]
    stream.select(torch.tensor([rows - 1, 0, 0]))
    stream.roll_back(2)
    seen.append(stream.follow(torch.tensor([[5, 6], [7, 8], [9, 4]]), torch.ones(3, 2).long()))
    return [*seen, stream.step(torch.tensor([11, 12, 13]))]


@pytest.mark.parametrize("name", some(families.CONFIGS, *QUICK))
def test_logits_are_those_of_reading_everything(name: str) -> None:
    model, kept = families.model(name), PromptCache()
    forwards = -1
    for prompts in BATCHES:
        with watched(model) as seen:
            stream, logits = read(model, prompts, kept)
        forwards = stream.forwards
        assert (forwards, stream.tokens) == (len(seen), sum(tokens for _, tokens in seen))
        plain, wanted = read(model, prompts, None)
        near([logits, *go_on(stream)], [wanted, *go_on(plain)])
    assert forwards == 0  # all of the last batch was kept
    whole = sum(len(row) for rows in BATCHES for row in rows)
    assert kept.tokens_reused > whole / 2


LETTERS = st.lists(st.integers(3, 5), min_size=1, max_size=70)


@settings(max_examples=25)
@given(st.lists(st.lists(LETTERS, min_size=1, max_size=4), min_size=1, max_size=5), st.data())
def test_random_prompts_of_three_letters(batches: list[list[Row]], data: st.DataObject) -> None:
    model = llama(VOCAB)
    kept = PromptCache(data.draw(st.sampled_from([1, 2_000, 30_000, 1 << 20])))
    begun: Row = []
    for rows in batches:
        begins = data.draw(st.lists(st.integers(0, 70), min_size=len(rows), max_size=len(rows)))
        prompts = [begun[:size] + row for size, row in zip(begins, rows, strict=True)]
        passes(model, prompts, kept)
        assert kept.bytes == sum(one.bytes for one in kept.entries) <= kept.max_bytes
        begun = prompts[0]


@cache
def _crossing() -> Any:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
        "long_factor": [2.0, 4.0, 8.0, 16.0], "original_max_position_embeddings": 32,
    }  # fmt: skip
    config = {**GROUPED, "rope_parameters": rope, "original_max_position_embeddings": 32}
    return transformers.Phi3Config(**config)


@pytest.mark.parametrize("name", ["dynamic rope", "longrope"])
def test_what_depends_on_the_length_of_all_is_not_taken_over(name: str) -> None:
    config = _crossing() if name == "longrope" else BY_LENGTH[name]()
    # Rotary frequencies that grow with the longest row stay grown: a model for each.
    own, other, kept = built(config), built(config), PromptCache()
    read(own, [DOC[:20]], kept)
    near([read(own, [DOC], kept)[1]], [read(other, [DOC], None)[1]])


# What is read


def test_what_a_prompt_begins_with_is_not_read_again() -> None:
    model, kept = llama(VOCAB), PromptCache()
    whole = DOC + ASKED[0]
    assert passes(model, [whole], kept) == [(1, 45)]
    assert passes(model, [whole], kept) == []
    assert passes(model, [whole] * 3, kept) == []
    assert passes(model, [whole + ASKED[2]], kept) == [(1, 9)]
    assert passes(model, [DOC + ASKED[1]], kept) == [(1, 6)]
    # The logits behind the end of a beginning are not known.
    assert passes(model, [whole[:30]], kept) == [(1, 1)]
    assert passes(model, [whole[:16]], kept) == [(1, 16)]
    assert passes(model, [ASKED[2] + DOC], kept) == [(1, 49)]


@pytest.mark.parametrize(("common", "taken"), [(15, 19), (16, 4), (21, 4), (40, 4)])
def test_fewer_than_sixteen_tokens_are_read_again(common: int, taken: int) -> None:
    model, kept = llama(VOCAB), PromptCache()
    passes(model, [DOC], kept)
    assert passes(model, [[*DOC[:common], 1, 1, 1, 1]], kept) == [(1, taken)]


def test_the_prompt_with_most_in_common_is_taken_over() -> None:
    model, kept = llama(VOCAB), PromptCache()
    for whole in (DOC + ASKED[0], DOC + ASKED[1]):
        passes(model, [whole], kept)
    assert passes(model, [DOC + ASKED[0] + ASKED[2]], kept) == [(1, 9)]


def test_rows_that_are_alike_are_read_once() -> None:
    model = llama(VOCAB)
    assert passes(model, [DOC, DOC, OTHER, DOC], PromptCache()) == [(2, 77)]
    # Nothing is kept here: what a row is worth is read twice then.
    assert passes(model, [DOC, DOC], PromptCache(1)) == [(1, 40), (1, 40)]


def test_the_first_of_rows_that_begin_alike_for_long_is_read_before_the_others() -> None:
    model = llama(VOCAB)
    rows = [LONG + asked for asked in ASKED]
    assert passes(model, rows, PromptCache()) == [(1, 75), (2, 18)]
    for size, seen in ((63, [(2, 128)]), (64, [(1, 64), (1, 1)])):
        alike = [[*LONG[:size], 3], [*LONG[:size], 4]]
        found = passes(model, alike, PromptCache())
        assert found == ([(1, 65), (1, 1)] if size == 64 else seen)
    # What is kept does not count.
    kept = PromptCache()
    passes(model, [LONG], kept)
    assert passes(model, [LONG + asked for asked in ASKED[:2]], kept) == [(2, 12)]


def test_rows_take_over_only_what_leaves_as_much_to_read_in_all() -> None:
    model, kept = sliding(VOCAB), PromptCache()
    passes(model, [DOC], kept)
    # 30 new tokens of one row: the other reads 30 as well, and a short one all it has.
    assert passes(model, [DOC[:20] + OTHER[:30], DOC + ASKED[0], ASKED[2]], kept) == [(3, 69)]


# What it serves is the stream's own


def tensors(kept: PromptCache) -> list[Tensor]:
    return [t for one in kept.entries for pair in (*one.layers, (one.logits,)) for t in pair]


@pytest.mark.parametrize("build", [llama, gpt2, sliding])
def test_streams_leave_what_is_kept_alone(build: Any) -> None:
    model, kept = build(VOCAB), PromptCache()
    prompts = [DOC, OTHER, DOC]
    read(model, prompts, kept)
    before = [one.clone() for one in tensors(kept)]
    wanted = go_on(read(model, prompts, None)[0])
    for rows in (prompts, prompts, [DOC]):
        stream, logits = read(model, rows, kept)
        twin = stream.fork()
        logits += 1  # a caller's own
        made = go_on(stream)
        if rows is prompts:
            near(made, wanted)
            near(go_on(twin), wanted)
        for layer in twin.cache.layers:
            layer.keys.fill_(float("nan"))
        assert all(map(torch.equal, tensors(kept), before))


def test_two_streams_of_one_prompt_do_not_see_each_other() -> None:
    model, kept = llama(VOCAB), PromptCache()
    read(model, [DOC], kept)
    one, other = read(model, [DOC], kept)[0], read(model, [DOC], kept)[0]
    one.step(torch.tensor([5]))
    near([other.step(torch.tensor([9]))], [read(model, [[*DOC, 9]], None)[1]])
    near([one.step(torch.tensor([6]))], [read(model, [[*DOC, 5, 6]], None)[1]])


# Whole runs

ROWS = [
    {"context": [0, *DOC, *ASKED[0]], "memory": [0, *ASKED[0]]},
    {"context": [0, *DOC, *ASKED[1]], "memory": [0, *ASKED[1]]},
    {"context": [0, *OTHER[:9], *ASKED[2]], "memory": [0, *ASKED[2]]},
]
RUNS: dict[str, dict[str, Any]] = {
    "packed": {},
    "padded": {"road": "padded"},
    "sequential": {"road": "sequential"},
    "beams": {"num_beams": 3, "n": 2},
    "drafts": {"drafts": 3},
    "guessed": {"drafts": None},
    "sampled": {"temperature": 1.2, "seed": 5, "top_p": 0.9},
    "two each": {"temperature": 1.0, "seed": 7, "n": 2},
}


def answers(model: Any, method: str, kept: PromptCache | None, **options: Any) -> Any:
    control = Controller(methods.parse(method))
    prompts = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    streams = open_streams(model, control, prompts, pad_id=2, prompts_read=kept)
    stepper = {name: options.pop(name) for name in ("road", "drafts") if name in options}
    run = Stepper(streams, control, Decoding(**{"max_new_tokens": 7, **options}), end_ids=(1,),
                  decode=str, **stepper)  # fmt: skip
    return engine.generate(run)


@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("build", [llama, pytest.param(gpt2, marks=pytest.mark.slow),
                                   pytest.param(sliding, marks=pytest.mark.slow)])  # fmt: skip
def test_answers_are_the_same_however_they_are_decoded(build: Any, how: str) -> None:
    kept = PromptCache()
    found: Any = None
    wanted: Any = None
    for method in ("adacad", "cad", "plain"):
        wanted = answers(build(VOCAB), method, None, **RUNS[how])
        for _ in range(2):
            found = answers(build(VOCAB), method, kept, **RUNS[how])
            for mine, other in zip(found, wanted, strict=True):
                assert [one.ids for one in mine] == [one.ids for one in other]
                for one, two in zip(mine, other, strict=True):
                    assert one.score == pytest.approx(two.score, rel=1e-4, abs=1e-4)
    # Every prompt once, the document of two rows too.
    assert kept.tokens_read <= sum(len(row[name]) for row in ROWS for name in row)
    stats, plain = found[0][0].stats, wanted[0][0].stats
    assert stats.forwards == plain.forwards - 1
    assert stats.context_tokens == plain.context_tokens - sum(len(row["context"]) for row in ROWS)


def test_a_copy_of_the_entries_is_handed_out() -> None:
    kept = PromptCache()
    read(llama(VOCAB), [DOC], kept)
    listed = copy.copy(kept.entries)
    kept.entries.clear()
    assert kept.entries == listed
