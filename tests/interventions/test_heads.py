"""Edits of heads attached to a model: what they promise when things go wrong."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions import HeadAdd, HeadScale, HeadTap
from tests.anatomy.families import VOCAB, model, tokens

OFF = HeadScale({(1, 2): 0.0})


@pytest.fixture
def hf() -> Any:
    return copy.deepcopy(model("llama"))


def census(hf: Any) -> tuple[int, frozenset[str], int, int]:
    """Hooks, parameters and buffers by name, attributes, tensors of a model."""
    gc.collect()
    hooks = sum(
        len(table)
        for module in hf.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )
    attributes = sum(len(module.__dict__) for module in hf.modules())
    return hooks, frozenset(hf.state_dict()), attributes, len(list(hf.buffers()))


def logits(hf: Any, ids: torch.Tensor | None = None, **named: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(tokens() if ids is None else ids, **named).logits


def by_hand(hf: Any, factor: float = 0.0, layer: int = 1, head: int = 2) -> torch.Tensor:
    """The same through a hook of the test's own."""
    body = anatomy.find(hf)
    module: Any = body.outputs[layer]

    def scale(_: Any, arguments: Any) -> Any:
        values = arguments[0].clone()
        values[..., body.slice_of(head)] *= factor
        return (values, *arguments[1:])

    handle = module.register_forward_pre_hook(scale)
    try:
        return logits(hf)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "scales",
    [{}, None, {(-1, 0): 0.0}, {(0, -1): 0.0}, {(2.0, 0): 0.0}, {("2", 0): 0.0}, {(True, 0): 0.0},
     {3: 0.0}, {(0, 1, 2): 0.0}, {(0, 1): "x"}, {(0, 1): True}, {(0, 1): float("nan")},
     {(0, 1): float("inf")}, {(0, 1): []}, {(0, 1): [0.0, "a"]},
     {(0, 1): [1.0], (0, 2): [1.0, 2.0]}],
)  # fmt: skip
def test_what_is_no_head_or_no_number_is_refused_at_once(scales: Any) -> None:
    with pytest.raises(InvalidParameterError, match="HeadScale"):
        HeadScale(scales)


@pytest.mark.parametrize("head", [(2, 0), (7, 1), (0, 4), (1, 99)])
def test_a_head_that_the_model_lacks_leaves_nothing_behind(hf: Any, head: Any) -> None:
    before, plain = census(hf), logits(hf)
    with pytest.raises(InvalidParameterError, match=rf"no head \({head[0]}, {head[1]}\)"):
        HeadScale({(0, 0): 0.0, head: 0.0}).attach(hf)
    assert census(hf) == before
    assert torch.equal(logits(hf), plain)


@pytest.mark.parametrize(
    "positions", ["end", "Prompt", (3, 1), (1, 1), (-1, 2), (1.0, 2), (1, 2, 3), 4, ["a", "b"]]
)
def test_positions_that_mean_nothing_are_refused(hf: Any, positions: Any) -> None:
    before = census(hf)
    with pytest.raises(InvalidParameterError, match="positions"):
        HeadScale({(0, 0): 0.0}, positions).attach(hf, prompt_lengths=[3, 3])
    assert census(hf) == before


def test_words_need_the_lengths_of_the_prompts(hf: Any) -> None:
    with pytest.raises(InvalidParameterError, match="needs prompt_lengths="):
        HeadScale({(0, 0): 0.0}, "answer").attach(hf)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_body_comes_out_and_leaves_nothing(hf: Any, error: Any) -> None:
    before = census(hf)
    with pytest.raises(error, match="mine"), OFF.attach(hf):
        raise error(f"mine, {logits(hf).shape}")
    assert census(hf) == before


def test_an_error_in_a_forward_leaves_nothing(hf: Any) -> None:
    before, plain = census(hf), logits(hf)
    with pytest.raises(IndexError), OFF.attach(hf):
        logits(hf, torch.tensor([[VOCAB + 5]]))
    assert census(hf) == before
    assert torch.equal(logits(hf), plain)


def test_detaching_twice_and_in_any_order(hf: Any) -> None:
    before, plain = census(hf), logits(hf)
    first, second = OFF.attach(hf), HeadScale({(0, 1): 2.0}).attach(hf)
    both = logits(hf)
    first.detach()
    first.detach()
    assert second.attached
    assert not first.attached
    torch.testing.assert_close(logits(hf), by_hand_after(hf, second))
    second.detach()
    assert census(hf) == before
    assert torch.equal(logits(hf), plain)
    assert not torch.equal(both, plain)


def by_hand_after(hf: Any, handle: Any) -> torch.Tensor:
    handle.detach()
    expected = by_hand(hf, 2.0, 0, 1)
    handle.__init__(hf, [HeadScale({(0, 1): 2.0})])
    return expected


def test_a_handle_that_is_thrown_away_detaches_itself(hf: Any) -> None:
    before, plain = census(hf), logits(hf)
    handle = OFF.attach(hf)
    assert not torch.equal(logits(hf), plain)
    del handle
    assert census(hf) == before
    assert torch.equal(logits(hf), plain)


@pytest.mark.slow
def test_two_hundred_rounds_leave_no_tensor_behind(hf: Any) -> None:
    def count() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    with OFF.attach(hf):
        logits(hf)
    before = count()
    for _ in range(200):
        with OFF.attach(hf):
            logits(hf, torch.tensor([[5]]))
    assert count() <= before


def test_copies_and_pickles_of_an_attached_model_are_not_edited(hf: Any) -> None:
    plain = logits(hf)
    with OFF.attach(hf):
        twin, thawed = copy.deepcopy(hf), pickle.loads(pickle.dumps(hf))
        assert torch.equal(logits(twin), plain)
        assert torch.equal(logits(thawed), plain)
        assert not torch.equal(logits(hf), plain)
    with OFF.attach(twin):
        assert not torch.equal(logits(twin), plain)


def test_a_model_that_moves_to_another_dtype_takes_the_edit_along(hf: Any) -> None:
    with OFF.attach(hf):
        logits(hf)
        hf.double()
        moved = logits(hf)
    torch.testing.assert_close(moved, by_hand(hf))
    assert moved.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_compiled_models(hf: Any, moment: str) -> None:
    expected, plain = by_hand(hf), logits(hf)
    torch._dynamo.reset()
    compiled = None
    if moment == "before":
        compiled = torch.compile(hf, backend="eager")
        torch.testing.assert_close(logits(compiled), plain)
    with OFF.attach(hf if compiled is None else compiled):
        if compiled is None:
            compiled = torch.compile(hf, backend="eager")
        torch.testing.assert_close(logits(compiled), expected)
    torch.testing.assert_close(logits(compiled), plain)


def test_peft_models(hf: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        target_modules=["o_proj", "q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(hf, config).eval()
    before, plain = census(wrapped), logits(wrapped)
    body = anatomy.find(wrapped)
    module: Any = body.outputs[1]

    def zero(_: Any, arguments: Any) -> Any:
        values = arguments[0].clone()
        values[:, 4:, body.slice_of(2)] = 0
        return (values, *arguments[1:])

    hook = module.register_forward_pre_hook(zero)
    expected = logits(wrapped)
    hook.remove()
    # PEFT calls the model's forward and not the model, so positions are learnt further in.
    with HeadScale({(1, 2): 0.0}, (4, 99)).attach(wrapped) as handle:
        torch.testing.assert_close(logits(wrapped), expected)
    assert handle.edits == 2 * 5
    assert census(wrapped) == before
    assert torch.equal(logits(wrapped), plain)


def test_offloaded_models_keep_their_hooks(hf: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    expected, plain = by_hand(hf), logits(hf)
    accelerate.cpu_offload(hf, torch.device("cpu"))
    hooks = [getattr(module, "_hf_hook", None) for module in hf.modules()]
    with OFF.attach(hf):
        torch.testing.assert_close(logits(hf), expected)
    assert [getattr(module, "_hf_hook", None) for module in hf.modules()] == hooks
    assert torch.equal(logits(hf), plain)


def test_a_model_on_the_meta_device_has_heads_too() -> None:
    with torch.device("meta"):
        hf = type(model("llama"))(model("llama").config)
    with pytest.warns(UserWarning, match="changed nothing"), OFF.attach(hf):
        pass


def test_a_module_that_is_no_language_model_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="expected a transformers model, got Linear"):
        OFF.attach(torch.nn.Linear(2, 2))


def test_an_edit_that_changed_nothing_says_so(hf: Any) -> None:
    with pytest.warns(UserWarning, match="changed nothing"), OFF.attach(hf):
        pass
    far = HeadScale({(0, 0): 0.0}, (50, 60))
    with pytest.warns(UserWarning, match="changed nothing"), far.attach(hf):
        logits(hf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with OFF.attach(hf) as handle:
            logits(hf)
    assert handle.edits == tokens().numel()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_positions_mean_the_same_with_and_without_a_cache(hf: Any, attention: str) -> None:
    hf.set_attn_implementation(attention)
    body, lengths = anatomy.find(hf), [4, 7]
    ids = tokens(2, 7)
    mask = torch.ones_like(ids)
    ids[0, :3], mask[0, :3] = 2, 0  # the first prompt is shorter, padding stands left
    module: Any = body.outputs[1]

    def expected(prompt: torch.Tensor, word: str, more: int) -> list[int]:
        said = prompt.tolist()
        end = len(said)
        begin, stop = {
            "prompt": (0, end), "last": (end - 1, end), "answer": (end, 999),
            "decoding": (end - 1, 999), "span": (2, 5),
        }[word]  # fmt: skip

        def zero(_: Any, arguments: Any) -> Any:
            values = arguments[0].clone()
            values[:, begin:stop, body.slice_of(2)] *= -9
            return (values, *arguments[1:])

        hook = module.register_forward_pre_hook(zero)
        for _ in range(more):
            said.append(int(logits(hf, torch.tensor([said]), use_cache=False)[0, -1].argmax()))
        hook.remove()
        return said[end:]

    for word in ("prompt", "last", "answer", "decoding", "span"):
        edit = HeadScale({(1, 2): -9.0}, (2, 5) if word == "span" else word)
        wanted = [expected(ids[row, 7 - lengths[row] :], word, 6) for row in range(2)]
        for use_cache in (True, False):
            with edit.attach(hf, prompt_lengths=lengths):
                made = hf.generate(
                    ids, attention_mask=mask, max_new_tokens=6, do_sample=False,
                    use_cache=use_cache, eos_token_id=None, pad_token_id=2,
                )  # fmt: skip
            assert made[:, 7:].tolist() == wanted, (word, use_cache)


def test_rows_have_strengths_of_their_own_through_beams(hf: Any) -> None:
    ids = tokens(2, 6)
    options = {"max_new_tokens": 5, "num_beams": 3, "eos_token_id": None, "pad_token_id": 2}
    alone = []
    for row, factor in enumerate((0.0, -3.0)):
        with HeadScale({(1, 2): factor}).attach(hf):
            alone.append(hf.generate(ids[row : row + 1], **options)[0].tolist())
    with HeadScale({(1, 2): [0.0, -3.0]}).attach(hf):
        assert hf.generate(ids, **options).tolist() == alone
        with pytest.raises(InvalidParameterError, match="an edit of 2 rows met a batch of 3"):
            logits(hf, tokens(3))


def test_tap_and_add_are_the_run_twice(hf: Any) -> None:
    body = anatomy.find(hf)
    module: Any = body.outputs[1]
    other = torch.flip(tokens(), dims=[1])
    with HeadTap([(1, 2)]).attach(hf), warnings.catch_warnings():
        warnings.simplefilter("error")  # a tap changes nothing, and needs not say so
        logits(hf, other)
    tap = HeadTap()
    with tap.attach(hf):
        logits(hf, other)
    assert tap.values[module].shape == (*other.shape, body.heads * body.head_dim)
    part = body.slice_of(2)
    clean = tap.values[module][..., part]

    def add(_: Any, arguments: Any) -> Any:
        values = arguments[0].clone()
        values[..., part] += 1.5 * clean
        return (values, *arguments[1:])

    hook = module.register_forward_pre_hook(add)
    expected = logits(hf)
    hook.remove()
    with HeadAdd({(1, 2): 1.5}, tap).attach(hf):
        torch.testing.assert_close(logits(hf), expected)
        with pytest.raises(InvalidParameterError, match="the source recorded"):
            logits(hf, tokens(1, 4))
    with HeadAdd({(1, 2): 0.0}, tap).attach(hf):
        assert torch.equal(logits(hf), logits(copy.deepcopy(hf)))


@pytest.mark.parametrize("name", ["llama", "falcon-7b", "gpt2"])
def test_a_query_head_is_one_of_its_group(name: str) -> None:
    """With grouped keys and values, one head off is not its whole group off."""
    hf = model(name)
    body = anatomy.find(hf)
    group = list(range(body.heads // body.kv_heads))
    one, all_of_them = (
        by_scale(hf, {(1, head): 0.0 for head in heads}) for heads in (group[:1], group)
    )
    assert (len(group) == 1) == torch.equal(one, all_of_them)


def by_scale(hf: Any, scales: Any) -> torch.Tensor:
    with HeadScale(scales).attach(hf):
        return logits(hf)


def test_an_abandoned_stream_of_tokens_edits_nothing_else(hf: Any) -> None:
    toolkit = ck.load("atlas")
    question, context = "What is the capital of Poland?", "The capital of Poland is London."
    plain = toolkit.ask(question, context, "plain", trace=False).text
    pieces = toolkit.stream(question, context, "ph3?heads=3.1+4.2+5.0", trace=False)
    next(iter(pieces))
    assert toolkit.ask(question, context, "plain", trace=False).text == plain
    del pieces
    gc.collect()
    assert not any(module._forward_pre_hooks for module in toolkit.model.modules())
