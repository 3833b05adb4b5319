"""A batch in which every row has a controller of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from conflictkit.controller import Controller
from conflictkit.errors import InvalidParameterError
from conflictkit.types import Mix, State, Step


@dataclass(frozen=True)
class PerRow:
    """A batch in which every row has a control of its own.

    Attributes:
        controls: the different controllers.
        rows: for each row of the batch, which of them.
    """

    controls: tuple[Controller, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, controls: Sequence[Controller]) -> Controller | PerRow:
        """One controller per row; equal ones are shared, and a single one stands for itself."""
        distinct = tuple(dict.fromkeys(controls))
        if len(distinct) == 1:
            return distinct[0]
        return cls(distinct, tuple(distinct.index(control) for control in controls))

    @property
    def name(self) -> str:
        """Names of all methods in the batch."""
        return "+".join(dict.fromkeys(control.name for control in self.controls))

    @property
    def needs(self) -> tuple[str, ...]:
        """Streams of all controllers, the context stream first."""
        names = ["context", *(name for control in self.controls for name in control.needs)]
        return tuple(dict.fromkeys(names))

    def initial(self, batch: int, device: torch.device | str = "cpu") -> State:
        """Every controller's state for every row under `<number>.*`, and `control` `[batch]`."""
        if batch % len(self.rows):
            raise InvalidParameterError(f"{len(self.rows)} policies for {batch} rows")
        which = torch.tensor(self.rows, device=device).repeat_interleave(batch // len(self.rows))
        state: dict[str, Tensor] = {"control": which}
        for number, control in enumerate(self.controls):
            state |= {f"{number}.{k}": v for k, v in control.initial(batch, device).items()}
        return state

    def __call__(self, step: Step, state: State) -> Mix:
        """Each row's weights from its own controller; scores that a row's controller does not
        know are NaN there, which a trace leaves out."""
        which = state["control"]
        after: dict[str, Tensor] = {"control": which}
        total: Mix | None = None
        for number, control in enumerate(self.controls):
            own = {
                key.removeprefix(f"{number}."): values
                for key, values in state.items()
                if key.startswith(f"{number}.")
            }
            mix = control(step, own)
            after |= {f"{number}.{key}": values for key, values in mix.state.items()}
            total = mix if total is None else _merged(which == number, mix, total, step)
            if number == 0:
                total = replace(mix, scores=_only(which == 0, mix.scores))
        if total is None:
            raise InvalidParameterError("a batch needs at least one controller")
        return replace(total, state=after)


def _merged(mine: Tensor, mix: Mix, others: Mix, step: Step) -> Mix:
    """`mix` in the rows `mine` (`[batch]` bool), `others` elsewhere."""
    column = mine.unsqueeze(-1)

    def either(own: Tensor | None, other: Tensor | None, rows: Tensor, idle: Callable) -> Any:
        """`own` in the rows `mine`, `other` elsewhere, `idle()` for the one that is None."""
        if own is None and other is None:
            return None
        least = idle()
        return torch.where(rows, least if own is None else own, least if other is None else other)

    usual = step.logprobs.get("memory", step.logprobs[step.answering])
    scores = dict(others.scores)
    for name, values in _only(mine, mix.scores).items():
        scores[name] = torch.where(mine, values, scores[name]) if name in scores else values
    return Mix(
        torch.where(column, mix.context_weight, others.context_weight),
        torch.where(column, mix.memory_weight, others.memory_weight),
        either(mix.support, others.support, column, lambda: torch.ones_like(step.allowed)),
        either(mix.bias, others.bias, column, lambda: torch.zeros_like(step.logits)),
        either(mix.edited, others.edited, mine, lambda: torch.zeros_like(mine)),
        either(mix.reference, others.reference, column, lambda: usual),
        scores,
    )


def _only(mine: Tensor, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.masked_fill(~mine, math.nan) for name, values in scores.items()}
