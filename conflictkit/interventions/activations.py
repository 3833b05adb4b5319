"""What every change to activations shares: who is edited where, and the handle.

Edits act through inert hooks (`_hooks`). So two threads never see each other's edits, a copy of an
attached model is not edited, and a model that nothing acts on computes as if it had no hooks.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import _hf, anatomy
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions._hooks import (
    ACTIVE,
    ATTENTION,
    HOOKS,
    INPUT,
    OUTPUT,
    WHOLE,
    Place,
    active,
    on_attention,
)
from conflictkit.interventions.attending import At, Attention, AttentionChange, Route, Spread
from conflictkit.interventions.places import WORDS as WORDS
from conflictkit.interventions.places import Pass, Positions, check_positions

Change = Callable[[Tensor, Spread], Tensor]
"""`[batch, new, width]` -> the same, changed; or itself, if there is nothing to do."""


@dataclass(frozen=True, eq=False)
class Behind:
    """A change to what a module puts out: behind a layer, to the residual stream."""

    change: Change


AnyChange = Change | AttentionChange | Behind


class Edit(Protocol):
    """A change to activations as data; `plan` makes it concrete for one model."""

    writes: ClassVar[bool]
    """Whether it changes anything, or only looks."""

    @property
    def positions(self) -> Positions:
        """Where in each row it acts."""
        ...

    def plan(self, body: anatomy.Anatomy) -> Mapping[Module, AnyChange]:
        """Output projection -> what to do with its input, attention module -> what to do with its
        attention, any module -> what to do with what it puts out. Raises before anything is
        attached.

        An edit may also have `check_lengths(lengths)`, which is shown the prompts' lengths."""
        ...


@dataclass(eq=False)
class Running:
    """An edit at work on one model.

    Attributes:
        changes: module -> what is done to its input, its attention or what it puts out.
        positions: as in `Edit`.
        prompt_lengths: `[rows]` tokens of each row's prompt, where positions are words.
        rows: `[batch]` for each row of the batch, whose of the prompts' values it takes; None: in
            order, repeated evenly (as beams and several answers per prompt repeat the rows).
        only: `[prompts]` bool, whose rows it acts on; None: all.
        on: whether it acts.
        count: positions changed so far.
        idle: the newest pass met it with nothing to do (factors of 1).
        route: how it reaches the model's attention; None: it does not.
    """

    changes: Mapping[Module, AnyChange]
    positions: Positions = None
    prompt_lengths: Tensor | None = None
    rows: Tensor | None = None
    only: Tensor | None = None
    on: bool = True
    count: Tensor | int = 0
    idle: bool = False
    route: Route | None = None
    _counting: Module | None = None

    def acts_on(self, module: Module, kind: str) -> bool:
        """Whether it changes the input, or the output, of `module`."""
        return module in self.changes and _kind(self.changes[module]) == kind

    def apply(self, module: Module, values: Tensor, where: Pass | None) -> Tensor:
        """The changed input, or output, of `module`."""
        change: Any = self.changes[module]
        change = change.change if isinstance(change, Behind) else change
        changed = change(values, partial(self.spread, batch=len(values)))
        self.idle = changed is values
        if self.idle:
            return values
        mine = self._mine(values, where)
        if mine is not None:
            changed = torch.where(mine.unsqueeze(-1), changed, values)
        rows = getattr(change, "rows", None)
        self._note(module, values, mine if rows is None else self._among(rows, values, mine))
        return changed

    def attend(
        self, module: Module, given: Attention, where: Pass | None
    ) -> tuple[Attention, Tensor | None]:
        """The changed attention of `module`, and `[batch, new]` where it is (None: everywhere)."""
        change: Any = self.changes[module]
        values = given.query.transpose(1, 2)
        spread = partial(self.spread, batch=len(values))
        mine = self._mine(values, where)
        changed = change(given, At(mine, where, self.prompt_lengths, spread))
        self.idle = changed is given
        if change.rows is not None:
            mine = self._among(change.rows, values, mine)
        if not self.idle:
            self._note(module, values, mine)
        return changed, mine

    def _among(self, rows: Tensor, values: Tensor, mine: Tensor | None) -> Tensor:
        """`[batch, new]` bool: those of `mine` that stand in these of the prompts' `rows`."""
        those = self.spread(rows.to(values.device), len(values))[:, None]
        return those.expand(values.shape[:2]) if mine is None else those & mine

    def _note(self, module: Module, values: Tensor, mine: Tensor | None) -> None:
        self._counting = self._counting or module  # one of the modules: each reads every position
        if module is self._counting:
            # No transfer to the host here: it would wait for the device at every step.
            new = len(values) * values.shape[1] if mine is None else mine.sum()
            self.count = self.count + new  # not in place: a fork goes on from the same number

    @property
    def reads_places(self) -> bool:
        """Whether it has to know which tokens a pass reads."""
        several = self.changes.values()
        keys = any(isinstance(one, AttentionChange) and one.reads_keys for one in several)
        return keys or self.positions is not None

    def _mine(self, values: Tensor, where: Pass | None) -> Tensor | None:
        """`[batch, new]` bool, the positions it acts on; None: all of them."""
        here = self._here(values, where)
        return here if self.only is None else self._among(self.only, values, here)

    def _here(self, values: Tensor, where: Pass | None) -> Tensor | None:
        if self.positions is None:
            return None
        if where is None or where.positions.shape != values.shape[:2]:
            raise InvalidParameterError(
                f"positions={self.positions!r}: this forward does not say which positions it reads"
            )
        places = where.positions.to(values.device)
        if isinstance(self.positions, tuple):
            start, stop = self.positions
            return (places >= start) & (places < stop)
        if self.prompt_lengths is None:
            raise InvalidParameterError(f"positions='{self.positions}' needs prompt_lengths")
        ends = self.spread(self.prompt_lengths.to(places.device), len(places))[:, None]
        if self.positions == "prompt":
            return (places >= 0) & (places < ends)
        if self.positions == "decoding":
            return places >= ends - 1
        return places == ends - 1 if self.positions == "last" else places >= ends

    def spread(self, values: Tensor, batch: int) -> Tensor:
        """`[rows, ...]` values of the prompts for the `batch` rows of a pass.

        Raises:
            InvalidParameterError: the batch is no multiple of the rows.
        """
        if self.rows is not None:
            return values[self.rows.to(values.device)]
        if batch % len(values):
            raise InvalidParameterError(f"an edit of {len(values)} rows met a batch of {batch}")
        again = batch // len(values)
        return values if again == 1 else values.repeat_interleave(again, 0)


def _kind(change: AnyChange) -> str:
    """Which hook lets it act; none, if it acts through the model's attention."""
    if isinstance(change, AttentionChange):
        return ATTENTION
    return OUTPUT if isinstance(change, Behind) else INPUT


def _let_go(places: Sequence[Place], route: Route) -> None:
    HOOKS.remove(places)
    route.close()


class Edits:
    """Edits of one model whose hooks are in place; they act inside `at_work`.

    Args:
        model: a transformers model.
        edits: what to do, in order.
        prompt_lengths: tokens of each row's prompt; needed where positions are words.
        only: for each edit, `[prompts]` bool, whose rows it acts on, or None: all.

    Raises:
        UnsupportedError: the model's parts cannot be found; its attention cannot be edited.
        InvalidParameterError: an edit does not fit the model. No hook is left then.
    """

    def __init__(
        self,
        model: Any,
        edits: Sequence[Edit],
        *,
        prompt_lengths: Sequence[int] | Tensor | None = None,
        only: Sequence[Tensor | None] | None = None,
    ) -> None:
        body = anatomy.find(model)
        whole = _hf.unwrapped(model).get_decoder()  # PEFT goes round the hooks of the model itself
        lengths = None if prompt_lengths is None else torch.as_tensor(prompt_lengths)
        whose = only or [None] * len(edits)
        self.running = [
            Running(edit.plan(body), check_positions(edit.positions, lengths), lengths, only=mine)
            for edit, mine in zip(edits, whose, strict=True)
        ]
        for edit in edits:
            if (check := getattr(edit, "check_lengths", None)) is not None:
                check(lengths)
        changes = [pair for one in self.running for pair in one.changes.items()]
        found = dict.fromkeys((module, _kind(change)) for module, change in changes)
        places: list[Place] = [(whole, WHOLE), *(one for one in found if one[1])]
        if _hf.is_compiled(model):
            torch.compiler.reset()  # what was compiled before does not look for new hooks
        route = Route(module for module, kind in found if not kind)
        route.open(on_attention)
        for one in self.running:
            one.route = route
        try:
            HOOKS.add(places)
        except BaseException:
            route.close()
            raise
        self._hooks = weakref.finalize(self, _let_go, places, route)
        self._writes = any(edit.writes for edit in edits)
        self._parent: Edits | None = None

    def at_work(self) -> AbstractContextManager[None]:
        """Let them act on what this context computes."""
        return active(self.running)

    @property
    def attends(self) -> bool:
        """Whether some of them change attention itself."""
        several = (change for one in self.running for change in one.changes.values())
        return any(isinstance(change, AttentionChange) for change in several)

    def owns(self, one: object) -> bool:
        """Whether an edit at work is one of these."""
        return any(one is mine for mine in self.running)

    def select(self, index: Tensor) -> None:
        """Go on with the rows `index` of the batch."""
        for one in self.running:
            one.rows = index if one.rows is None else one.rows[index.to(one.rows.device)]

    def fork(self) -> Self:
        """The same edits for a stream that goes its own way; its count begins with this one's."""
        twin = copy.copy(self)
        twin.running = [replace(one) for one in self.running]
        twin._parent = self  # whose end takes the hooks away
        return twin

    @property
    def edits(self) -> int:
        """Positions changed so far (rows times positions; waits for the device)."""
        return sum(int(one.count) for one in self.running)


class Handle(Edits):
    """Edits that act at once, in the thread (context) that attached them, until detached.

    Detaching twice is harmless, handles may go in any order, and a handle that is thrown away
    detaches itself. A thread started meanwhile is not edited, unless it runs in
    `contextvars.copy_context()`. Arguments and errors: see `Edits`.
    """

    def __init__(self, model: Any, edits: Sequence[Edit], **options: Any) -> None:
        super().__init__(model, edits, **options)
        self._mine = tuple(map(weakref.ref, self.running))
        ACTIVE.set((*ACTIVE.get(), *self._mine))

    @property
    def attached(self) -> bool:
        """Whether it still acts."""
        return self._hooks.alive

    def detach(self) -> None:
        """Take the edit back; the model then computes as before, bit for bit."""
        for one in self.running:
            one.on = False  # also where this handle's thread cannot reach
        ACTIVE.set(tuple(one for one in ACTIVE.get() if one not in self._mine))
        self._hooks()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()
        idle = all(one.idle for one in self.running)
        if kind is None and self._writes and not idle and not self.edits:
            warnings.warn(
                "an edit was attached and changed nothing: no forward of this model ran in the "
                "thread that attached it, or none reached its positions",
                stacklevel=2,
            )
