"""What every rule promises, whatever it computes: finite, per row, off means off, no waiting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from conflictkit import methods
from conflictkit.errors import LogitsError
from conflictkit.interventions.contrast import Rule, mix
from conflictkit.types import Combined, Step

INF = math.inf
LOGIT = st.integers(-160, 160).map(lambda eighths: eighths / 8)

MENDED = [
    "plain",
    "memory",
    "interpolate",
    "interpolate?weight=0",
    "cad",
    "cad?alpha=1e6",
    "adacad",
    "adacad?threshold=0.3",
    "coiecd",
    "coiecd?beta=0.5",
    "ck-plug",
    "ck-plug?epsilon=1&select_top=2",
    "ck-plug?adaptive=false&alpha=0&epsilon=1",
    "ck-plug?adaptive=false&alpha=1",
    "arr",
    "grd",
    "grd?gate=confidence",
    "grd?gate=entropy&depth=1",
    "auto",
    "auto?bias=-0.5&jsd=4&memory_entropy=1&context_rank=-0.3&memory_rank=0.2&reach=2",
    "auto?bias=1e6&jsd=-1e6&context_rank=1e6&memory_confidence=-1e6&reach=1e6",
]
RELEASED = [f"{name}?variant=released" for name in ("cad", "adacad", "coiecd", "ck-plug")]
RELEASED.append("ck-plug?variant=released&adaptive=false&alpha=0")
EVERY = pytest.mark.parametrize("spec", MENDED + RELEASED)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = (draw(st.integers(1, 3)), draw(st.integers(2, 14)))
    element = LOGIT | st.just(-INF)
    context, memory = (draw(arrays(np.float32, shape, elements=element)) for _ in range(2))
    context[:, 0], memory[:, 0] = np.maximum(context[:, 0], 0), np.maximum(memory[:, 0], 0)
    return torch.from_numpy(context), torch.from_numpy(memory)


def assert_sound(combined: Combined, context: Tensor) -> None:
    logits = combined.logits
    assert logits.dtype == torch.float32
    assert not logits.isnan().any()
    assert not (logits == INF).any()
    assert (logits > -INF).any(-1).all()
    assert (logits[context == -INF] == -INF).all()
    normalised = logits.logsumexp(-1).abs() < 1e-3
    assert (normalised | (logits == context.float()).all(-1)).all()
    numbers = [combined.context_weight, combined.memory_weight, *combined.scores.values()]
    assert all(values.isfinite().all() for values in numbers)
    assert all(values.shape == (len(logits),) for values in combined.scores.values())


def patterns() -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs that break careless arithmetic, by name."""
    torch.manual_seed(0)
    context, memory = torch.randn(2, 3, 12) * 4
    holes = torch.zeros(3, 12, dtype=torch.bool)
    holes[0, 3:], holes[1, ::2], holes[2, :11] = True, True, True
    hot = torch.full((3, 12), -INF)
    hot[:, 4] = 0.0
    limits = torch.full((3, 12), -65504.0, dtype=torch.float16)
    top, other_top = limits.clone(), limits.clone()
    top[:, 1], other_top[:, 2] = 65504.0, 65504.0
    padded = torch.cat([context[:, :8], torch.full((3, 4), torch.finfo(torch.float32).min)], 1)
    return {
        "shared holes": (context.masked_fill(holes, -INF), memory.masked_fill(holes, -INF)),
        "holes in context": (context.masked_fill(holes, -INF), memory),
        "holes in memory": (context, memory.masked_fill(holes, -INF)),
        "crossed holes": (
            context.masked_fill(holes & (torch.arange(12) != 11), -INF),
            memory.masked_fill(holes.flip(1) & (torch.arange(12) != 11), -INF),
        ),
        "identical": (context, context.clone()),
        "one-hot and uniform": (hot, torch.zeros(3, 12)),
        "uniform and one-hot": (torch.zeros(3, 12), hot),
        "one-hot twice": (hot, hot.clone()),
        "float16 limits": (top, other_top),
        "float32 limits": (top.float() * 5e33, other_top.float() * 5e33),
        "padded vocabulary": (padded, padded.flip(0)),
        "nearly one-hot": (context * 100, memory * 100),
        "a vocabulary of one": (context[:, :1], memory[:, :1]),
        "ties": (torch.zeros(3, 12), torch.zeros(3, 12).index_fill(1, torch.tensor([3, 5]), 2.0)),
    }


@EVERY
@pytest.mark.parametrize("pattern", patterns())
def test_no_nan_leaves_a_rule(spec: str, pattern: str) -> None:
    context, memory = patterns()[pattern]
    rule = methods.parse(spec)
    combined = rule.combine(context, memory)
    assert_sound(combined, context)
    assert_sound(rule.combine(context, memory, combined.state), context)


@EVERY
def test_no_nan_with_a_large_vocabulary(spec: str) -> None:
    torch.manual_seed(1)
    context, memory = torch.randn(2, 2, 262_144) * 3
    context[0, 9] = memory[0, 8] = 60.0
    assert_sound(methods.parse(spec).combine(context, memory), context)


@pytest.mark.slow
@EVERY
@settings(max_examples=20)
@given(pairs())
def test_no_nan_for_any_logits(spec: str, pair: tuple[Tensor, Tensor]) -> None:
    assert_sound(methods.parse(spec).combine(*pair), pair[0])


@pytest.mark.slow
@pytest.mark.parametrize("spec", [spec for spec in MENDED if "1e6" not in spec])
@settings(max_examples=20)
@given(pairs(), st.integers(-64, 64))
def test_constants_in_the_logits_do_not_matter(
    spec: str, pair: tuple[Tensor, Tensor], shift: int
) -> None:
    rule = methods.parse(spec)
    here = rule.combine(*pair).logits.log_softmax(-1)
    there = rule.combine(pair[0] + shift, pair[1] - shift).logits.log_softmax(-1)
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [spec for spec in MENDED if "1e6" not in spec])
@settings(max_examples=20)
@given(pairs(), st.integers(0, 99))
def test_the_order_of_the_vocabulary_does_not_matter(
    spec: str, pair: tuple[Tensor, Tensor], seed: int
) -> None:
    for logits in pair:  # tops that tie are taken by index
        best = logits.topk(2, dim=-1).values
        assume(bool((best[:, 0] > best[:, 1]).all()))
    rule = methods.parse(spec)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(pair[0].shape[1]))
    here = rule.combine(*pair).logits[:, order].log_softmax(-1)
    there = rule.combine(pair[0][:, order], pair[1][:, order]).logits.log_softmax(-1)
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-3)


@EVERY
def test_rows_are_independent(spec: str) -> None:
    torch.manual_seed(2)
    rule = methods.parse(spec)
    context, memory = torch.randn(2, 4, 30) * 4
    # Row 0 has one dominant token and its mates many, some of them masked, one broken.
    mates = (context.clone(), memory.clone())
    mates[0][1:], mates[1][1:] = 0.0, 1.0
    mates[0][1, 4:], mates[0][3] = -INF, math.nan
    first = rule.combine(context, memory)
    step = Step.from_logits({"context": mates[0], "memory": mates[1]})
    mixed = mix(step, rule(step, rule.initial(4)))
    assert step.invalid.tolist() == [False, False, False, True]
    assert torch.equal(first.logits[0], mixed.logits[0])
    assert not mixed.logits[:3].isnan().any()
    alone = rule.combine(context[:1], memory[:1])
    torch.testing.assert_close(alone.logits[0], first.logits[0], rtol=1e-6, atol=1e-6)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_is_read_as_float32(spec: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    context, memory = (torch.randn(2, 4, 30) * 4).to(dtype)
    rule = methods.parse(spec)
    here, there = rule.combine(context, memory), rule.combine(context.float(), memory.float())
    assert torch.equal(here.logits, there.logits)


OFF = [
    ("plain", "any"),
    ("interpolate?weight=1", "any"),
    ("cad?alpha=0", "any"),
    ("adacad", "equal"),
    ("coiecd", "sharp"),
    ("ck-plug", "equal"),
    ("ck-plug?epsilon=1&adaptive=false&alpha=0", "equal"),
    ("ck-plug", "helped"),
    ("arr", "equal"),
    ("grd", "equal"),
    ("grd", "sharp"),
    ("auto?reach=2", "equal"),
    ("auto?bias=50", "any"),
]


@pytest.mark.parametrize(("spec", "kind"), OFF)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_off_means_off(spec: str, kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    context, memory = torch.randn(2, 5, 40)
    context[0, 3] = memory[1, 4] = -INF
    if kind == "equal":
        memory = context.clone()
    if kind in ("sharp", "helped"):  # one token dominates the context; memory is less sure
        context[:, 7] = 12.0
    if kind == "sharp":
        memory[:, 9] = 5.0
    context, memory = context.to(dtype), memory.to(dtype)
    rule = methods.parse(spec)
    combined = rule.combine(context, memory)
    assert torch.equal(combined.logits, context.float())
    assert torch.equal(combined.context_weight.broadcast_to(5, 40), torch.ones(5, 40))
    assert (combined.memory_weight == 0).all()


def test_memory_alone_is_handed_on_untouched() -> None:
    logits = torch.randn(3, 20).masked_fill(torch.rand(3, 20) < 0.2, -INF)
    step = Step.from_logits({"memory": logits})
    rule = methods.build("memory")
    combined = mix(step, rule(step, {}))
    assert torch.equal(combined.logits, logits)
    assert combined.context_weight.flatten().tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(rule.combine(None, logits).logits, logits)
    context = torch.zeros(3, 20).index_fill(1, torch.tensor([4]), -INF)
    beside = rule.combine(context, logits).logits
    assert (beside[:, 4] == -INF).all()
    finite = logits > -INF
    finite[:, 4] = False
    gap = (beside - logits)[finite] - (beside - logits)[finite].mean()
    assert gap.abs().max() < 2  # one constant per row
    assert torch.equal(methods.build("plain").combine(logits, None).logits, logits)


@EVERY
def test_rows_without_numbers_are_named(spec: str) -> None:
    context, memory = torch.zeros(4, 6), torch.zeros(4, 6)
    context[1], context[2, 0], context[3, 1] = -INF, math.nan, INF
    with pytest.raises(LogitsError, match=r"row\(s\) \[1, 2, 3\]"):
        methods.parse(spec).combine(context, memory)
    memory[0, 0] = math.nan
    if "plain" not in spec:
        with pytest.raises(LogitsError, match=r"row\(s\) \[0\]"):
            methods.parse(spec).combine(torch.zeros(4, 6), memory)


FORBIDDEN = ("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "cpu", "nonzero")


@EVERY
def test_nothing_waits_for_the_device(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = methods.parse(spec)

    def refuse(*args: object) -> None:
        raise AssertionError("a rule looked at a value")

    for name in (*FORBIDDEN, "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    shapes = [run_two_steps(rule, device) for device in ("cpu", "meta")]
    monkeypatch.undo()
    assert shapes == [(3, 20), (3, 20)]


def run_two_steps(rule: Rule, device: str) -> tuple[int, ...]:
    """Two steps of a rule as an engine takes them; on `meta` there are no values to look at."""
    state, shape = rule.initial(3, device), ()
    for index in range(2):
        streams = {name: torch.empty(3, 20, device=device) for name in ("context", "memory")}
        if device == "cpu":
            streams = {name: torch.randn(3, 20) for name in streams}
        step = Step.from_logits(streams, index)
        combined = mix(step, rule(step, state))
        state, shape = combined.state, tuple(combined.logits.shape)
    return shape


@EVERY
def test_a_rule_leaves_its_inputs_alone(spec: str) -> None:
    torch.manual_seed(5)
    context, memory = torch.randn(2, 3, 20)
    context[0, 1] = memory[1, 2] = -INF
    before = context.clone(), memory.clone()
    rule = methods.parse(spec)
    state = rule.initial(3)
    kept = {name: values.clone() for name, values in state.items()}
    again = [rule.combine(context, memory, state).logits for _ in range(2)]
    assert torch.equal(again[0], again[1])
    assert torch.equal(context, before[0])
    assert torch.equal(memory, before[1])
    assert all(torch.equal(state[name], kept[name]) for name in kept)
