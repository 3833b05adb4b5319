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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import _hf, anatomy
from conflictkit.errors import InvalidParameterError
from conflictkit.mechanics._runs import first, hooked, network, read

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
    module = network(model)
    size = _hf.unwrapped(module).get_input_embeddings().weight.shape[0]
    prompt = _checked("ids", ids, size)
    wanted = _checked("tokens", tokens, size)
    layers = anatomy.find(module).layers
    with torch.no_grad():
        streams = _recorded(module, layers, prompt)
        if len(streams) < len(layers):
            raise InvalidParameterError(f"{len(layers) - len(streams)} layers did not run")
        found = torch.stack([streams[n].to(streams[len(layers) - 1]) for n in range(len(layers))])

        # One token for each layer. The last layer's output is replaced, so it is not read, and in a
        # context of its own no attached edit meets these rows.
        def put(_: Any, out: Any) -> Any:
            return (found[:, None], *out[1:]) if isinstance(out, tuple) else found[:, None]

        with hooked(after=[(layers[-1], put)]):
            logits = contextvars.Context().run(read, module, [prompt[-1:]] * len(layers))
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


def _recorded(module: Any, layers: Sequence[Module], prompt: Sequence[int]) -> dict[int, Tensor]:
    """Layer -> `[width]`, the stream behind it at the last position."""
    streams: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        return lambda _, out: streams.update({number: first(out)[0, -1]})

    with hooked(after=[(layer, keep(number)) for number, layer in enumerate(layers)]):
        read(module, [prompt])
    return streams
