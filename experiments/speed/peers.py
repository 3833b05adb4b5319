"""Ways to write the same number of tokens behind prompts that have been read.

Every way starts from caches of the same reading. transformers' `generate` must be given at least
one token to read, so its caches lack the prompt's last one: n tokens are n passes there, and ours
writes n + 1, of which the first needs no pass. The clock runs from the beginning of the first pass,
so that what a call prepares before it is counted for nobody.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from worlds import CONTROL, World, cache_bytes, now, watched

from conflictkit import engine
from conflictkit._hf_compiled import Steps
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper

GUIDANCE = 1.5
LOOKUP = 10
STEPS = Steps()
_WARM: set[tuple[int, ...]] = set()
"""Worlds and sizes whose graph has been made."""
REREAD = 2
"""Tokens that the loop without a cache writes."""


@dataclass(frozen=True)
class Timed:
    """One run.

    Attributes:
        seconds, tokens, passes: behind the prompts; tokens of each row.
        cache: bytes of the caches at the end.
        ids: what the first row says.
        accepted: tokens that were guessed and chosen, of all rows.
        road: the one that was taken, if it is one of ours.
    """

    seconds: float
    tokens: int
    passes: int
    cache: int = 0
    ids: list[int] = field(default_factory=list)
    accepted: int = 0
    road: str = ""


Way = Callable[[World, int, int], Timed]


def ours(world: World, batch: int, tokens: int, **options: Any) -> Timed:
    """AdaCAD over both streams, as `Model.ask` runs it without a trace."""
    streams = world.rows(batch)
    run = Stepper(
        streams, CONTROL, Decoding(max_new_tokens=tokens + 1), end_ids=(), decode=str, top=None,
        **options,
    )  # fmt: skip
    with watched(world.model, world.device) as watch:
        made = engine.generate(run)
        taken = watch.seconds()
    kept = [one.cache for one in streams.values() if one.cache is not None]
    stats, ids = made[0][0].stats, list(made[0][0].ids)
    return Timed(
        taken, tokens, watch.passes, cache_bytes(kept), ids, stats.accepted, stats.road
    )  # fmt: skip


def compiled(world: World, batch: int, tokens: int) -> Timed:
    """The same by the compiled step; the clock runs from the second pass on, and the graph is made
    in a run of its own before. Passes are the run's own count: a graph has no room for hooks."""
    key = (id(world.model), batch, world.prompts["context"].shape[1], tokens)
    if key not in _WARM:
        _WARM.add(key)
        compiled(world, batch, tokens)
    streams = world.rows(batch)
    run = Stepper(
        streams, CONTROL, Decoding(max_new_tokens=tokens + 1), end_ids=(), decode=str, top=None,
        steps=STEPS,
    )  # fmt: skip
    events, ids, before = engine.stream(run), [], 0
    with watched(world.model, world.device, hooks=False) as watch:
        for number in range(batch * (tokens + 1)):
            ids.append(next(events).token)
            if number == 2 * batch - 1:  # the first pass copied the caches to their places
                watch.began, before = now(world.device), run.stats().passes
        taken = watch.seconds()
    passes, road, others = run.stats().passes - before, run.stats().road, STEPS.bytes
    events.close()
    del events, run
    gc.collect()  # the run's step comes back
    return Timed(taken, tokens - 1, passes, STEPS.bytes - others, ids[::batch], 0, road)


def plain(world: World, batch: int, tokens: int, **options: Any) -> Timed:
    """transformers' `generate`, greedily, with the context alone."""
    cache = world.cache("context", batch)
    ids = world.prompts["context"].expand(batch, -1)
    with watched(world.model, world.device) as watch:
        made = world.model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=False,
            max_new_tokens=tokens, **options,
        )  # fmt: skip
        taken = watch.seconds()
    said = made[0, ids.shape[1] :].tolist()
    return Timed(taken, len(said), watch.passes, cache_bytes([cache]), said)


def double(world: World, batch: int, tokens: int) -> Timed:
    """As many rows again."""
    return plain(world, 2 * batch, tokens)


def guidance(world: World, batch: int, tokens: int) -> Timed:
    """What `generate(guidance_scale=1.5, negative_prompt_ids=question)` does: its processor, as it
    stands behind the question, which `generate` itself would read again each time."""
    question = world.prompts["memory"][:, :-1].expand(batch, -1)
    cache = world.cache("memory", batch)
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        GUIDANCE, world.model, unconditional_ids=question
    )
    processor.unconditional_context |= {
        "attention_mask": torch.ones_like(question), "past_key_values": cache, "first_pass": False,
    }  # fmt: skip
    with torch.no_grad():
        made = plain(world, batch, tokens, logits_processor=LogitsProcessorList([processor]))
    whole = made.cache + cache_bytes([cache])
    return Timed(made.seconds, made.tokens, made.passes, whole, made.ids)


def lookup(world: World, batch: int, tokens: int) -> Timed:
    """transformers' own drafts: prompt lookup, plain."""
    with _first_pass_cut(world.model):
        made = plain(world, batch, tokens, prompt_lookup_num_tokens=LOOKUP)
    guessed = made.tokens - made.passes
    return Timed(made.seconds, made.tokens, made.passes, made.cache, made.ids, guessed)


@contextmanager
def _first_pass_cut(model: Any) -> Iterator[None]:
    """transformers' assisted decoding reads a prompt from its beginning even where a cache is
    given: let it read what the cache lacks."""
    prepare = model.prepare_inputs_for_generation

    @wraps(prepare)  # transformers looks at its signature
    def cut(input_ids: Any, next_sequence_length: int | None = None, **rest: Any) -> Any:
        if next_sequence_length is None:
            next_sequence_length = input_ids.shape[1] - rest["past_key_values"].get_seq_length()
        return prepare(input_ids, next_sequence_length=next_sequence_length, **rest)

    model.prepare_inputs_for_generation = cut
    try:
        yield
    finally:
        del model.prepare_inputs_for_generation


def reread(world: World, batch: int, tokens: int) -> Timed:
    """Two streams without a cache: everything is read again for each token (CAD's weights)."""
    texts = {name: ids.expand(batch, -1) for name, ids in world.prompts.items()}
    said = []
    with torch.no_grad(), watched(world.model, world.device) as watch:
        for _ in range(min(tokens, REREAD)):
            p, q = (
                world.model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].log_softmax(-1)
                for ids in texts.values()
            )
            newest = ((1 + GUIDANCE) * p - GUIDANCE * q).argmax(-1, keepdim=True)
            texts = {name: torch.cat([ids, newest], 1) for name, ids in texts.items()}
            said.append(int(newest[0]))
        taken = watch.seconds()
    return Timed(taken, len(said), watch.passes, 0, said)


WAYS: dict[str, Way] = {
    "plain": plain,
    "sequential": partial(ours, road="sequential"),
    "packed": partial(ours, road="packed"),
    "drafted": partial(ours, road="packed", drafts=None),
    "guidance": guidance,
    "lookup": lookup,
    "double": double,
    "reread": reread,
    "padded": partial(ours, road="padded"),
    "compiled": compiled,
}
DEFAULT = tuple(name for name in WAYS if name != "padded")
LABELS = {
    "plain": "`generate`, one stream",
    "sequential": "AdaCAD, `sequential`",
    "packed": "AdaCAD, `packed`",
    "drafted": "AdaCAD, `packed`, drafts",
    "padded": "AdaCAD, `padded`",
    "compiled": "AdaCAD, compiled",
    "guidance": "`generate`, guidance scale",
    "lookup": "`generate`, prompt lookup",
    "double": "`generate`, twice the rows",
    "reread": "two streams, no cache",
}


def left_out(way: str, batch: int, context: int) -> str | None:
    """Why a way is not taken; None: it is."""
    if way == "compiled" and (batch > 1 or context > 2048):
        return "a graph for every size takes long to make: one row, up to 2,048 tokens"
    if way == "lookup" and batch > 1:
        return "transformers drafts for one row only"
    if way == "double" and batch < 16:
        return "measured at the largest batch"
    if way == "reread" and (batch > 1 or context > 512):
        return "takes too long"
    return None
