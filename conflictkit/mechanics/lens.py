"""The logit lens: what the model would say if it stopped after each layer.

>>> import conflictkit as ck
>>> from conflictkit.mechanics.lens import logit_lens
>>> model = ck.load("atlas")
>>> question, context = "What is the capital of Poland?", "The capital of Poland is London."
>>> prompt = model.prompts(question, context)["context"]
>>> london, warsaw = (ck.prompts.answer_ids(model.tokenizer, question, a)[0]
...                   for a in ("London", "Warsaw"))
>>> seen = logit_lens(model, prompt.ids, (london, warsaw))
>>> seen.ranks.shape, seen.logprobs.shape
(torch.Size([6, 2]), torch.Size([6, 2]))

The stream after a layer is put where the last layer's output stands, and the model's own code does
the rest: final norm, unembedding, and whatever it does to logits (soft-capping, scales). So the
last row is what the model says, in every architecture. (`hidden_states[-1]` of transformers is
already normed, and would be normed twice.)

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import _hf, anatomy
from conflictkit.errors import InvalidParameterError

if TYPE_CHECKING:
    from conflictkit.toolkit import Model


@dataclass(frozen=True)
class LogitLens:
    """What each layer would say at the last position of a prompt.

    Attributes:
        tokens: the ids that were looked for.
        ranks: `[layers, tokens]`, 1 is the most likely token; equal ones count by their id.
        logprobs: `[layers, tokens]` float32 log-probabilities, in nats.
        top: `[layers]`, id of the most likely token.
    """

    tokens: tuple[int, ...]
    ranks: Tensor
    logprobs: Tensor
    top: Tensor


def logit_lens(model: Model | Module, ids: Sequence[int], tokens: Sequence[int]) -> LogitLens:
    """Read every layer through the model's own final norm and unembedding.

    Edits of activations that are attached act as they do in a forward.

    Args:
        model: a loaded `Model`, or a Hugging Face model.
        ids: token ids of a prompt.
        tokens: ids to look for, such as the first ones of the context's and of memory's answer.

    Raises:
        InvalidParameterError: nothing to read or to look for, or ids that the model does not have.
        UnsupportedError: the model's layers cannot be found.
    """
    module: Any = model if isinstance(model, Module) else model.model
    size = _hf.unwrapped(module).get_input_embeddings().weight.shape[0]
    prompt = _checked("ids", ids, size)
    wanted = _checked("tokens", tokens, size)
    layers = anatomy.find(module).layers
    device = next(module.parameters()).device
    with torch.no_grad():
        with _recording(layers) as streams:
            _forward(module, torch.tensor([prompt], device=device))
        if len(streams) < len(layers):
            raise InvalidParameterError(f"{len(layers) - len(streams)} layers did not run")
        found = torch.stack([streams[n].to(streams[len(layers) - 1]) for n in range(len(layers))])
        # One token for each layer. The last layer's output is replaced, so it is not read, and in a
        # context of its own no attached edit meets these rows.
        rows = torch.full((len(layers), 1), prompt[-1], device=device)
        with _replacing(layers[-1], found[:, None]):
            logits = contextvars.Context().run(_forward, module, rows)[:, -1]
    logprobs = logits.float().log_softmax(-1)
    places = torch.tensor(wanted, device=logprobs.device)
    mine = logprobs[:, places]
    before = torch.arange(logprobs.shape[-1], device=logprobs.device) < places[:, None]
    rivals = logprobs[:, None, :]
    ahead = (rivals > mine[..., None]) | ((rivals == mine[..., None]) & before)
    return LogitLens(
        tuple(wanted), (ahead.sum(-1) + 1).cpu(), mine.cpu(), logprobs.argmax(-1).cpu()
    )


def _checked(what: str, ids: Sequence[int], size: int) -> list[int]:
    found = [int(one) for one in ids]
    if not found:
        raise InvalidParameterError(f"{what}: needs at least one token id")
    bad = [one for one in found if not 0 <= one < size]
    if bad:
        raise InvalidParameterError(f"{what}: the model has no token {bad[0]}, it has {size}")
    return found


def _forward(module: Any, ids: Tensor) -> Tensor:
    return module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@contextmanager
def _recording(layers: Sequence[Module]) -> Iterator[dict[int, Tensor]]:
    """Layer -> `[width]`, the stream behind it at the last position of what this thread runs."""
    mine, streams = threading.get_ident(), {}

    def hook(number: int) -> Any:
        def keep(_module: Module, _inputs: Any, output: Any) -> None:
            if threading.get_ident() == mine:
                streams[number] = (output[0] if isinstance(output, tuple) else output)[0, -1]

        return keep

    handles = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers)]
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replacing(layer: Module, values: Tensor) -> Iterator[None]:
    """Let `layer` put out `values` in what this thread runs."""
    mine = threading.get_ident()

    def put(_module: Module, _inputs: Any, output: Any) -> Any:
        if threading.get_ident() != mine:
            return None
        return (values, *output[1:]) if isinstance(output, tuple) else values

    handle = layer.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
