"""Inert hooks: they act where the current context (`contextvars`) has attached an edit.

A hook belongs to no edit: it asks the context for edits of its module and finds none unless one was
attached there. The hooks of a model are shared by all who edit it, and gone with the last of them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit._hf_attention import PACK, Attend
from conflictkit._hf_packed import RIDERS, Share, split
from conflictkit.errors import UnsupportedError
from conflictkit.interventions.attending import Attention, computed
from conflictkit.interventions.places import Pass

ACTIVE: ContextVar[tuple[weakref.ref[Any], ...]] = ContextVar("edits", default=())
"""The edits (`activations.Running`) that this context has attached, in order."""
_WHERE: ContextVar[Pass | tuple[Pass | None, ...] | None] = ContextVar("where", default=None)

INPUT, OUTPUT, WHOLE, ATTENTION = "input", "output", "whole", ""
"""A hook before a module, one behind it, one before a whole decoder; none: a way through the
model's attention."""


def _running() -> list[Any]:
    return [one for reference in ACTIVE.get() if (one := reference()) is not None]


def any_at_work() -> bool:
    """Whether some edit is attached in this context."""
    return any(one.on for one in _running())


def counts() -> Callable[[], None]:
    """What takes the counts of the edits at work back to where they are now."""
    before = [(one, one.count) for one in _running()]

    def restore() -> None:
        for one, count in before:
            one.count = count

    return restore


def _applied(module: Module, kind: str, values: Tensor) -> Tensor:
    """What the edits of a module's input or output make of values: of each stream's rows by
    themselves, if several ride in a pass."""
    mine = [one for one in _running() if one.on and one.acts_on(module, kind)]
    riders, where = RIDERS.get(), _WHERE.get()
    if not mine:
        return values
    if riders is None:
        for running in mine:
            values = running.apply(module, values, where)
        return values
    made = []
    pieces = split(values, riders)
    for number, piece in enumerate(pieces):
        there = where[number] if isinstance(where, tuple) else None
        for running in mine:
            if _concerns(riders, number, running):
                piece = running.apply(module, piece, there)
        made.append(piece)
    same = all(one is other for one, other in zip(made, pieces, strict=True))
    return values if same else torch.cat(made)


def _concerns(riders: tuple[Share, ...], number: int, running: Any) -> bool:
    """Whether an edit acts on a rider's rows: its owner's, or everybody's if no rider owns it."""
    owners = [one.owner is not None and one.owner.owns(running) for one in riders]
    return owners[number] or not any(owners)


def _on_input(module: Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    changed = _applied(module, INPUT, arguments[0])
    return None if changed is arguments[0] else (changed, *arguments[1:])


def _on_output(module: Module, _: tuple[Any, ...], out: Any) -> Any:
    given = out[0] if isinstance(out, tuple) else out
    changed = _applied(module, OUTPUT, given)
    if changed is given:
        return None
    return (changed, *out[1:]) if isinstance(out, tuple) else changed


def _on_forward(module: Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    running = _running()
    for one in running:
        if one.route is not None and one.on:
            one.route.check()
    riders = RIDERS.get()
    if not any(one.reads_places for one in running):
        _WHERE.set(None)
    elif riders is None:
        _WHERE.set(Pass.of(arguments, named))
    else:
        shares = [(one.ids, one.mask) for one in riders]
        _WHERE.set(tuple(Pass.of((ids,), {"attention_mask": mask}) for ids, mask in shares))


def on_attention(
    module: Module, query: Tensor, keys: int, mask: Tensor | None, causal: bool, attend: Attend
) -> Any:
    """What an edited model's attention interface calls instead of attending.

    Raises:
        UnsupportedError: an edit of attention where several streams share one cache.
    """
    plain = given = Attention(query, keys)
    touched: list[Tensor | None] = []
    riders, where, pack = RIDERS.get(), _WHERE.get(), PACK.get()
    for running in _running():
        if running.on and running.acts_on(module, ATTENTION):
            here = where
            if riders is not None:
                if pack is None:
                    raise UnsupportedError(
                        "attention cannot be edited where streams are padded into one cache: pass "
                        "road='sequential'"
                    )
                if not _concerns(riders, pack.part, running):
                    continue
                here = where[pack.part] if isinstance(where, tuple) else None
            before = given
            given, mine = running.attend(module, before, here)
            touched += [] if given is before else [mine]
    return computed(plain, given, touched, mask, causal, attend)


Place = tuple[Module, str]
"""A module and which of the hooks it is about."""


class _Hooks:
    """The hooks of all models, counted."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept: weakref.WeakKeyDictionary[Module, dict[str, tuple[int, Any]]] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, places: Sequence[Place]) -> None:
        """Put a hook on each module; all of them or none."""
        done: list[Place] = []
        with self._lock:
            try:
                for module, kind in places:
                    users, hook = self._kept.get(module, {}).get(kind, (0, None))
                    if hook is None:
                        hook = _register(module, kind)
                    self._kept.setdefault(module, {})[kind] = (users + 1, hook)
                    done.append((module, kind))
            except BaseException:
                self.remove(done)
                raise

    def remove(self, places: Sequence[Place]) -> None:
        """Take them back, each once."""
        with self._lock:
            for module, kind in places:
                users, hook = self._kept[module].pop(kind)
                if users > 1:
                    self._kept[module][kind] = (users - 1, hook)
                else:
                    hook.remove()
                if not self._kept[module]:
                    del self._kept[module]


def _register(module: Module, kind: str) -> Any:
    if kind == WHOLE:
        return module.register_forward_pre_hook(_on_forward, with_kwargs=True)
    if kind == OUTPUT:
        return module.register_forward_hook(_on_output)
    return module.register_forward_pre_hook(_on_input)


HOOKS = _Hooks()


@contextmanager
def active(running: Sequence[Any]) -> Iterator[None]:
    """Let edits whose hooks are there act on what this context computes."""
    token = ACTIVE.set((*ACTIVE.get(), *map(weakref.ref, running)))
    try:
        yield
    finally:
        ACTIVE.reset(token)
