"""Methods that edit activations: the engine against loops without cache, written down plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from conflictkit import anatomy, engine, methods
from conflictkit.controller import Controller
from conflictkit.errors import InvalidParameterError
from conflictkit.per_row import PerRow
from conflictkit.plan import open_streams
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from tests.anatomy.families import VOCAB, model
from tests.engine import reference
from tests.interventions.attention_by_definition import by_definition

FAMILIES = ("llama", "gpt2", "mistral", "gemma2", "gpt-neox", "falcon-7b")
SIZES = [(9, 4), (3, 7), (14, 2)]
TOKENS = 8


def answers(
    hf: Any, control: Any, rows: list[dict[str, Any]], *, use_cache: bool = True, **decoding: Any
) -> tuple[list[list[int]], Any]:
    spans = [(1, 1 + size) for size, _ in SIZES[: len(rows)]]
    streams = open_streams(
        hf, control, {name: [row[name] for row in rows] for name in ("context", "memory")},
        pad_id=2, spans=spans, use_cache=use_cache,
    )  # fmt: skip
    run = Stepper(
        streams, control, Decoding(max_new_tokens=TOKENS, **decoding), end_ids=(), decode=str
    )
    made = engine.generate(run)
    return [list(row[0].ids) for row in made], made[0][0].stats


def greedy(score: Callable[[list[int]], Tensor], prompt: list[int]) -> list[int]:
    said: list[int] = []
    while len(said) < TOKENS:
        said.append(int(score([*prompt, *said]).argmax()))
    return said


@contextmanager
def before_projection(
    hf: Any, layer: int, change: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """What a projection reads, changed by the test's own hook."""
    module = anatomy.find(hf).outputs[layer]
    assert module is not None

    def hook(_: Any, arguments: tuple[Tensor, ...]) -> Any:
        changed = change(arguments[0].clone())
        return None if changed is None else (changed, *arguments[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def logits(hf: Any, ids: list[int]) -> Tensor:
    return reference.next_logits(hf, ids)[0]


def scaled(hf: Any, layer: int, head: int, factor: float) -> Any:
    part = anatomy.find(hf).slice_of(head)

    def change(values: Tensor) -> Tensor:
        values[..., part] *= factor
        return values

    return before_projection(hf, layer, change)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("spec", "factor"),
    [("ph3?heads=1.2", 0.0), ("head-scale?heads=1.2&alpha=-3", -3.0),
     ("juice-single?enlarge_heads=1.2&enlarge=2", 3.0)],
)  # fmt: skip
def test_scaled_heads_give_each_row_its_brute_force_answer(
    name: str, spec: str, factor: float
) -> None:
    hf, rows = model(name), reference.pairs(4, VOCAB, SIZES)
    with scaled(hf, 1, 2, factor):
        expected = [greedy(lambda ids: logits(hf, ids), list(row["context"])) for row in rows]
    made, stats = answers(hf, Controller(methods.parse(spec)), rows)
    assert made == expected
    assert made != [greedy(lambda ids: logits(hf, ids), list(row["context"])) for row in rows]
    assert stats.forwards == TOKENS
    # Left padding is read, and so edited, as much as tokens are.
    longest = max(len(row["context"]) for row in rows)
    assert stats.edits == len(rows) * (longest + TOKENS - 1)
    assert answers(hf, Controller(methods.parse(spec)), rows, use_cache=False)[0] == expected


def juice(hf: Any, ids: list[int], amounts: dict[tuple[int, int], float]) -> Tensor:
    """The paper's dual run: both passes from scratch, what the heads wrote added behind them."""
    body, clean = anatomy.find(hf), {}
    for layer, _ in amounts:

        def keep(values: Tensor, layer: int = layer) -> None:
            clean[layer] = values

        with before_projection(hf, layer, keep):
            logits(hf, ids)
    hooks = []
    for layer in {layer for layer, _ in amounts}:
        module: Any = body.outputs[layer]
        masked = torch.zeros_like(clean[layer])
        for (where, head), amount in amounts.items():
            if where == layer:
                part = body.slice_of(head)
                masked[..., part] = amount * clean[layer][..., part]
        nothing = module(torch.zeros_like(masked))  # the bias alone
        written = (module(masked) - nothing).detach()
        hooks.append(module.register_forward_hook(lambda _, __, out, add=written: out + add))
    try:
        return logits(hf, ids)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_juice_is_two_runs_from_scratch(name: str) -> None:
    hf, rows = model(name), reference.pairs(5, VOCAB, SIZES)
    spec = "juice?enlarge_heads=0.1+1.3&suppress_heads=1.0+0.1&enlarge=3&suppress=2"
    amounts = {(0, 1): 1.0, (1, 3): 3.0, (1, 0): -2.0}
    expected = [
        greedy(lambda ids: juice(hf, ids, amounts), list(row["context"])) for row in rows
    ]  # fmt: skip
    made, stats = answers(hf, Controller(methods.parse(spec)), rows)
    assert made == expected
    assert stats.forwards == 2 * TOKENS
    single = spec.replace("juice?", "juice-single?")
    assert answers(hf, Controller(methods.parse(single)), rows)[0] != made


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2", "gpt-neox"])
def test_decore_contrasts_with_uniform_heads_from_the_last_prompt_token_on(name: str) -> None:
    hf, rows = model(name), reference.pairs(6, VOCAB, SIZES)
    heads = {(0, 1), (1, 2)}
    spec = "decore?heads=0.1+1.2"

    def score(ids: list[int], prompt: int) -> Tensor:
        plain = logits(hf, ids).double().log_softmax(-1)
        with uniform(hf, heads, prompt - 1):
            masked = logits(hf, ids).double().log_softmax(-1)
        alpha = -(plain.exp() * plain).sum()
        return (1 + alpha) * plain - alpha * masked

    expected = [
        greedy(partial(score, prompt=len(row["context"])), list(row["context"])) for row in rows
    ]
    made, stats = answers(hf, Controller(methods.parse(spec)), rows)
    assert made == expected
    # The prompt is read once, its last token twice.
    assert stats.forwards == 2 * TOKENS
    read = sum(len(row["context"]) for row in rows)
    assert stats.context_tokens == read + len(rows) * (1 + 2 * (TOKENS - 1))
    assert answers(hf, Controller(methods.parse(spec)), rows, use_cache=False)[0] == expected


def uniform(hf: Any, heads: set[tuple[int, int]], start: int) -> Any:
    """Chosen heads attend evenly from query `start` on, computed at the explicit head axis."""

    def evened(layer: int, query: Tensor) -> Tensor:
        query = query.clone()
        for _, head in (one for one in heads if one[0] == layer):
            query[:, head, start:] = 0
        return query

    return by_definition(hf, query=evened)


def test_a_gate_chooses_between_the_edited_and_the_plain_stream() -> None:
    hf, rows = model("llama"), reference.pairs(7, VOCAB, SIZES)
    with scaled(hf, 1, 2, 0.0):
        edited = [greedy(lambda ids: logits(hf, ids), list(row["context"])) for row in rows]
    plain = [greedy(lambda ids: logits(hf, ids), list(row["context"])) for row in rows]
    rule = methods.parse("ph3?heads=1.2")
    always, stats = answers(hf, Controller(rule, when="jsd > -1"), rows)
    never, _ = answers(hf, Controller(rule, when="jsd > 2"), rows)
    assert (always, never) == (edited, plain)
    assert stats.forwards == 3 * TOKENS  # context, memory and edited
    first = [
        float(_jsd(logits(hf, list(row["context"])), logits(hf, list(row["memory"]))))
        for row in rows
    ]
    bound = sorted(first)[1] - 1e-3
    mixed, _ = answers(hf, Controller(rule, when=f"jsd > {bound} at prompt"), rows)
    wanted = [e if own > bound else p for e, p, own in zip(edited, plain, first, strict=True)]
    assert mixed == wanted
    assert mixed not in (edited, plain)


def _jsd(left: Tensor, right: Tensor) -> Tensor:
    p, q = left.double().softmax(-1), right.double().softmax(-1)
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2


def test_a_batch_mixes_methods_row_by_row() -> None:
    hf = model("llama")
    rows = reference.pairs(8, VOCAB, SIZES)
    specs = ["ph3?heads=1.2", "cad", "juice?enlarge_heads=0.1"]
    controls = [Controller(methods.parse(spec)) for spec in specs]
    alone = [answers(hf, one, [row])[0][0] for one, row in zip(controls, rows, strict=True)]
    assert answers(hf, PerRow.of(controls), rows)[0] == alone
    controls[2] = Controller(methods.parse("decore?heads=0.1+1.1"))
    alone[2] = answers(hf, controls[2], [rows[2]])[0][0]
    assert answers(hf, PerRow.of(controls), rows)[0] == alone


@pytest.mark.parametrize("spec", ["ph3?heads=1.2", "juice?enlarge_heads=0.1", "decore?heads=1.2"])
def test_one_beam_of_many_is_as_good_as_greedy_at_least(spec: str) -> None:
    hf, rows = model("llama"), reference.pairs(9, VOCAB, SIZES)
    control = Controller(methods.parse(spec))
    cached, _ = answers(hf, control, rows, num_beams=3)
    assert cached == answers(hf, control, rows, num_beams=3, use_cache=False)[0]
    assert cached == [answers(hf, control, [row], num_beams=3)[0][0] for row in rows]


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_scales_the_edit(strength: float) -> None:
    hf, rows = model("llama"), reference.pairs(4, VOCAB, SIZES)
    with scaled(hf, 1, 2, 1 - strength):
        expected = [greedy(lambda ids: logits(hf, ids), list(row["context"])) for row in rows]
    control = Controller(methods.parse("ph3?heads=1.2"), strength=strength)
    made, stats = answers(hf, control, rows)
    assert made == expected
    assert stats.forwards == TOKENS
    assert (stats.edits == 0) == (strength == 0)


def test_a_strength_that_follows_a_detector_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="ph3 edits activations: its strength is a nu"):
        Controller(methods.parse("ph3?heads=1.2"), strength="jsd")


def test_no_hook_is_left_behind() -> None:
    hf, rows = model("llama"), reference.pairs(4, VOCAB, SIZES)
    answers(hf, Controller(methods.parse("juice?enlarge_heads=1.2")), rows)
    with pytest.raises(InvalidParameterError, match=r"no head \(1, 7\)"):
        answers(hf, Controller(methods.parse("ph3?heads=0.1+1.7")), rows)
    import gc

    gc.collect()
    assert not any(len(module._forward_pre_hooks) for module in hf.modules())
