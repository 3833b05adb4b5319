"""What several runs begin with is read once: forks decode as streams that read it themselves."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from conflictkit import _hf, engine, methods
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from conflictkit.streams import Stream
from tests.engine.reference import next_logits, pairs
from tests.tiny import gpt2, llama, recurrent, sliding

VOCAB = 40
ROWS = pairs(3, VOCAB, [(9, 4), (2, 6), (5, 5)])


def streams(model: Any) -> dict[str, Stream]:
    return {
        name: Stream(model, [row[name] for row in ROWS], pad_id=2) for name in ("context", "memory")
    }


def decoded(read, name):
    """Ids and cost of a run over these streams, not recorded."""
    rule: Any = methods.build(name)
    run = Stepper(
        {name: read[name] for name in rule.needs},
        rule,
        Decoding(max_new_tokens=6),
        end_ids=(1,),
        decode=lambda ids: "",
        top=None,
    )
    return [(row[0].ids, row[0].stats) for row in engine.generate(run)]


@contextmanager
def counted(model):
    """Number of tokens, padding included, of every pass over the weights."""
    passes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield passes
    finally:
        hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("build", [llama, gpt2, sliding, recurrent])
def test_forks_decode_as_streams_that_read_everything_themselves(build):
    model = build(VOCAB)
    roots = streams(model)
    for root in roots.values():
        root.prefill()
    for name in methods.names(edits=False):
        with counted(model) as passes:
            forked = decoded({name: root.fork() for name, root in roots.items()}, name)
        with counted(model) as own:
            assert forked == decoded(streams(model), name)
        needs = methods.describe(name).needs
        assert len(own) - len(passes) == len(needs)
        assert all(length <= len(ROWS) * len(needs) for length in passes)
    for name, root in roots.items():
        assert root.forwards == 1
        wanted = torch.cat([next_logits(model, [*row[name], 7]) for row in ROWS])
        step = root.step(torch.tensor([7, 7, 7]))
        torch.testing.assert_close(step, wanted, atol=1e-3, rtol=1e-3)


def test_a_fork_may_be_asked_again_moved_and_grown_without_its_root_noticing():
    model = llama(VOCAB)
    root = Stream(model, [row["context"] for row in ROWS], pad_id=2)
    first = root.prefill()
    fork = root.fork()
    fork.select(torch.tensor([2, 0, 2, 2]))
    torch.testing.assert_close(fork.prefill(), first[[2, 0, 2, 2]], atol=0, rtol=0)
    fork.step(torch.tensor([4, 5, 6, 7]))
    fork.roll_back(1)
    torch.testing.assert_close(root.prefill(), first, atol=0, rtol=0)
    assert (root.batch, root.forwards, fork.forwards) == (3, 1, 2)


def test_a_fork_of_a_stream_that_has_read_nothing_reads_for_itself():
    model = llama(VOCAB)
    root = Stream(model, [row["memory"] for row in ROWS], pad_id=2)
    fork = root.fork()
    torch.testing.assert_close(fork.prefill(), root.prefill(), atol=0, rtol=0)
    assert (root.forwards, fork.forwards) == (1, 1)


@pytest.mark.parametrize("build", [llama, gpt2, sliding, recurrent])
@pytest.mark.parametrize("cached", [True, False])
def test_what_follows_is_read_in_one_pass_up_to_each_rows_end(build, cached):
    model = build(VOCAB)
    rows = [row["context"] for row in ROWS]
    said = [[5, 6, 7], [8], [9, 3]]
    root = Stream(model, rows, pad_id=2, use_cache=cached)
    root.prefill()
    padded = torch.tensor([[*one, *[2] * (3 - len(one))] for one in said])
    mask = torch.tensor([[1] * len(one) + [0] * (3 - len(one)) for one in said])
    logits = root.fork().follow(padded, mask)
    for row, one in enumerate(said):
        for index in range(len(one)):
            wanted = next_logits(model, [*rows[row], *one[: index + 1]])[0]
            torch.testing.assert_close(logits[row, index], wanted, atol=1e-3, rtol=1e-3)


def test_padding_behind_a_row_takes_no_position():
    """A short row beside a long one would run out of positions otherwise."""
    model = gpt2(VOCAB)
    window = model.config.n_positions
    root = Stream(model, [[5] * (window - 1), [5] * 3], pad_id=2)
    root.prefill()
    said = torch.tensor([[4, 2, 2], [6, 7, 8]])
    logits = root.follow(said, torch.tensor([[1, 0, 0], [1, 1, 1]]))
    wanted = next_logits(model, [5, 5, 5, 6, 7, 8])[0]
    torch.testing.assert_close(logits[1, 2], wanted, atol=1e-4, rtol=1e-4)
    assert root.tokens == window + 2 + 4


# What `_hf` assumes of transformers


def test_a_layer_that_keeps_all_positions_never_writes_into_its_tensors():
    model = llama(VOCAB)
    cache: Any = DynamicCache()
    model(torch.tensor([[0, 5, 6], [0, 8, 9]]), past_key_values=cache, use_cache=True)
    kept = [(layer.keys, layer.keys.clone()) for layer in cache.layers]
    twin = _hf.copy_cache(cache)
    assert all(a.keys is b.keys for a, b in zip(twin.layers, cache.layers, strict=True))
    model(torch.tensor([[4], [5]]), past_key_values=twin, use_cache=True)
    _hf.select_rows(twin, torch.tensor([1, 0, 0]))
    _hf.roll_back(twin, 2)
    for layer, (keys, copied) in zip(cache.layers, kept, strict=True):
        assert layer.keys is keys
        assert torch.equal(keys, copied)


def test_the_size_of_a_cache_grows_with_its_positions_and_recurrent_states_do_not():
    model = llama(VOCAB)
    stream = Stream(model, [row["context"] for row in ROWS], pad_id=2)
    stream.prefill()
    config = model.config
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    assert stream.cache_bytes == (2 * config.num_hidden_layers * heads * 4, 0)
    stream.step(torch.tensor([7, 7, 7]))
    assert stream.cache_bytes == (2 * config.num_hidden_layers * heads * 4, 0)
    both = Stream(recurrent(VOCAB), [row["context"] for row in ROWS], pad_id=2)
    both.prefill()
    growing, fixed = both.cache_bytes
    assert growing == 2 * 2 * 8 * 4  # keys and values of the one layer that keeps positions
    assert fixed >= 4 * 8 * 8 * 4  # one state of value heads x key dim x value dim, in float32
