"""JuICE's heads: the released lists, and the dual run by its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.errors import EmptyInputError, InvalidParameterError
from conflictkit.mechanics import juice
from conflictkit.mechanics.items import NO_CONFLICT
from tests.golden import mechanistic
from tests.mechanics.worlds import logits, replaced, seen, world


def test_the_lists_of_the_released_ranking(shared: Path) -> None:
    numbers = mechanistic(shared, "juice_head_ranking.npz")
    cases = sorted({name.split("/")[0] for name in numbers.files if "/pos" in name})
    assert cases
    for case in cases:
        up, down = (torch.from_numpy(numbers[f"{case}/{name}"]) for name in ("pos", "neg"))
        lists = juice.rank(up, down)
        for name in ("enlarge", "suppress", "context"):
            expected = [tuple(head) for head in numbers[f"{case}/{name}"].tolist()]
            assert list(getattr(lists, name)) == expected, (case, name)


def test_the_released_scores_of_gemma_2(shared: Path) -> None:
    numbers = mechanistic(shared, "juice_gemma2_2b_world_capital.npz")
    assert tuple(numbers["alphas_positive"]) == juice.UP
    assert tuple(numbers["alphas_negative"]) == juice.DOWN
    up, down = (torch.from_numpy(numbers[f"raw_{name}"]) for name in ("positive", "negative"))
    for raw, name in ((up, "positive"), (down, "negative")):
        np.testing.assert_allclose(juice.means(raw), numbers[f"mean_{name}"], atol=1e-7)
    lists = juice.Effects(up, down).lists()
    assert list(lists.enlarge) == [tuple(head) for head in numbers["enlarge"].tolist()]
    assert len(lists.suppress) == 27
    assert (5, 7) in lists.enlarge[:10]
    assert (5, 7) in lists.suppress[:10]


def test_a_head_needs_one_sign_in_all_prompts_and_equal_heads_keep_their_order() -> None:
    up = torch.tensor([[[0.2, 0.1, 0.1], [0.5, 0.5, -0.1]], [[0.1, 0.1, 0.2], [0.3, 0.3, 0.0]]])
    lists = juice.rank(up, -up)
    assert lists.enlarge == ((0, 0), (1, 0))
    assert lists.context == ((1, 0), (0, 0))
    assert lists.suppress == ()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_effects_are_the_dual_run_by_its_definition(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a times what the head writes in the clean run, added to the projection's output."""
    monkeypatch.setattr(juice, "_TOKENS", 40)  # several passes, the last one not full
    model = world(name)
    body = anatomy.find(model)
    triple = juice.Triple((5, 6, 7, 8), (9, 10, 11, 12, 13), (14, 15, 16, 17, 18, 19), target=20)
    ups, downs = (1.0, 3.0), (-2.0,)
    ours = juice.effects(model, [triple], ups=ups, downs=downs)
    assert (ours.up.shape, ours.down.shape) == ((1, 2, 4, 3, 2), (1, 2, 4, 3, 1))
    both = torch.cat([ours.up, ours.down], -1)[0]
    for kind, prompt in enumerate((triple.clean, triple.substitution, triple.coherent)):
        clean = seen(model, prompt)
        before = logits(model, prompt).softmax(-1)[20]
        for layer, head in body.names():
            output, part = body.outputs[layer], body.slice_of(head)
            alone = torch.zeros_like(clean[output][0])
            alone[..., part] = clean[output][0][..., part]
            with torch.no_grad():
                wrote = output.forward(alone) - output.forward(alone * 0)  # type: ignore[union-attr]
            for place, strength in enumerate((*ups, *downs)):
                with replaced({}, {output: lambda out, a=strength, w=wrote: out + a * w}):
                    change = logits(model, prompt).softmax(-1)[20] - before
                torch.testing.assert_close(
                    both[layer, head, kind, place], change, atol=1e-5, rtol=1e-3
                )


def test_triples_of_atlas() -> None:
    model = ck.load("atlas")
    cases = ck.atlas.cases("train", "resistance")
    cases = [case for case in cases if case.meta["layout"] == "paragraph"][:2]
    agreeing = ck.atlas.cases("train", "agreement")[:3]
    found, dropped = juice.build(model, [*cases, *agreeing])
    assert dropped == {NO_CONFLICT: 3}
    assert [one.case_id for one in found] == [case.id for case in cases]
    case, triple = cases[0], found[0]
    read = {
        name: model.tokenizer.decode(getattr(triple, name), skip_special_tokens=True)
        for name in juice.PROMPTS
    }
    sentence = f"{case.meta['statement']} {case.context_answers[0]}."
    assert read["clean"] == case.question
    assert read["substitution"] == f"{sentence}\n\n{case.question}"
    assert read["coherent"] == f"{case.contexts[0]}\n\n{case.question}"
    assert case.memory_answers[0].startswith(model.tokenizer.decode([triple.target]).strip())
    assert juice.build(model, [_without_statement(case)])[1] == {juice.NO_STATEMENT: 1}


def _without_statement(case: Any) -> Any:
    from dataclasses import replace

    return replace(case, meta={})


def test_the_model_is_left_as_it_was_and_progress_is_told() -> None:
    model = world("llama")
    before = logits(model, (5, 6, 7))
    triple = juice.Triple((5, 6), (7, 8), (9, 10), target=20)
    calls: list[tuple[int, int]] = []
    juice.effects(model, [triple] * 2, progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)]

    def stop(*_: int) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        juice.effects(model, [triple], progress=stop)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(logits(model, (5, 6, 7)), before)


def test_wrong_calls() -> None:
    model = world("llama")
    with pytest.raises(EmptyInputError, match="no triple"):
        juice.effects(model, [])
    with pytest.raises(InvalidParameterError, match="at least one strength"):
        juice.effects(model, [juice.Triple((5,), (6,), (7,), 20)], downs=())
    with pytest.raises(InvalidParameterError, match="two tables"):
        juice.rank(torch.zeros(2, 2, 3), torch.zeros(2, 2, 2))
