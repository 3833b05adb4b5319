"""Probes of tiny models with made-up weights, and what they read, by a hook of the tests' own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conflictkit.detectors.probe import LayerProbe
from conflictkit.gates import Gate
from conflictkit.models import fingerprint

_PATHS = {
    "GPT2LMHeadModel": ("transformer.h", "attn"),
    "FalconForCausalLM": ("transformer.h", "self_attention"),
    "GPTNeoXForCausalLM": ("gpt_neox.layers", "attention"),
}
KINDS = ("residual", "attention", "mlp")


def look(hf: Any, ids: Sequence[int], kind: str, layer: int) -> tuple[Tensor, Tensor]:
    """`[width]` that a layer puts out at the last of these tokens, and `[vocab]` logits behind it:
    one plain pass over one row, nothing kept from before."""
    layers, attention = _PATHS.get(type(hf).__name__, ("model.layers", "self_attn"))
    inside = {"residual": "", "attention": f".{attention}", "mlp": ".mlp"}[kind]
    found: list[Tensor] = []

    def hook(_: Any, __: Any, out: Any) -> None:
        found.append((out[0] if isinstance(out, tuple) else out)[0, -1].clone())

    handle = hf.get_submodule(f"{layers}.{layer}{inside}").register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits = hf(torch.tensor([list(ids)]), use_cache=False).logits
    finally:
        handle.remove()
    return found[0].double(), logits[0, -1].float()


def probe_of(
    hf: Any, kind: str = "residual", layer: int = 1, *, seed: int = 0, prompt: Sequence[int] = ()
) -> LayerProbe:
    """A probe that says yes about as often as no, behind a prompt and random tokens after it."""
    draw = torch.Generator().manual_seed(seed)
    vocab = hf.get_input_embeddings().weight.shape[0]
    texts = [[*prompt, *torch.randint(3, vocab, (n,), generator=draw).tolist()]
             for n in range(1, 13)]  # fmt: skip
    values = torch.stack([look(hf, ids, kind, layer)[0] for ids in texts])
    weights = torch.randn(values.shape[1], generator=draw, dtype=torch.float64)
    said = values @ weights
    weights, said = 1.5 * weights / said.std(), 1.5 * said / said.std()
    return LayerProbe(
        "conflict", kind, layer, weights.float(), -float(said.median()), "tiny", fingerprint(hf)
    )


def score(hf: Any, probe: LayerProbe, ids: Sequence[int]) -> tuple[float, Tensor]:
    """The probe's probability behind these tokens, in double precision, and the logits there."""
    value, logits = look(hf, ids, probe.kind, probe.layer)
    return 1 / (1 + math.exp(-float(value @ probe.weights.double()) - probe.bias)), logits


def decisions(scores: Sequence[float], gate: Gate) -> list[bool]:
    """When a gate is open along an answer, as a loop."""
    found: list[bool] = []
    for score in scores:
        beyond = score > gate.threshold if gate.sign == ">" else score < gate.threshold
        if found and gate.at == "prompt":
            beyond = found[0]
        elif found and found[-1] and gate.release is not None:
            beyond = score >= gate.release if gate.sign == ">" else score <= gate.release
        found.append(beyond)
    return found


def hooks(hf: Any) -> int:
    """Hooks on the modules of a model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in hf.modules() for kind in kinds)


class Passes:
    """Counts the passes of a model over its weights inside a `with` block."""

    def __init__(self, hf: Any) -> None:
        self.hf, self.count = hf, 0

    def __enter__(self) -> Passes:
        self._hook = self.hf.register_forward_pre_hook(self._add)
        return self

    def _add(self, *_: Any) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
