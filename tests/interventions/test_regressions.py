"""What is broken in neighbouring projects, asked of ours: targets, token indices, batches, heads.

Bad second targets that leave the first one's hook; token indices that always raise, or mean
something else with a cache; batches without a mask; targets named twice that cannot be taken off;
blocks that cannot be left; head indices that always raise.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conflictkit import anatomy
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions import (
    AttentionBias,
    FocusDirections,
    HeadAdd,
    HeadScale,
    HeadTap,
    MaskedHeads,
)
from tests.anatomy.families import model, tokens
from tests.golden import mechanistic, of_case, tiny_llama

ONE = torch.linspace(-3, 3, 8)


@pytest.fixture
def hf() -> Any:
    return copy.deepcopy(model("llama"))


def edits(*heads: tuple[int, int]) -> list[Any]:
    """Every primitive that changes something, on these heads."""
    return [
        HeadScale(dict.fromkeys(heads, -3.0)),
        AttentionBias([(1, 4)], 0.01, list(heads)),
        FocusDirections(dict.fromkeys(heads, ONE), 2.0),
        MaskedHeads(list(heads)),
    ]


def read(hf: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return hf(ids).logits


def hooks(hf: Any) -> int:
    return sum(len(one._forward_pre_hooks) + len(one._forward_hooks) for one in hf.modules())


@pytest.mark.parametrize("kind", range(4))
def test_a_bad_second_target_leaves_nothing_of_the_first(hf: Any, kind: int) -> None:
    before, count = read(hf, tokens()), len(list(hf.buffers()))
    for bad in ((9, 0), (1, 99)):
        edit = edits((0, 1), bad)[kind]
        with pytest.raises(InvalidParameterError, match="no head"):
            edit.attach(hf, prompt_lengths=[9, 9])
    assert hooks(hf) == 0
    assert len(list(hf.buffers())) == count
    assert torch.equal(read(hf, tokens()), before)
    # Neither does a good edit lose what it has to one that cannot be attached beside it.
    with edits((0, 1))[kind].attach(hf, prompt_lengths=[9, 9]):
        alone = read(hf, tokens())
        with pytest.raises(InvalidParameterError):
            edits((9, 0))[kind].attach(hf, prompt_lengths=[9, 9])
        assert torch.equal(read(hf, tokens()), alone)


@pytest.mark.parametrize("span", [(2, 5), (0, 1), (8, 9)])
def test_token_indices_are_those_tokens_and_no_others(hf: Any, span: tuple[int, int]) -> None:
    body = anatomy.find(hf)
    module: Any = body.outputs[1]

    def by_hand(_: Any, arguments: Any) -> Any:
        values = arguments[0].clone()
        values[:, span[0] : span[1], body.slice_of(2)] *= -3.0
        return (values, *arguments[1:])

    hook = module.register_forward_pre_hook(by_hand)
    expected = read(hf, tokens())
    hook.remove()
    with HeadScale({(1, 2): -3.0}, span).attach(hf):
        torch.testing.assert_close(read(hf, tokens()), expected)
        changed = read(hf, tokens()) != read(copy.deepcopy(hf), tokens())
    assert not changed[:, : span[0]].any()
    assert changed[:, span[0]].any()


@pytest.mark.parametrize("kind", range(4))
def test_a_batch_without_a_mask_is_its_rows(hf: Any, kind: int) -> None:
    ids = tokens(3, 9)
    edit = edits((0, 1), (1, 2))[kind]
    with edit.attach(hf, prompt_lengths=[9] * 3):
        together = read(hf, ids)
    for row in range(3):
        with edit.attach(hf, prompt_lengths=[9]):
            torch.testing.assert_close(read(hf, ids[row : row + 1])[0], together[row])


def test_a_head_named_twice_or_from_the_end_is_no_riddle(hf: Any) -> None:
    before = read(hf, tokens())
    for edit in (MaskedHeads([(0, 1), (0, 1)]), AttentionBias([(1, 4)], 0.01, [(0, 1), (0, 1)])):
        once = MaskedHeads([(0, 1)]) if isinstance(edit, MaskedHeads) else None
        with edit.attach(hf, prompt_lengths=[9, 9]):
            twice = read(hf, tokens())
        assert not torch.equal(twice, before)
        if once is not None:
            with once.attach(hf):
                assert torch.equal(read(hf, tokens()), twice)
    assert torch.equal(read(hf, tokens()), before)
    for make in (lambda: HeadScale({(-1, 0): 0.0}), lambda: MaskedHeads([(0, -1)])):
        with pytest.raises(InvalidParameterError, match="a head is"):
            make()


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("way", ["end", "return", "break"])
def test_a_block_is_left_in_every_way(hf: Any, kind: int, way: str) -> None:
    before, edit = read(hf, tokens()), edits((0, 1))[kind]

    def run() -> str:
        for _ in range(2):
            with edit.attach(hf, prompt_lengths=[9, 9]):
                read(hf, tokens())
                if way == "break":
                    break
                if way == "return":
                    return "returned"
        return "ended"

    assert run() == ("returned" if way == "return" else "ended")
    assert torch.equal(read(hf, tokens()), before)


@pytest.mark.parametrize("kind", range(4))
def test_a_head_index_acts_on_that_head_alone(hf: Any, kind: int) -> None:
    """Seen at the input of the output projection of its layer."""
    body = anatomy.find(hf)
    output: Any = body.outputs[1]
    tap = HeadTap()
    for head in range(body.heads):
        with tap.attach(hf):
            read(hf, tokens())
            plain = {one: values.clone() for one, values in tap.values.items()}
            with edits((1, head))[kind].attach(hf, prompt_lengths=[9, 9]):
                read(hf, tokens())
        changed = tap.values[output] != plain[output]
        inside = torch.zeros(changed.shape[-1], dtype=torch.bool)
        inside[body.slice_of(head)] = True
        if kind == 0:  # scaled behind the tap
            assert not changed.any()
        else:
            assert changed[..., inside].any()
            assert not changed[..., ~inside].any()


@pytest.mark.parametrize("case", range(4))
def test_the_released_runs_of_juice_give_the_released_numbers(case: int, shared: Path) -> None:
    golden = of_case(mechanistic(shared, "juice_llama_jro_jrt.npz"), case)
    made = tiny_llama(golden)
    ids = torch.from_numpy(golden["ids"])
    pairs = zip(golden["heads"].tolist(), golden["alphas"].tolist(), strict=True)
    amounts = {(layer, head): alpha for (layer, head), alpha in pairs}
    assert np.abs(read(made, ids).numpy() - golden["logits_clean"]).max() <= 2e-4
    with HeadScale({head: 1 + alpha for head, alpha in amounts.items()}).attach(made):
        assert np.abs(read(made, ids).numpy() - golden["logits_jro"]).max() <= 2e-4
    tap = HeadTap(tuple(amounts))
    with tap.attach(made):
        read(made, ids)
    with HeadAdd(amounts, tap).attach(made):
        assert np.abs(read(made, ids).numpy() - golden["logits_jrt"]).max() <= 2e-4
    assert np.abs(golden["logits_jro"] - golden["logits_jrt"]).max() > 0.01
