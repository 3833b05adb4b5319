"""What the cache of prompts holds, for whom, and how much of it."""

from __future__ import annotations

import gc
import re
import sys
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from conflictkit import engine, prompt_cache
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions import HeadScale
from conflictkit.prompt_cache import PromptCache
from conflictkit.stepping import Stepper
from conflictkit.streams import Stream
from tests.anatomy import families
from tests.engine import test_roads
from tests.engine.riding import built, drawn, near, run_of, said
from tests.engine.test_prompt_cache import ASKED, DOC, OTHER, VOCAB, passes, read
from tests.tiny import gpt2, llama, recurrent

POSITION = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head_dim, float32
LOGITS = VOCAB * 4


def size(ids: Any) -> int:
    return len(ids) * POSITION + LOGITS


def held(kept: PromptCache) -> int:
    """Bytes that stay in memory for what is kept."""
    tensors = [t for one in kept.entries for pair in (*one.layers, (one.logits,)) for t in pair]
    # None is a view of something larger.
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def found_by(begins: Any) -> set[tuple[int, ...]]:
    """Prompts that can be found by what they begin with."""
    deeper = (found_by(one.further.values()) for one in begins)
    return {kept.ids for one in begins for kept in one.kept.values()}.union(*deeper)


def test_bytes_are_what_stays_in_memory() -> None:
    model, kept = llama(VOCAB), PromptCache()
    for rows in ([DOC, ASKED[0], OTHER], [DOC + ASKED[0], DOC[:20], DOC], [OTHER + ASKED[2]]):
        read(model, rows, kept)
        assert kept.bytes == sum(one.bytes for one in kept.entries) == held(kept)
        assert all(one.bytes == size(one.ids) for one in kept.entries)
    assert len(kept) == len(kept.entries) == 6


def test_the_least_recently_used_go_first_and_the_bound_holds_at_every_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, bound = llama(VOCAB), 4 * size(range(20))
    kept, wanted = PromptCache(bound), OrderedDict[tuple[int, ...], int]()
    draw = torch.Generator().manual_seed(4)
    sizes = torch.randint(1, 45, (12,), generator=draw).tolist()
    # No two begin alike.
    prompts = [[3 + number, *drawn([n], number, VOCAB)[0]] for number, n in enumerate(sizes)]
    moments = []
    hook = model.register_forward_hook(lambda *_: moments.append((kept.bytes, held(kept))))
    drop = PromptCache._drop

    def seen(self: PromptCache, key: Any) -> None:
        moments.append((kept.bytes, held(kept)))
        drop(self, key)

    monkeypatch.setattr(PromptCache, "_drop", seen)
    for number in torch.randint(0, 12, (80,), generator=draw).tolist():
        ids = tuple(prompts[number])
        with_it = ids in wanted
        stream, _ = read(model, [list(ids)], kept)
        assert stream.forwards == (0 if with_it else 1)
        wanted[ids] = size(ids)
        wanted.move_to_end(ids)
        while sum(wanted.values()) > bound:
            wanted.popitem(last=False)
        assert [one.ids for one in kept.entries] == [*wanted]
        moments.append((kept.bytes, held(kept)))
    hook.remove()
    assert all(told == real <= bound for told, real in moments)
    assert max(told for told, _ in moments) > 0.8 * bound
    # What finds them knows them, and no others.
    assert found_by(kept._begins.values()) == {ids for ids in wanted if len(ids) >= 16}


def test_a_beginning_that_is_taken_over_has_been_used() -> None:
    model = llama(VOCAB)
    kept = PromptCache(size(DOC) + size(OTHER) + size(DOC + ASKED[0]))
    read(model, [DOC], kept)
    read(model, [OTHER], kept)
    read(model, [DOC + ASKED[0]], kept)
    assert [one.ids for one in kept.entries] == [*map(tuple, (OTHER, DOC, DOC + ASKED[0]))]
    read(model, [ASKED[2]], kept)
    assert [one.ids for one in kept.entries] == [*map(tuple, (DOC, DOC + ASKED[0], ASKED[2]))]


def test_a_prompt_that_is_too_large_is_not_kept_and_drives_nothing_out() -> None:
    model, kept = llama(VOCAB), PromptCache(size(DOC))
    read(model, [DOC], kept)
    assert kept.bytes == kept.max_bytes
    assert passes(model, [[*OTHER, 3, 3, 3, 3]], kept) == [(1, 41)]
    assert [one.ids for one in kept.entries] == [tuple(DOC)]
    tight = PromptCache(size(DOC) - 1)
    read(model, [DOC], tight)
    assert (len(tight), tight.bytes) == (0, 0)


def test_a_beginning_is_found_after_a_newer_prompt_with_it_is_gone() -> None:
    model = llama(VOCAB)
    kept = PromptCache(size(DOC) + size(DOC + ASKED[0]))
    read(model, [DOC], kept)
    read(model, [DOC + ASKED[0]], kept)
    read(model, [DOC], kept)
    read(model, [ASKED[1]], kept)  # drives out the other one
    assert [one.ids for one in kept.entries] == [tuple(DOC), tuple(ASKED[1])]
    assert passes(model, [DOC + ASKED[2]], kept) == [(1, 9)]


def test_clear_lets_go_of_everything() -> None:
    model, kept = llama(VOCAB), PromptCache()
    read(model, [DOC, OTHER], kept)
    gone = [weakref.ref(one.layers[0][0]) for one in kept.entries]
    kept.clear()
    assert (len(kept), kept.bytes, kept.entries, kept._begins) == (0, 0, [], {})
    assert not any(one() is not None for one in gone)
    assert passes(model, [DOC + ASKED[0]], kept) == [(1, 45)]
    assert kept.tokens_read == 77 + 45


def test_it_tells_what_it_holds() -> None:
    kept = PromptCache(10_000_000)
    read(llama(VOCAB), [DOC], kept)
    read(llama(VOCAB), [DOC + ASKED[0]], kept)
    assert repr(kept) == (
        f"PromptCache(2 prompts, {size(DOC) + size(DOC + ASKED[0]):,} of 10,000,000 bytes, "
        "40 tokens reused, 45 read)"
    )


@pytest.mark.parametrize("most", [0, -1, True, 1.5, "1", None])
def test_a_bound_is_a_whole_number(most: Any) -> None:
    with pytest.raises(InvalidParameterError, match=re.escape(f"not {most!r}")):
        PromptCache(most)


# Whose prompts


def test_two_models_in_one_cache_do_not_mix() -> None:
    kept = PromptCache()
    for _ in range(2):
        for model in (llama(VOCAB), llama(VOCAB, seed=1), gpt2(VOCAB)):
            for rows in ([DOC], [DOC + ASKED[0], OTHER]):
                passes(model, rows, kept)
    assert len(kept) == 9
    assert kept.tokens_read == 3 * (40 + 5 + 37) + 3 * 32  # a row of 37 new: 37 of the other, too


def test_a_model_that_is_gone_leaves_nothing_to_one_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt_cache, "id", lambda _: 7, raising=False)
    kept, model = PromptCache(), llama.__wrapped__(VOCAB)
    passes(model, [DOC], kept)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert passes(llama(VOCAB, seed=1), [DOC + ASKED[0]], kept) == [(1, 45)]
    assert [one.ids for one in kept.entries] == [tuple(DOC + ASKED[0])]
    assert kept.bytes == held(kept) == size(DOC + ASKED[0])


def test_a_model_in_another_precision_reads_for_itself() -> None:
    model, kept = built(families.CONFIGS["llama"]()), PromptCache()
    assert passes(model, [DOC], kept) == [(1, 40)]
    assert passes(model.to(torch.bfloat16), [DOC], kept) == [(1, 40)]
    assert passes(model, [DOC], kept) == []
    assert [one.logits.dtype for one in kept.entries] == [torch.float32, torch.bfloat16]


def test_adapters_that_act_and_those_that_do_not_read_for_themselves() -> None:
    import peft

    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(built(families.CONFIGS["llama"]()), lora, "one").eval()
    model.add_adapter("two", lora)
    kept, seen = PromptCache(), []
    for _ in range(2):
        for name in ("one", "two"):
            model.set_adapter(name)
            seen.append(read(model, [DOC + ASKED[0]], kept)[1])
        with model.disable_adapter():
            seen.append(read(model, [DOC + ASKED[0]], kept)[1])
    assert len(kept) == 3
    for first, again in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, again)
    assert not torch.allclose(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2])


def test_threads_may_share_it() -> None:
    model, kept = llama(VOCAB), PromptCache(8 * size(range(45)))
    rows = [doc + asked for doc in (DOC, OTHER, DOC[:20] + OTHER) for asked in ASKED]
    wanted = [read(model, [row], None)[1] for row in rows]
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            draw = torch.Generator().manual_seed(seed)
            for picks in torch.randint(0, len(rows), (12, 2), generator=draw).tolist():
                found = read(model, [rows[one] for one in picks], kept)[1]
                near([found], [torch.cat([wanted[one] for one in picks])])
                assert kept.bytes <= kept.max_bytes
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    finally:
        sys.setswitchinterval(before)
    assert not failed, failed
    assert kept.bytes == held(kept) == sum(one.bytes for one in kept.entries)


def test_nothing_is_changed_without_the_lock() -> None:
    class Watched(OrderedDict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            held.append(lock._is_owned())
            super().__setitem__(key, value)

        def pop(self, *given: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            held.append(lock._is_owned())
            return super().pop(*given)

    kept, held = PromptCache(size(DOC)), list[bool]()
    lock: Any = kept._lock
    kept._kept = Watched()
    for row in (DOC, OTHER):
        read(llama(VOCAB), [row], kept)
    assert held == [True] * 3


# Edits


def test_nothing_is_taken_and_nothing_kept_while_an_edit_is_attached() -> None:
    model, kept = llama(VOCAB), PromptCache()
    edit = HeadScale({(0, 1): -3.0, (1, 0): 4.0})
    read(model, [DOC], kept)
    before = kept.entries
    with edit.attach(model):
        wanted = read(model, [DOC, OTHER], None)[1]
        found, logits = read(model, [DOC, OTHER], kept)
        assert not kept.serves(found)
        near([logits], [wanted])
    assert kept.entries == before
    assert (kept.tokens_read, kept.tokens_reused) == (40, 0)
    assert not torch.allclose(wanted[:1], read(model, [DOC], None)[1], atol=1e-2)
    assert passes(model, [DOC], kept) == []
    assert passes(model, [DOC, OTHER], kept) == [(1, 37)]


def kept_by(run: Stepper, kept: PromptCache) -> Stepper:
    """The same run, whose streams take their prompts from a cache."""
    for stream in run.streams.values():
        stream._prompts_read = kept
    return run


@pytest.mark.parametrize("name", ["decore", "ph3", "juice", "spare", "caa", "attention-steering"])
def test_edited_streams_read_for_themselves(name: str, tmp_path: Path) -> None:
    model, kept, spec = llama(VOCAB), PromptCache(), test_roads.spec_of(name, tmp_path)
    rows = [
        {"context": [0, *DOC, *ASKED[0]], "memory": [0, *ASKED[0]]},
        {"context": [0, *OTHER, *ASKED[1]], "memory": [0, *ASKED[1]]},
    ]
    spans = [(1, 41), (1, 38)]
    wanted = said(run_of(model, spec, rows, spans=spans))
    for _ in range(2):
        run = kept_by(run_of(model, spec, rows, spans=spans), kept)
        plain = [stream for stream in run.streams.values() if kept.serves(stream)]
        changed = [stream.is_changed for stream in run.streams.values()]
        assert any(changed)
        assert len(plain) == len(changed) - sum(changed)
        mine = {row for stream in plain for row in stream.rows()}
        made = engine.generate(run)
        assert [[one.ids for one in row] for row in made] == wanted
        assert {one.ids for one in kept.entries} == mine
    # What was kept is what an unedited model reads.
    for one in kept.entries:
        near([one.logits[None]], [read(model, [list(one.ids)], None)[1]])


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_recurrent_model_and_a_stream_without_a_cache_read_for_themselves(
    use_cache: bool,
) -> None:
    model, kept = recurrent(VOCAB) if use_cache else llama(VOCAB), PromptCache()
    for _ in range(2):
        stream = Stream(model, [DOC, OTHER], pad_id=2, use_cache=use_cache, prompts_read=kept)
        near([stream.prefill()], [read(model, [DOC, OTHER], None)[1]])
        assert (stream.forwards, stream.tokens) == (1, 77)
    assert (len(kept), kept.tokens_read) == (0, 0)
