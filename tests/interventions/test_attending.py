"""How a changed query and a bias reach a kernel that we can look into, and which keys it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conflictkit.interventions.attending import Attention, computed
from conflictkit.interventions.places import Pass

QUERY = torch.zeros(2, 3, 4, 8)
FLOOR = torch.finfo(torch.float32).min


class Kernel:
    """Writes down what it is given; answers 1 with a mask and 0 without."""

    def __init__(self, probabilities: bool = True) -> None:
        self.given: list[tuple[Tensor, Tensor | None]] = []
        self._probabilities = probabilities

    def __call__(self, query: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self.given.append((query, mask))
        answer = float(mask is not None)
        seen = torch.full((2, 3, 4, 5), answer) if self._probabilities else None
        return torch.full((2, 4, 3, 8), answer), seen


def run(kernel: Kernel, bias: Tensor | None, touched: Any, mask: Any = None) -> Any:
    plain = Attention(QUERY, 5)
    return computed(plain, Attention(QUERY + 1, 5, bias), touched, mask, True, kernel)


def test_a_query_needs_no_mask() -> None:
    kernel = Kernel()
    output, _ = run(kernel, None, [None])
    assert not output.any()
    assert [mask for _, mask in kernel.given] == [None]
    assert bool((kernel.given[0][0] == 1).all())


def test_a_bias_hides_what_the_kernel_would_hide_without_a_mask() -> None:
    kernel = Kernel()
    run(kernel, torch.full((2, 1, 1, 5), -2.0), [None])
    ((_, mask),) = kernel.given
    seen = torch.ones(4, 5).tril().bool()
    assert mask is not None
    assert torch.equal(mask, torch.where(seen, -2.0, FLOOR).expand(2, 1, 4, 5))


def test_a_bias_is_added_to_masks_of_both_kinds() -> None:
    bias = torch.arange(5.0)[None, None, None]
    hidden = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    hidden[1, :, :, 0] = True
    for mask in (~hidden, torch.where(hidden, FLOOR, 0.0)):
        kernel = Kernel()
        run(kernel, bias, [None], mask)
        assert torch.equal(kernel.given[0][1], bias.masked_fill(hidden, FLOOR))  # type: ignore[arg-type]


def test_a_query_that_sees_nothing_sees_no_infinity() -> None:
    """In half precision the smallest number less a little is -inf, and a row of those NaN."""
    kernel = Kernel()
    mask = torch.full((2, 1, 4, 5), torch.finfo(torch.float16).min, dtype=torch.float16)
    run(kernel, torch.full((2, 1, 1, 5), -69.0, dtype=torch.float16), [None], mask)
    found = kernel.given[0][1]
    assert found is not None
    assert found.isfinite().all()


def test_who_is_not_touched_has_the_plain_result() -> None:
    rows = torch.tensor([[True], [False]]).expand(2, 4)
    places = torch.tensor([[False, False, False, True]] * 2)
    bias = torch.zeros(2, 1, 1, 5)
    kernel = Kernel()
    output, seen = run(kernel, bias, [rows, places])
    either = (rows | places).float()
    assert torch.equal(output, either[:, :, None, None].expand(2, 4, 3, 8))
    assert torch.equal(seen, either[:, None, :, None].expand(2, 3, 4, 5))
    assert [bool(query.any()) for query, _ in kernel.given] == [True, False]
    output, seen = run(Kernel(probabilities=False), bias, [rows, places])
    assert seen is None
    output, _ = run(Kernel(), bias, [rows, None])
    assert bool((output == 1).all())


ONE = torch.zeros(2, 1, dtype=torch.long)


class Cache:
    """So many columns read before, counted as a static cache does."""

    def __init__(self, count: int) -> None:
        self._count = torch.tensor(count)

    def get_seq_length(self) -> Tensor:
        return self._count


def test_keys_by_the_mask() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    read = Pass.of((ONE,), {"attention_mask": mask})
    assert read is not None
    assert read.positions.tolist() == [[2], [4]]
    assert read.keys(5).tolist() == [[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert read.keys(2).tolist() == [[1, 2], [3, 4]]  # of a window
    assert read.keys(6).tolist() == [[-1, -1, 0, 1, 2, -1], [0, 1, 2, 3, 4, -1]]  # room behind


def test_keys_by_the_last_position_where_the_mask_tells_nothing() -> None:
    given = {"position_ids": torch.tensor([[2], [4]]), "past_key_values": Cache(4)}
    for mask in (None, torch.ones(2, 1, 1, 6)):
        read = Pass.of((ONE,), given | {"attention_mask": mask})
        assert read is not None
        assert read.positions.tolist() == [[2], [4]]
        assert read.keys(5).tolist() == [[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]]
        assert read.keys(2).tolist() == [[1, 2], [3, 4]]
        assert read.keys(6).tolist() == [[-1, -1, 0, 1, 2, -1], [0, 1, 2, 3, 4, -1]]


def test_keys_of_rows_that_say_nothing() -> None:
    read = Pass.of((torch.zeros(2, 3, dtype=torch.long),), {"past_key_values": Cache(2)})
    assert read is not None
    assert read.positions.tolist() == [[2, 3, 4]] * 2
    assert read.keys(5).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert Pass.of((), {}) is None
