"""Random models and prompts of random tokens: what decoding costs does not depend on what is said.

The output layer is not tied to the embeddings: with tied ones a random model repeats its last
token for ever, and every guess of a draft would be right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from store import now
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from conflictkit import _hf, methods
from conflictkit.controller import Controller
from conflictkit.plan import open_streams
from conflictkit.streams import Stream

QUESTION = 64
"""Tokens of the question, which is all that the memory stream reads."""
CONTROL = Controller(methods.build("adacad"))


@dataclass(frozen=True)
class Shape:
    """A Llama's size.

    Attributes:
        hidden, inner, layers, heads, groups, vocab: of its config.
        dtype: of its weights.
        most: tokens of the contexts in a batch, beyond which a cell would take too long.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    most: int
    vocab: int = 32_000
    dtype: torch.dtype = torch.float32

    def model(self, device: str) -> Any:
        """A random model of this shape."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocab, hidden_size=self.hidden, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.groups, max_position_embeddings=32_768,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=None, pad_token_id=2,
        )  # fmt: skip
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()

    @property
    def row_bytes(self) -> int:
        """Of the cache, for each token of each row."""
        return 2 * self.layers * self.groups * (self.hidden // self.heads) * self.dtype.itemsize


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, most=1024, vocab=512),
    "0.15B": Shape(768, 2048, 16, 12, 4, most=32_768),
    "0.5B": Shape(1280, 3584, 24, 20, 4, most=32_768),
    "8B": Shape(4096, 14_336, 32, 32, 8, most=131_072, vocab=128_256, dtype=torch.bfloat16),
}


def weight_bytes(model: Any) -> int:
    """Bytes that a pass reads of the weights: all but the table of embeddings."""
    return (
        sum(one.nbytes for one in model.parameters()) - model.get_input_embeddings().weight.nbytes
    )


@dataclass
class Watch:
    """What a model does under watch.

    Attributes:
        passes: over the weights, counted at the first feed-forward.
        began: when the first of them began.
    """

    device: str
    passes: int = 0
    began: float = 0.0

    def seconds(self) -> float:
        """From the beginning of the first pass until now."""
        return now(self.device) - self.began


@contextmanager
def watched(model: Any, device: str, *, hooks: bool = True) -> Iterator[Watch]:
    """Count the passes of a model, and note when the first begins.

    Without `hooks`, which a compiled graph has no room for, the caller does.
    """
    watch = Watch(device)

    def begin(*_: Any) -> None:
        watch.began = watch.began or now(device)

    def count(*_: Any) -> None:
        watch.passes += 1

    placed = [
        model.get_input_embeddings().register_forward_pre_hook(begin),
        model.model.layers[0].mlp.register_forward_hook(count),
    ] if hooks else []  # fmt: skip
    try:
        yield watch
    finally:
        for hook in placed:
            hook.remove()


@dataclass
class World:
    """A model with one question that it has read, by itself and behind its context.

    Attributes:
        model, device: what reads.
        prompts: stream -> `[1, length]` tokens.
        base: stream -> one row that has been read; empty until `read`.
    """

    model: Any
    device: str
    prompts: dict[str, Tensor]
    base: dict[str, Stream] = field(default_factory=dict)

    @classmethod
    def make(cls, model: Any, device: str, context: int) -> World:
        """A context of random tokens, and a question."""
        generator = torch.Generator().manual_seed(context)
        tokens = torch.randint(
            3, model.config.vocab_size, (1, context + QUESTION), generator=generator
        ).to(device)
        return cls(model, device, {"context": tokens, "memory": tokens[:, -QUESTION:]})

    def read(self) -> dict[str, float]:
        """Read both prompts as conflictkit does; seconds of each stream."""
        prompts = {name: ids.tolist() for name, ids in self.prompts.items()}
        self.base = open_streams(self.model, CONTROL, prompts, pad_id=2)
        taken = {}
        for name, one in self.base.items():
            start = now(self.device)
            one.prefill()
            taken[name] = now(self.device) - start
        return taken

    def read_plainly(self) -> float:
        """Seconds of reading context and question as transformers' `generate` does."""
        ids = self.prompts["context"]
        start = now(self.device)
        with torch.no_grad():
            self.model(
                ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1,
                past_key_values=DynamicCache(config=self.model.config),
            )  # fmt: skip
        return now(self.device) - start

    def rows(self, batch: int) -> dict[str, Stream]:
        """Streams of `batch` equal rows that stand behind their prompts."""
        made = {name: one.fork() for name, one in self.base.items()}
        if batch > 1:
            for one in made.values():
                one.select(torch.zeros(batch, dtype=torch.long))
        return made

    def cache(self, name: str, batch: int) -> Any:
        """A cache of transformers that lacks the prompt's last token alone."""
        twin = _hf.copy_cache(self.base[name].cache)
        _hf.roll_back(twin, 1)
        if batch > 1:
            twin.batch_repeat_interleave(batch)
        return twin


def cache_bytes(caches: list[Any]) -> int:
    """Of what stands in some caches."""
    return sum(
        one.nbytes
        for cache in caches
        for layer in cache.layers
        for one in (layer.keys, layer.values)
    )
