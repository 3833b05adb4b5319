"""Attention edits come and go without a trace, meet one another, and say what they cannot do."""

from __future__ import annotations

import contextvars
import copy
import gc
import threading
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import conflictkit as ck
from conflictkit.interventions import (
    AttentionBias,
    FocusDirections,
    HeadScale,
    MaskedHeads,
    attending,
)
from conflictkit.interventions.activations import Edits, Handle
from tests.anatomy import families
from tests.interventions.attention_by_definition import kernel, logits, padded

CLOSE: Any = {"atol": 2e-4, "rtol": 1e-4}
BIAS = AttentionBias([(1, 3)], 0.1)
ROWS = {"input_ids": families.tokens()}
LENGTHS = [9, 9]


def state(model: Any) -> tuple[Any, ...]:
    """All that an attached edit may have changed."""
    modules = list(model.modules())
    return (
        model.config._attn_implementation,
        [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in modules],
        [sorted(vars(one)) for one in modules],
        list(model.state_dict()),
        dict(attending.Route._users),
    )


@pytest.fixture
def model() -> Any:
    return families.model("llama")


@pytest.fixture(autouse=True)
def leaves_nothing() -> Any:
    before = state(families.model("llama"))
    yield
    assert state(families.model("llama")) == before


def test_threads_do_not_see_each_other(model: Any) -> None:
    plain = logits(model, ROWS)
    alphas = [0.5, 0.1, 0.02]
    alone = []
    for alpha in alphas:
        with AttentionBias([(1, 3)], alpha).attach(model, prompt_lengths=LENGTHS):
            alone.append(logits(model, ROWS))
    found: dict[float | None, list[Tensor]] = {alpha: [] for alpha in [*alphas, None]}
    barrier = threading.Barrier(4, timeout=60)

    def work(alpha: float | None) -> None:
        edits = [] if alpha is None else [AttentionBias([(1, 3)], alpha)]
        with Handle(model, edits, prompt_lengths=LENGTHS):
            for _ in range(5):
                barrier.wait()
                found[alpha].append(logits(model, ROWS))
            barrier.wait()

    threads = [threading.Thread(target=work, args=(alpha,)) for alpha in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for alpha, expected in zip([*alphas, None], [*alone, plain], strict=True):
        assert len(found[alpha]) == 5
        assert all(torch.equal(one, expected) for one in found[alpha])


def test_a_copied_context_is_edited(model: Any) -> None:
    with BIAS.attach(model, prompt_lengths=LENGTHS):
        here, context = logits(model, ROWS), contextvars.copy_context()
        there: list[Tensor] = []
        thread = threading.Thread(target=lambda: there.append(context.run(logits, model, ROWS)))
        thread.start()
        thread.join()
    assert torch.equal(there[0], here)


def test_detaching_reaches_copied_contexts(model: Any) -> None:
    other = MaskedHeads([(1, 2)])
    with other.attach(model):
        alone = logits(model, ROWS)
        handle = BIAS.attach(model, prompt_lengths=LENGTHS)
        context = contextvars.copy_context()
        assert not torch.equal(context.run(logits, model, ROWS), alone)
        handle.detach()
        assert torch.equal(context.run(logits, model, ROWS), alone)


def test_handles_may_go_in_any_order(model: Any) -> None:
    plain = logits(model, ROWS)
    other = MaskedHeads([(1, 2)])
    first = BIAS.attach(model, prompt_lengths=LENGTHS)
    with other.attach(model):
        both = logits(model, ROWS)
        first.detach()
        first.detach()
        second = logits(model, ROWS)
        assert model.config._attn_implementation != "sdpa"
    with other.attach(model):
        assert torch.equal(logits(model, ROWS), second)
    assert not torch.equal(both, second)
    assert torch.equal(logits(model, ROWS), plain)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_body_detaches(model: Any, error: type[BaseException]) -> None:
    plain = logits(model, ROWS)
    with pytest.raises(error), BIAS.attach(model, prompt_lengths=LENGTHS):
        raise error
    assert torch.equal(logits(model, ROWS), plain)


def test_a_handle_thrown_away_detaches(model: Any) -> None:
    plain = logits(model, ROWS)
    handle = BIAS.attach(model, prompt_lengths=LENGTHS)
    assert not torch.equal(logits(model, ROWS), plain)
    del handle
    gc.collect()
    assert torch.equal(logits(model, ROWS), plain)


def test_another_implementation_chosen_meanwhile_stays_and_is_not_run_unedited(model: Any) -> None:
    with kernel(model, "sdpa"):
        handle = BIAS.attach(model, prompt_lengths=LENGTHS)
        model.set_attn_implementation("eager")
        with pytest.raises(ck.errors.UnsupportedError, match="changed while an edit"):
            logits(model, ROWS)
        with pytest.warns(UserWarning, match="changed nothing"):
            handle.__exit__(None, None, None)
        assert model.config._attn_implementation == "eager"


def test_two_models_with_one_config() -> None:
    config = families.CONFIGS["llama"]()
    one, two = (hf.LlamaForCausalLM(config).eval() for _ in range(2))
    assert one.config is two.config
    plain = logits(two, ROWS)
    first = BIAS.attach(one, prompt_lengths=LENGTHS)
    with BIAS.attach(two, prompt_lengths=LENGTHS):
        first.detach()
        assert not torch.equal(logits(two, ROWS), plain)
    assert torch.equal(logits(two, ROWS), plain)
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("edit", "lengths", "message"),
    [
        (AttentionBias([(1, 3)], 0.1, [(2, 0)]), LENGTHS, r"no head \(2, 0\)"),
        (AttentionBias([(1, 3)], 0.1, [None, [(0, 4)]]), LENGTHS, r"no head \(0, 4\)"),
        (BIAS, None, "needs prompt_lengths="),
        (AttentionBias([(1, 3)], 2, inside=True, variant="released"), None, "needs prompt_len"),
        (AttentionBias([(1, 3)], 0.1, positions="answer", inside=True), None, "needs prompt_len"),
        (AttentionBias([[(1, 3)], [(4, 8)]], 0.1), [9, 7], r"\(4, 8\) of row 1 .* 7 tokens"),
        (AttentionBias([(1, 3)], [0.1, 0.2]), [9, 9, 9], "for 2 and for 3 rows"),
        (FocusDirections({(0, 0): torch.ones(9)}), None, r"\(0, 0\) has 9 numbers, .* 8"),
        (FocusDirections({(5, 0): torch.ones(8)}), None, r"no head \(5, 0\)"),
        (MaskedHeads([(0, 7)]), None, r"no head \(0, 7\)"),
        (MaskedHeads([(0, 1)], positions="decoding"), None, "needs prompt_lengths="),
        (MaskedHeads([(0, 1)], positions="somewhere"), None, "positions must be"),
    ],
)
def test_what_does_not_fit_the_model_leaves_nothing(
    model: Any, edit: Any, lengths: Any, message: str
) -> None:
    with pytest.raises(ck.errors.InvalidParameterError, match=message):
        Handle(model, [HeadScale({(0, 0): 0.5}), edit], prompt_lengths=lengths)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_halfway_leaves_nothing(
    model: Any, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ck.anatomy.find(model)
    assert body.outputs[1] is not None

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(body.outputs[1], "register_forward_pre_hook", broken)
    before = state(model)
    with pytest.raises(error):
        Handle(model, [BIAS, HeadScale({(0, 0): 0.5, (1, 0): 0.5})], prompt_lengths=LENGTHS)
    assert state(model) == before


OTHERS: dict[str, Any] = {
    "gptj": lambda: hf.GPTJConfig(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64
    ),
    "codegen": lambda: hf.CodeGenConfig(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64
    ),
    "bloom": lambda: hf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: hf.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4),
}


@pytest.mark.parametrize("name", [*families.UNDISPATCHED, *OTHERS])
def test_attention_beside_the_interface_is_refused(name: str) -> None:
    known = name in families.UNDISPATCHED
    other = families.model(name) if known else hf.AutoModelForCausalLM.from_config(OTHERS[name]())
    before = state(other)
    for edit in (BIAS, MaskedHeads([(0, 0)]), FocusDirections({(0, 0): torch.ones(8)})):
        with pytest.raises(ck.errors.UnsupportedError, match="Attention does not call .*HeadScale"):
            edit.attach(other, prompt_lengths=LENGTHS)
        assert state(other) == before


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "paged|eager"])
def test_a_kernel_without_bias_is_refused(
    model: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "_attn_implementation_internal", name)
    before = state(model)
    with pytest.raises(ck.errors.UnsupportedError, match=r"set_attn_implementation\('sdpa'\)"):
        BIAS.attach(model, prompt_lengths=LENGTHS)
    assert state(model) == before


def test_gpt2s_own_road_is_refused() -> None:
    config = families.CONFIGS["gpt2"]()
    config.reorder_and_upcast_attn = True
    config._attn_implementation = "eager"
    with pytest.raises(ck.errors.UnsupportedError, match="eager with reorder_and_upcast_attn"):
        BIAS.attach(hf.GPT2LMHeadModel(config), prompt_lengths=LENGTHS)


def test_a_bias_needs_to_know_the_tokens(model: Any) -> None:
    states = torch.randn(2, 5, 32)
    rotary = model.model.rotary_emb(states, torch.arange(5)[None])
    with BIAS.attach(model, prompt_lengths=LENGTHS):
        logits(model, ROWS)
        with pytest.raises(ck.errors.InvalidParameterError, match="which tokens it reads"):
            model.model.layers[0](states, position_embeddings=rotary)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_edits_add_up(model: Any, attention: str) -> None:
    """Two biases are the bias of their product; a query's edit and a head's stand beside it."""
    with kernel(model, attention):
        with AttentionBias([(1, 3)], 0.06).attach(model, prompt_lengths=LENGTHS):
            once = logits(model, ROWS)
        halves = [AttentionBias([(1, 3)], 0.2), AttentionBias([(1, 3)], 0.3)]
        with Handle(model, halves, prompt_lengths=LENGTHS):
            torch.testing.assert_close(logits(model, ROWS), once, **CLOSE)
        with (
            MaskedHeads([(1, 1)]).attach(model),
            HeadScale({(1, 1): 0.0}).attach(model),
            BIAS.attach(model, prompt_lengths=LENGTHS),
        ):
            off = logits(model, ROWS)
        edits = [HeadScale({(1, 1): 0.0}), BIAS]
        with Handle(model, edits, prompt_lengths=LENGTHS):
            torch.testing.assert_close(logits(model, ROWS), off, atol=0, rtol=0)
        directions = {(1, 1): torch.full((8,), 5.0)}
        with FocusDirections(directions, 1.0).attach(model), MaskedHeads([(1, 1)]).attach(model):
            last = logits(model, ROWS)
        with MaskedHeads([(1, 1)]).attach(model):
            assert torch.equal(logits(model, ROWS), last)


def test_a_row_edited_by_one_of_two(model: Any) -> None:
    """What a bias spares may still be another edit's."""
    plain = logits(model, ROWS)
    masked = MaskedHeads([[(1, 1)], []])
    with masked.attach(model):
        expected = logits(model, ROWS)[0]
    bias = AttentionBias([[], [(1, 3)]], 0.1)
    with Handle(model, [masked, bias], prompt_lengths=LENGTHS):
        found = logits(model, ROWS)
    torch.testing.assert_close(found[0], expected, **CLOSE)
    assert (expected - plain[0]).abs().max() > 0.01
    assert (found - plain)[1].abs().max() > 0.01
    everywhere, bias = MaskedHeads([(1, 1)]), AttentionBias([(1, 3)], 0.1, positions="answer")
    with everywhere.attach(model):
        expected = logits(model, ROWS)
    with Handle(model, [everywhere, bias], prompt_lengths=[6, 6]):
        found = logits(model, ROWS)
    torch.testing.assert_close(found[:, :6], expected[:, :6], **CLOSE)
    assert (found - expected)[:, 6:].abs().max() > 0.01


def test_an_engine_says_whose_rows_and_in_which_order(model: Any) -> None:
    """Hooks in place first; at work around each forward; rows chosen, repeated, swapped."""
    rows = padded(9, 9, 9)
    lengths, spans = [9, 8, 7], [[(1, 3)], [(2, 5)], [(0, 2)]]
    alone = []
    for row in range(3):
        with AttentionBias(spans[row], 0.1).attach(model, prompt_lengths=lengths[row : row + 1]):
            alone.append(logits(model, {k: v[row : row + 1] for k, v in rows.items()}))
    plain = logits(model, rows)
    only = torch.tensor([True, False, True])
    edits = Edits(model, [AttentionBias(spans, 0.1)], prompt_lengths=lengths, only=[only])
    with edits.at_work():
        found = logits(model, rows)
    for row in (0, 2):
        torch.testing.assert_close(found[row], alone[row][0], **CLOSE)
    assert torch.equal(found[1], plain[1])
    assert edits.edits == 18
    index = torch.tensor([2, 0, 2, 1])
    edits.select(index)
    with edits.at_work():
        found = logits(model, {k: v[index] for k, v in rows.items()})
    for place, row in enumerate((2, 0, 2)):
        torch.testing.assert_close(found[place], alone[row][0], **CLOSE)
    torch.testing.assert_close(found[3], plain[1], **CLOSE)
    assert torch.equal(logits(model, rows), plain)


def test_a_batch_of_other_rows_is_refused(model: Any) -> None:
    edit = AttentionBias([(1, 3)], [0.1, 0.2])
    with (
        pytest.raises(ck.errors.InvalidParameterError, match="2 rows met a batch of 3"),
        edit.attach(model, prompt_lengths=[9]),
    ):
        logits(model, {"input_ids": families.tokens(3)})


def test_an_edit_that_reached_nothing_says_so(model: Any) -> None:
    edit = AttentionBias([(1, 3)], 0.1, positions="answer")
    handle = edit.attach(model, prompt_lengths=LENGTHS)
    logits(model, ROWS)
    with pytest.warns(UserWarning, match="changed nothing"):
        handle.__exit__(None, None, None)
    assert handle.edits == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_stays_finite(attention: str) -> None:
    """Rows that see nothing (padding) and an extreme alpha."""
    half = copy.deepcopy(families.model("llama")).half()
    with kernel(half, attention):
        for alpha in (1e-30, 1e30):
            with AttentionBias([(1, 3)], alpha).attach(half, prompt_lengths=[9, 4]):
                assert logits(half, padded(9, 4)).isfinite().all()


@pytest.mark.slow
def test_a_compiled_model_is_edited_too(model: Any) -> None:
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    plain = logits(compiled, ROWS)
    for edit in (MaskedHeads([(1, 1)], positions="decoding"), BIAS):
        with edit.attach(model, prompt_lengths=LENGTHS):
            expected = logits(model, ROWS)
        with edit.attach(compiled, prompt_lengths=LENGTHS):
            torch.testing.assert_close(logits(compiled, ROWS), expected, **CLOSE)
        assert torch.equal(logits(compiled, ROWS), plain)
        assert not torch.equal(expected, plain)


def test_gradients_pass_through(model: Any) -> None:
    directions = {(0, 1): torch.ones(8)}
    embeds = model.get_input_embeddings()(ROWS["input_ids"]).detach().requires_grad_()
    with Handle(model, [BIAS, FocusDirections(directions)], prompt_lengths=LENGTHS):
        model(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().sum() > 0
