"""Turns of the threads that share a model.

Transformers looks up in a model's config, at every call, how attention is computed. Passes that
leave the config as it is may run side by side; whoever changes it for a while works alone.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

_TURNS = threading.Condition()
_passes: Counter[int] = Counter()
_writers: dict[int, int] = {}
"""By id of a config: passes at work, and the thread that works alone."""


@contextmanager
def to_pass(keys: Collection[int]) -> Iterator[None]:
    """A pass that others may run beside, but nobody who changes the configs with these ids."""
    me = threading.get_ident()
    with _TURNS:
        _TURNS.wait_for(lambda: all(_writers.get(key, me) == me for key in keys))
        _passes.update(list(keys))
    try:
        yield
    finally:
        with _TURNS:
            _passes.subtract(list(keys))
            for key in keys:
                if not _passes[key]:
                    del _passes[key]
            _TURNS.notify_all()


@contextmanager
def to_write(keys: Collection[int]) -> Iterator[None]:
    """Work alone with the configs with these ids; the same thread may do so again inside."""
    me = threading.get_ident()

    def free() -> bool:
        return all(not _passes[key] and _writers.get(key, me) == me for key in keys)

    with _TURNS:
        _TURNS.wait_for(free)
        mine = [key for key in keys if key not in _writers]
        _writers.update(dict.fromkeys(mine, me))
    try:
        yield
    finally:
        with _TURNS:
            for key in mine:
                del _writers[key]
            _TURNS.notify_all()
