"""Products of few rows, turned: the same numbers, and nobody else's business."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from conflictkit.narrow import narrow

WIDTH, INNER = 512, 1024


def owner(rows: int = 8192, kind: torch.dtype = torch.float32) -> Any:
    weight = torch.zeros(1, dtype=kind).expand(rows, WIDTH)
    return SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight))


class Products(TorchDispatchMode):
    """The shapes of the left sides of all products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.seen.append(tuple(args[func is torch.ops.aten.addmm.default].shape))
        return func(*args, **(kwargs or {}))


def product(values: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> tuple[Tensor, bool]:
    """What `linear` says inside, and whether the weight stood left."""
    with narrow(owner(), rows), Products() as products:
        found = functional.linear(values, weight, bias)
    return found, products.seen == [tuple(weight.shape)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(2, 1), (4, 1), (1, 3), (2, 2), (3,)])
def test_few_rows_are_turned_to_the_same_numbers(shape: tuple[int, ...], biased: bool) -> None:
    weight, bias = torch.randn(INNER, WIDTH), torch.randn(INNER) if biased else None
    values = torch.randn(*shape, 2 * WIDTH)[..., ::2]
    found, turned = product(values, weight, bias, values[..., 0].numel())
    wanted = functional.linear(values.double(), weight.double())
    wanted = wanted if bias is None else wanted + bias.double()
    assert turned
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("passed", "rows", "wide"), [(1, 1, WIDTH), (5, 5, WIDTH), (2, 2, 128)])
def test_others_are_as_they_were(passed: int, rows: int, wide: int) -> None:
    weight, values = torch.randn(INNER, wide), torch.randn(rows, wide)
    found, turned = product(values, weight, None, passed)
    assert not turned
    assert torch.equal(found, functional.linear(values, weight))


def test_an_expert_without_a_token_gets_none() -> None:
    found, turned = product(torch.randn(0, WIDTH), torch.randn(INNER, WIDTH), None, 2)
    assert (found.shape, turned) == ((0, INNER), False)


def test_autocast_keeps_its_precision() -> None:
    values, weight, bias = torch.randn(2, WIDTH), torch.randn(INNER, WIDTH), torch.randn(INNER)
    with torch.autocast("cpu", torch.bfloat16):
        found = product(values, weight, bias, 2)[0]
        assert torch.equal(found, functional.linear(values, weight, bias))
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("model", [owner(4096), owner(kind=torch.bfloat16)])
def test_small_models_and_other_precisions_are_left_alone(model: Any) -> None:
    values, weight = torch.randn(2, WIDTH), torch.randn(INNER, WIDTH)
    with narrow(model, 2), Products() as products:
        functional.linear(values, weight)
    assert products.seen == [(2, WIDTH)]
