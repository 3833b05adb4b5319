"""What a token costs with two streams, beside transformers' own ways, in paired runs.

Random models answer behind random contexts of several lengths, in several batch sizes. Per cell,
rounds in which every way has its turn (A B C ..., A B C ...): a way's figure is relative to the
plain run of its own round. Prompts are read once; the rows of a batch are copies of one.

Run: python experiments/speed/generate.py [--shapes 0.15B 0.5B] [--roads ...] [--seconds 40]
Writes results/generate.json, a cell at a time: a run that was cut short goes on.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peers import DEFAULT, WAYS, Timed, left_out
from store import OUT, Store, copy_speed, ratios, spread
from worlds import SHAPES, World, weight_bytes

SEVERAL = 3
"""Rounds of a way that is slow and known to be."""


def options() -> argparse.Namespace:
    """What to measure, and how long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cuda = torch.cuda.is_available()
    shapes = ["0.15B", "0.5B", *(["8B"] if cuda else [])]
    parser.add_argument("--shapes", nargs="+", default=shapes, choices=list(SHAPES))
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--roads", nargs="+", default=list(DEFAULT), choices=list(WAYS))
    parser.add_argument("--tokens", type=int, default=12, help="behind the prompts, per row")
    parser.add_argument("--seconds", type=float, default=35, help="per cell, then no new round")
    parser.add_argument("--least", type=int, default=3, help="rounds of a cell at least")
    parser.add_argument("--most", type=int, default=9, help="rounds of a cell at most")
    parser.add_argument(
        "--memory", type=float, default=100 if cuda else 8, help="GB that a cell may need"
    )
    parser.add_argument(
        "--twice", type=int, default=2048, help="longest context that is also read plainly"
    )
    parser.add_argument("--copied", type=int, default=2**26, help="elements that are copied")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


def main() -> None:
    """Measure what is not measured yet."""
    asked = options()
    names = ("tokens", "seconds", "least", "most")
    settings = {name: getattr(asked, name) for name in names}
    store = Store(asked.out / "generate.json", settings)
    for name in asked.shapes:
        _shape(name, asked, store)


def _shape(name: str, asked: argparse.Namespace, store: Store) -> None:
    shape, device = SHAPES[name], asked.device
    model = None  # made where some cell needs it
    for context in asked.contexts:
        wanted = []
        for batch in asked.batches:
            key = f"{device} {name} {context} {batch}"
            why = _too_large(name, context, batch, asked)
            if why is not None:
                store.put(key, {**_place(name, device, context, batch), "skipped": why})
                print(f"{key}: skipped: {why}", flush=True)
                continue
            roads = _roads(store.cells[key], asked.roads) if store.has(key) else asked.roads
            if roads:
                wanted.append((key, batch, roads))
        read = f"{device} {name} {context} prefill"
        if not wanted and store.has(read):
            continue
        model = shape.model(device) if model is None else model
        world = World.make(model, device, context)
        _prefill(world, read, context, asked, store, _place(name, device, context, 1))
        for key, batch, roads in wanted:
            cell = _cell(world, key, context, batch, roads, asked)
            cell |= {"weights": weight_bytes(model), "parameters": _parameters(model)}
            store.put(key, {**_place(name, device, context, batch), **cell})
        del world
        gc.collect()


def _place(name: str, device: str, context: int, batch: int) -> dict[str, Any]:
    return {"device": device, "shape": name, "context": context, "batch": batch}


def _parameters(model: Any) -> int:
    return sum(one.numel() for one in model.parameters())


def _roads(cell: dict[str, Any], roads: Sequence[str]) -> list[str]:
    """What to measure where a finished cell lacks a way that is asked for: all of it, together."""
    there = {*cell.get("ways", ()), *cell.get("left_out", ())}
    return [way for way in WAYS if way in there or way in roads] if set(roads) - there else []


def _too_large(name: str, context: int, batch: int, asked: argparse.Namespace) -> str | None:
    shape = SHAPES[name]
    if batch * context > shape.most:
        return f"{batch} x {context} tokens: more than the {shape.most} that there is time for"
    rows = 2 * batch if "double" in asked.roads and batch >= 16 else batch
    weights = shape.dtype.itemsize * shape.layers * (
        3 * shape.hidden * shape.inner + 3 * shape.hidden**2
    ) + 2 * shape.dtype.itemsize * shape.vocab * shape.hidden  # fmt: skip
    need = (weights + 1.2 * (rows + 1) * (context + 256) * shape.row_bytes) / 1e9
    return f"needs {need:.1f} GB of {asked.memory:g}" if need > asked.memory else None


def _prefill(
    world: World,
    key: str,
    context: int,
    asked: argparse.Namespace,
    store: Store,
    place: dict[str, Any],
) -> None:
    """Read the prompts; how long that takes, in turn with reading the context alone."""
    if store.has(key):
        world.read()
        return
    rounds = 1 if context > asked.twice else 3 if context <= 512 else 2
    times: dict[str, list[float]] = {"plain": [], "context": [], "memory": []}
    for number in range(rounds):
        print(f"{key}: {number + 1} of {rounds}", flush=True)
        apart = context <= asked.twice
        if apart:
            times["plain"].append(world.read_plainly())
        taken = world.read()
        if not apart:  # the same reading, so that it need not be done twice
            times["plain"].append(taken["context"])
        for name, one in taken.items():
            times[name].append(one)
    both = [a + b for a, b in zip(times["context"], times["memory"], strict=True)]
    store.put(
        key,
        {
            **place,
            "prefill": {name: spread(values) for name, values in times.items()},
            "over_plain": ratios(both, times["plain"]),
            "plain_is_the_context_stream": context > asked.twice,
        },
    )


def _cell(
    world: World,
    key: str,
    context: int,
    batch: int,
    roads: Sequence[str],
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """All ways at one length and batch size."""
    skipped = {way: left_out(way, batch, context) for way in roads}
    ways = ["plain", *(w for w in roads if skipped[w] is None and w != "plain")]
    copied = copy_speed(asked.device, asked.copied)
    for way in ways:
        if way != "reread":
            WAYS[way](world, batch, 1)
    runs: dict[str, list[Timed]] = {way: [] for way in ways}
    began, number = time.perf_counter(), 0
    while number < asked.most:
        if number >= asked.least and time.perf_counter() - began > asked.seconds:
            break
        # Each round another way begins, so that none always follows the same one.
        turn = [way for way in ways if way != "reread" or number < SEVERAL]
        turn = turn[number % len(turn) :] + turn[: number % len(turn)]
        for way in turn:
            runs[way].append(WAYS[way](world, batch, asked.tokens))
        number += 1
    figures = {way: _figures(runs, way, batch, world, copied) for way in ways}
    said = ", ".join(f"{w} {f['over_plain']['median']:.2f}" for w, f in figures.items())
    print(f"{key}: {number} rounds: {said}", flush=True)
    return {
        "rounds": number,
        "tokens": asked.tokens,
        "copy_gigabytes_per_second": copied,
        "ways": figures,
        "left_out": {way: why for way, why in skipped.items() if why is not None},
    }


def _figures(
    runs: dict[str, list[Timed]], way: str, batch: int, world: World, copied: float
) -> dict[str, Any]:
    """What a cell says of one way."""
    mine, plain = runs[way], runs["plain"]
    each = [one.seconds / one.tokens for one in mine]
    base = [one.seconds / one.tokens for one in plain[: len(each)]]
    weights = weight_bytes(world.model)
    speeds = [weights * one.passes / one.seconds / 1e9 for one in mine]
    last = mine[-1]
    found = {
        "seconds_per_token": spread(each),
        "over_plain": ratios(each, base),
        "passes_per_token": sum(one.passes for one in mine) / sum(one.tokens for one in mine),
        "gigabytes_per_second": spread(speeds),
        "share_of_copy": spread([one / copied for one in speeds]),
        "cache_over_plain": last.cache / plain[-1].cache,
        "accepted_per_pass": last.accepted / batch / last.passes,
        "seconds": each,
    }
    if last.road:
        found["road"] = last.road
    rivals = {"packed": "sequential", "drafted": "packed", "padded": "sequential"}
    rival = rivals.get(way, "sequential" if way == "compiled" else "")
    if way == "lookup":
        rival = "plain"
    if rival in runs:
        found[f"same_tokens_as_{rival}"] = last.ids == runs[rival][-1].ids
    return found


if __name__ == "__main__":
    main()
