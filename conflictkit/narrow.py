"""Products of few rows with a large weight, on a CPU.

`torch.nn.functional.linear` hands a BLAS the product `x W^T`; with one row that is a matrix-vector
product at the speed of the memory, with two to four it may be several times slower on a CPU than
the same numbers as `(W x^T)^T` (MKL on AMD: 6 against 16 GB/s). Streams that ride in one pass are
just so many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FEWEST, MOST = 2, 4
"""Rows for which the turned product pays."""
_LEAST = 2**18
"""Elements of a weight from which on it does."""


def narrow(model: Any, rows: int) -> AbstractContextManager[Any]:
    """Turn the large products of a pass of a float32 `model` over `rows` tokens on a CPU, where
    that pays; the same numbers up to rounding."""
    weight = model.get_input_embeddings().weight
    pays = FEWEST <= rows <= MOST and weight.device.type == "cpu"
    large = weight.numel() >= 16 * _LEAST and weight.dtype == torch.float32
    return _Turned() if pays and large else nullcontext()


class _Turned(TorchFunctionMode):
    """Inside it, `linear` of few rows with a large weight is computed from the other side."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See `torch.overrides`."""
        if func is functional.linear and not kwargs:
            values, weight, *bias = args
            rows = values.numel() // max(values.shape[-1], 1)
            plain = type(values) is Tensor and type(weight) in (Tensor, torch.nn.Parameter)
            large = weight.dim() == 2 and weight.numel() >= _LEAST
            if plain and large and 0 < rows <= MOST and not torch.is_autocast_enabled("cpu"):
                made = torch.mm(weight, values.reshape(rows, -1).t()).t()
                if bias and bias[0] is not None:
                    made = made + bias[0]
                return made.reshape(*values.shape[:-1], -1).contiguous()
        return func(*args, **kwargs or {})
