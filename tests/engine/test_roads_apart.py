"""A pass for several streams leaves nothing behind, and fails as itself or not at all."""

from __future__ import annotations

import copy
import pickle
import threading
import types
from typing import Any

import pytest
import torch
import transformers.models.llama.modeling_llama as code
from torch.nn import functional

import conflictkit as ck
from conflictkit import engine, together
from conflictkit._hf_attention import PACK
from conflictkit._hf_packed import RIDERS
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions import _hooks
from conflictkit.interventions.attending import Leading
from conflictkit.interventions.attention import MaskedHeads
from conflictkit.interventions.heads import HeadScale
from conflictkit.together import Together
from tests import tiny
from tests.engine import reference
from tests.engine.riding import near, opened, passes, run_of, said

VOCAB = 40
ROWS = reference.pairs(3, VOCAB, [(9, 4), (3, 7), (14, 2)])
LENGTHS = [(9, 6, 4), (2, 4, 3)]


def fresh(build: Any = tiny.llama) -> Any:
    """A model that no pass has been tried with."""
    return copy.deepcopy(build(VOCAB))


def clean(hf: Any) -> None:
    """Nothing of a pass is left."""
    configs = {id(one.config): one.config for one in hf.modules() if hasattr(one, "config")}
    for config in configs.values():
        assert type(config._attn_implementation) is str
        assert not config._attn_implementation.startswith("conflictkit")
    assert not Leading._users.keys() & configs.keys()
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(one, kind) for one in hf.modules() for kind in hooks)
    assert PACK.get() is None
    assert RIDERS.get() is None
    assert _hooks.ACTIVE.get() == ()


def wanted(hf: Any, method: str = "cad", **options: Any) -> Any:
    return said(run_of(hf, method, ROWS, "sequential", **options))


def test_between_two_tokens_the_model_is_as_it_was() -> None:
    hf = fresh()
    for _ in engine.stream(run_of(hf, "cad", ROWS)):
        clean(hf)
    clean(hf)


def test_a_copy_of_the_config_made_during_a_pass_names_the_models_own_attention() -> None:
    hf, seen = fresh(), []

    def hook(*_: Any) -> None:
        seen.append(hf.config._attn_implementation)
        copies = (copy.deepcopy(hf.config), pickle.loads(pickle.dumps(hf.config)))
        seen.append({one._attn_implementation for one in copies})
        seen.append(hf.config.to_json_string())

    run = run_of(hf, "cad", ROWS, max_new_tokens=2)
    run.start(1)
    handle = hf.model.layers[1].register_forward_hook(hook)
    run.advance(torch.tensor([5, 6, 7]))
    handle.remove()
    assert seen[:2] == ["conflictkit-sdpa", {"sdpa"}]
    assert "conflictkit" not in seen[2]
    clean(hf)


def test_an_answer_given_up_half_way_is_no_trouble_to_the_next() -> None:
    hf = fresh()
    events = engine.stream(run_of(hf, "cad", ROWS))
    for _ in range(7):
        next(events)
    events.close()
    clean(hf)
    assert said(run_of(hf, "cad", ROWS)) == wanted(hf)


def test_a_kernel_chosen_between_two_tokens_is_used_from_there_on() -> None:
    hf, tokens = fresh(), []
    for number, event in enumerate(engine.stream(run_of(hf, "cad", ROWS))):
        tokens.append((event.row, event.token))
        if number == 5:
            hf.set_attn_implementation("eager")
    expected = wanted(hf)
    assert [tuple(token for at, token in tokens if at == row) for row in range(3)] == [
        row[0] for row in expected
    ]
    assert hf.config._attn_implementation == "eager"
    clean(hf)


def test_an_edit_attached_between_two_steps_acts_and_goes() -> None:
    hf, tokens = fresh(), torch.tensor([[5], [6], [7]])
    made = []
    for road in ("packed", "sequential"):
        both = Together(opened(hf, LENGTHS, VOCAB), road)
        found = [*both.follow(tokens).values()]
        with MaskedHeads([(0, 1)]).attach(hf):
            found += both.follow(tokens).values()
            assert hf.config._attn_implementation == "conflictkit-sdpa"
        found += both.follow(tokens).values()
        made.append(found)
        clean(hf)
    near(*made)


# Threads


def in_threads(*works: Any) -> list[Any]:
    """What each returns, all begun at once."""
    found: list[Any] = [None] * len(works)
    gate = threading.Barrier(len(works))

    def work(number: int) -> None:
        gate.wait()
        try:
            found[number] = works[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(works))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found


def test_threads_with_one_model_do_not_meet() -> None:
    hf, ids = fresh(), torch.tensor([[0, 5, 6, 7]])

    def packed(method: str) -> Any:
        return [said(run_of(hf, method, ROWS, max_new_tokens=12)) for _ in range(2)]

    def plain() -> Any:
        return [hf.generate(ids, max_new_tokens=30, do_sample=False).tolist()]

    def edited() -> Any:
        with HeadScale({(0, 1): 0.0}).attach(hf), MaskedHeads([(1, 1)]).attach(hf):
            return packed("cad")

    works = (lambda: packed("cad"), lambda: packed("ph3?heads=0.1"), plain, edited,
             lambda: packed("decore?heads=0.1"))  # fmt: skip
    alone = [work() for work in works]
    assert len({str(one) for one in alone}) == len(works)
    assert in_threads(*works) == alone
    clean(hf)


# Errors


def test_an_error_of_a_processor_is_itself_and_leaves_nothing() -> None:
    hf, calls = fresh(), []

    def broken(_: Any, scores: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyError("mine")
        return scores

    with pytest.raises(KeyError, match="mine"):
        said(run_of(hf, "cad", ROWS, processors=(broken,)))
    clean(hf)
    assert said(run_of(hf, "cad", ROWS)) == wanted(hf)


class Own(Exception):
    pass


@pytest.mark.parametrize("kind", [Own, ValueError, torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("times", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_an_error_in_a_pass_is_itself_and_leaves_nothing(
    kind: type[BaseException], number: int, times: int
) -> None:
    """In the first pass for several streams, where a model's own trip would be caught, or later."""
    hf = fresh()
    run = run_of(hf, "cad", ROWS)
    run.start(1)
    step = torch.tensor([5, 6, 7])
    for _ in range(number):
        run.advance(step)
    left = [times]

    def hook(*_: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise kind("mine")

    handle = hf.model.layers[1].mlp.register_forward_pre_hook(hook)
    with pytest.raises(kind, match="mine"):
        run.advance(step)
    handle.remove()
    clean(hf)
    again = run_of(hf, "cad", ROWS)
    assert said(again) == wanted(hf)
    assert again.stats().road == "packed"


def test_a_refusal_of_an_edit_is_itself_and_says_nothing_of_the_model() -> None:
    hf = fresh()
    both = Together(opened(hf, LENGTHS, VOCAB))
    two = HeadScale({(0, 1): (0.0, 1.0)})
    with (
        pytest.raises(InvalidParameterError, match="an edit of 2 rows met a batch of 3"),
        two.attach(hf),
    ):
        both.step(torch.tensor([5, 6, 7]))
    clean(hf)
    again = run_of(hf, "cad", ROWS)
    assert said(again) == wanted(hf)
    assert again.stats().road == "packed"


# Models that do not attend as a pack needs it


def tripping(what: str) -> Any:
    """A model whose second layer does something of its own behind the cache."""
    hf = fresh()
    part = hf.model.layers[1].self_attn

    def forward(
        self: Any, hidden_states: Any, position_embeddings: Any, attention_mask: Any = None,
        past_key_values: Any = None, **_: Any,
    ) -> Any:  # fmt: skip
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            one(hidden_states).view(shape).transpose(1, 2)
            for one in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = code.apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if what == "keys":
            key = key * 1.0
        if what == "values":
            value = value + 0.0
        if what == "mask" and attention_mask is not None:
            attention_mask = attention_mask[:, :, :, : key.shape[-2]]
        if what == "own mask" and isinstance(attention_mask, tuple):
            attention_mask = torch.zeros(len(query), 1, 1, 1)
        name = self.config._attn_implementation
        name = name.removeprefix("conflictkit-") if what == "another way" else name
        if what == "by itself":
            pair: Any = [code.repeat_kv(one, self.num_key_value_groups) for one in (key, value)]
            causal = query.shape[2] > 1
            output = functional.scaled_dot_product_attention(query, *pair, is_causal=causal)
            return self.o_proj(output.transpose(1, 2).reshape(hidden_states.shape)), None
        attend = code.ALL_ATTENTION_FUNCTIONS.get_interface(name, code.eager_attention_forward)
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights

    part.forward = types.MethodType(forward, part)
    return hf


TRIPS = ("keys", "values", "mask", "own mask", "by itself", "another way")


@pytest.mark.parametrize("what", TRIPS)
def test_a_model_that_trips_over_a_pack_is_padded_instead(what: str) -> None:
    hf, plain = tripping(what), fresh()
    rows = ROWS[:1] if what in ("own mask", "by itself") else ROWS  # they know of no padding
    if what == "another way":
        hf.set_attn_implementation("eager")
    for road in ("packed", "padded"):
        run = run_of(hf, "cad", rows)
        with passes(hf) as seen:
            assert said(run) == said(run_of(plain, "cad", rows, "sequential"))
        stats = run.stats()
        assert (stats.road, stats.forwards, stats.passes) == ("padded", 12, 7)
        # It trips once, then that is known.
        assert len(seen) == 7 + (road == "packed")
    clean(hf)


@pytest.mark.parametrize("method", ["juice?enlarge_heads=0.1+1.2", "decore?heads=0.1+1.2"])
def test_what_was_edited_before_a_model_trips_is_not_counted_twice(method: str) -> None:
    plain = engine.generate(run_of(fresh(), method, ROWS, "sequential"))
    found = engine.generate(run_of(tripping("keys"), method, ROWS))
    assert [row[0].ids for row in found] == [row[0].ids for row in plain]
    assert found[0][0].stats.edits == plain[0][0].stats.edits
    # Where streams edit attention they cannot be padded.
    road = "sequential" if method.startswith("decore") else "padded"
    assert found[0][0].stats.road == road


def test_a_users_edit_counts_once_where_a_model_trips() -> None:
    counts = []
    for road in ("packed", "sequential"):
        hf = tripping("keys")
        with HeadScale({(0, 1): 0.5}).attach(hf) as handle:
            said(run_of(hf, "cad", ROWS, road))
        counts.append(handle.edits)
    assert counts[0] == counts[1]


# Inside generate


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_generates_loop_rides_too(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = fresh()
    width = max(len(row["context"]) for row in ROWS)
    ids = torch.tensor([[2] * (width - len(row["context"])) + row["context"] for row in ROWS])
    made = []
    for road in ("packed", "sequential"):
        if road == "sequential":
            monkeypatch.setattr(Together, "_chosen", lambda *_: "sequential")
        torch.manual_seed(0)
        with passes(hf) as seen:
            made.append(
                hf.generate(
                    ids, attention_mask=(ids != 2).long(), custom_generate=ck.decode, method="cad",
                    memory_ids=[row["memory"] for row in ROWS], max_new_tokens=8, eos_token_id=39,
                    pad_token_id=2, min_new_tokens=8, **options,
                )
            )  # fmt: skip
        assert len(seen) == (9 if road == "packed" else 16)
    assert torch.equal(*made)
    assert together._ATTENDS[hf]
    clean(hf)
