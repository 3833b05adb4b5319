"""The logit lens: the last layer is the model itself, the others by an independent computation."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions import HeadScale
from conflictkit.mechanics.lens import logit_lens
from tests.anatomy import families

EVERY = range(families.VOCAB)


@pytest.mark.parametrize("family", families.CONFIGS)
def test_the_last_layer_is_what_the_model_says(family: str) -> None:
    model, ids = families.model(family), families.tokens()[:1]
    own = model(ids).logits[0, -1].float().log_softmax(-1)
    seen = logit_lens(model, ids[0].tolist(), EVERY)
    torch.testing.assert_close(seen.logprobs[-1], own.detach(), rtol=0, atol=1e-5)
    assert seen.top[-1] == own.argmax()
    assert seen.logprobs.shape == seen.ranks.shape == (2, families.VOCAB)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "opt", "gemma2", "granite"])
def test_earlier_layers_go_through_norm_and_unembedding_once(family: str) -> None:
    model, ids = families.model(family), families.tokens()[:1]
    body, config = anatomy.find(model), model.config
    out = model(ids, output_hidden_states=True)
    # hidden_states[0] is the embedding; the last one is normed already, so it is not used here.
    stream = out.hidden_states[1][0, -1]
    assert body.norm is not None
    logits = body.unembed(body.norm(stream))
    if family == "gemma2":
        logits = config.final_logit_softcapping * torch.tanh(
            logits / config.final_logit_softcapping
        )
    if family == "granite":
        logits = logits / config.logits_scaling
    seen = logit_lens(model, ids[0].tolist(), EVERY)
    torch.testing.assert_close(
        seen.logprobs[0], logits.float().log_softmax(-1).detach(), rtol=0, atol=1e-5
    )


def test_ranks_count_from_one_and_equal_tokens_by_their_id() -> None:
    model, ids = families.model("llama"), families.tokens()[0].tolist()
    seen = logit_lens(model, ids, EVERY)
    for layer in range(2):
        assert sorted(seen.ranks[layer].tolist()) == list(range(1, families.VOCAB + 1))
        order = seen.logprobs[layer].sort(descending=True, stable=True).indices
        assert seen.ranks[layer][order].tolist() == list(range(1, families.VOCAB + 1))
        assert seen.top[layer] == order[0]
    whole = model.lm_head.weight.data.clone()
    try:
        model.lm_head.weight.data[:] = whole[:1]  # all tokens alike
        assert logit_lens(model, ids, (5, 0, 63)).ranks.tolist() == [[6, 1, 64]] * 2
    finally:
        model.lm_head.weight.data[:] = whole


def test_a_toolkit_model_will_do_and_nothing_stays_behind() -> None:
    model = ck.load("atlas")
    prompt = model.prompts("What is the capital of Poland?", "The capital of Poland is London.")
    ids = prompt["context"].ids
    before = model.model(torch.tensor([ids])).logits
    first = logit_lens(model, ids, (5, 9))
    again = logit_lens(model.model, ids, (5, 9))
    assert torch.equal(first.logprobs, again.logprobs)
    assert torch.equal(model.model(torch.tensor([ids])).logits, before)
    hooks = [m for m in model.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []
    own = before[0, -1].float().log_softmax(-1)
    torch.testing.assert_close(first.logprobs[-1], own[[5, 9]].detach(), rtol=0, atol=1e-4)


def test_the_lens_sees_an_edited_model() -> None:
    model, ids = families.model("llama"), families.tokens()[0].tolist()
    plain = logit_lens(model, ids, EVERY)
    with HeadScale({(1, 2): (0.0,)}).attach(model) as handle:
        own = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1).detach()
        seen = logit_lens(model, ids, EVERY)
    assert handle.edits == 2 * len(ids)  # reading the layers is no forward that it edits
    torch.testing.assert_close(seen.logprobs[-1], own, rtol=0, atol=1e-5)
    assert not torch.allclose(plain.logprobs[-1], own, atol=1e-3)
    torch.testing.assert_close(seen.logprobs[0], plain.logprobs[0], rtol=0, atol=1e-5)


def test_another_thread_computes_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = families.model("llama"), families.tokens()[:1]
    other = families.tokens()[1:]
    alone = model(other).logits
    found: list[Any] = []
    forward = type(model).forward

    def slow(self: Any, *args: Any, **named: Any) -> Any:
        made = forward(self, *args, **named)
        if threading.current_thread() is main:
            worker = threading.Thread(target=lambda: found.append(model(other).logits))
            worker.start()
            worker.join()
        return made

    main = threading.current_thread()
    plain = logit_lens(model, ids[0].tolist(), EVERY)
    monkeypatch.setattr(type(model), "forward", slow)
    seen = logit_lens(model, ids[0].tolist(), EVERY)
    assert len(found) == 2
    assert all(torch.equal(one, alone) for one in found)
    assert torch.equal(seen.logprobs, plain.logprobs)


@pytest.mark.parametrize(
    ("ids", "tokens", "said"),
    [((), (1,), "ids: needs"), ((1,), (), "tokens: needs"), ((64,), (1,), "no token 64"),
     ((1,), (-1,), "no token -1")],
)  # fmt: skip
def test_bad_ids_are_named(ids: tuple[int, ...], tokens: tuple[int, ...], said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        logit_lens(families.model("llama"), ids, tokens)
