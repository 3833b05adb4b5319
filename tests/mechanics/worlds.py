"""Tiny models with weights that a mistake shows in, items for them, and forwards by brute force.

Norms and biases of a fresh model are 1 and 0: here they are drawn. The forwards below read one
prompt without padding, and hold what the analyses hold by replacing it in whole forwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import transformers as hf

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.mechanics.items import Item, build
from tests.anatomy import families

MEMORY, CONTEXT = 20, 41


@cache
def world(name: str) -> Any:
    """A family's model with norms and biases drawn, and with Granite's scale of the logits."""
    if name == "granite":
        config = families.CONFIGS[name]()
        config.logits_scaling, config.embedding_multiplier = 2.0, 3.0
        torch.manual_seed(3)
        made = hf.AutoModelForCausalLM.from_config(config).eval()
    elif name == "opt-350m":
        config = families.CONFIGS["opt"]()
        config.do_layer_norm_before = False
        torch.manual_seed(3)
        made = hf.AutoModelForCausalLM.from_config(config).eval()
    else:
        made = copy.deepcopy(families.model(name))
    return shaken(made)


def shaken(made: Any) -> Any:
    """The same model with all vectors (norms, biases) drawn anew around what they are."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 1:
                weight += 0.3 * torch.randn_like(weight)
    return made


def items(count: int = 3) -> list[Item]:
    """Items of different lengths."""
    torch.manual_seed(9)
    made = []
    for number in range(count):
        length = 7 + (number * 2) % 5
        ids, no_memory, no_context = torch.randint(3, families.VOCAB, (3, length)).tolist()
        made.append(
            Item(
                tuple(ids),
                CONTEXT + number,
                MEMORY + number,
                (1, 4),
                tuple(no_memory),
                tuple(no_context),
                f"item-{number}",
                "any",
            )  # fmt: skip
        )
    return made


@cache
def atlas() -> tuple[ck.Model, list[Item]]:
    """Atlas, and three items of different lengths with both corrupted prompts."""
    model = ck.load("atlas")
    cases = [
        case
        for case in ck.atlas.cases("train", "resistance")
        if case.relation == "country" and case.meta["layout"] == "sentence"
    ]
    found = sorted(
        build(model, cases[:24], require_corrupted=True)[0], key=lambda one: len(one.ids)
    )
    return model, [found[0], found[len(found) // 2], found[-1]]


def logits(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """`[vocab]` after the last token."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


@contextmanager
def replaced(inputs: dict[Any, Any], outputs: dict[Any, Any]) -> Iterator[None]:
    """Modules that read, or return, what the given functions make of it."""
    with ExitStack() as stack:
        for module, change in inputs.items():

            def early(_: Any, given: Any, change: Any = change) -> Any:
                return (change(given[0]), *given[1:])

            stack.callback(module.register_forward_pre_hook(early).remove)
        for module, change in outputs.items():

            def late(_: Any, given: Any, out: Any, change: Any = change) -> Any:
                return change(out)

            stack.callback(module.register_forward_hook(late).remove)
        yield


def own(given: Any) -> Any:
    """The first tensor of what a module takes or returns, safe from layers that add in place."""
    one = given[0] if isinstance(given, tuple) and given else given
    return one.clone() if isinstance(one, torch.Tensor) else one


def seen(model: Any, ids: tuple[int, ...]) -> dict[Any, tuple[Any, Any]]:
    """Module -> its first input and its first output, of every module, in one forward."""
    kept: dict[Any, tuple[Any, Any]] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, given, out: kept.__setitem__(module, (own(given), own(out)))
        )
        for module in model.modules()
    ]
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return kept


def head_changed(
    model: Any, clean: dict[Any, Any], place: tuple[int, int], value: Any
) -> dict[Any, Callable[[Any], Any]]:
    """Every projection reads what it read in `clean`, but one head at the last position."""
    body = anatomy.find(model)
    changes: dict[Any, Callable[[Any], Any]] = {}
    for layer, output in enumerate(body.outputs):
        held = clean[output][0].clone()
        if layer == place[0]:
            held[:, -1, body.slice_of(place[1])] = value
        changes[output] = lambda _, held=held: held
    return changes


def frozen_norms(model: Any, clean: dict[Any, Any]) -> dict[Any, Callable[[Any], Any]]:
    """Norm -> what it returns with the scale of `clean`, by its class's own formula.

    The formula gets the scale from the clean input, and the values from what is read now.
    """
    body = anatomy.find(model)
    norms = [one for one in (*body.attention_norms, body.norm) if one is not None]
    return {norm: frozen(norm, clean[norm][0]) for norm in norms}


def frozen(norm: Any, clean: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A norm as a function of what it reads, with its scale taken from `clean`."""
    weight = norm.weight
    if isinstance(norm, torch.nn.LayerNorm):
        spread = (clean.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        return lambda x: (x - x.mean(-1, keepdim=True)) / spread * weight + norm.bias
    eps = getattr(norm, "variance_epsilon", None)
    eps = norm.eps if eps is None else eps
    spread = (clean.square().mean(-1, keepdim=True) + eps).sqrt()
    gain = 1 + weight if "Gemma" in type(norm).__name__ else weight
    return lambda x: x / spread * gain


@contextmanager
def frozen_world(
    model: Any, clean: dict[Any, Any], place: tuple[int, int], value: Any
) -> Iterator[None]:
    """All heads but one, all MLPs and the scales of all norms on the way are those of `clean`."""
    body = anatomy.find(model)
    outputs: dict[Any, Callable[[Any], Any]] = {
        one: (lambda _, held=clean[one][1]: held) for one in body.mlps
    }
    reads: dict[Any, Any] = {}
    norms = frozen_norms(model, clean)
    inputs = head_changed(model, clean, place, value)
    for norm, formula in norms.items():
        inputs[norm] = lambda x, norm=norm: reads.setdefault(norm, x)
        outputs[norm] = lambda _, norm=norm, formula=formula: formula(reads[norm])
    with replaced(inputs, outputs):
        yield
