"""Detectors against ten-line float64 references, and the properties they promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

import conflictkit as ck
from conflictkit.detectors.confidence import entropy, kept_set
from conflictkit.detectors.divergence import jsd, kl, pairwise_jsd, total_variation
from conflictkit.errors import ConflictKitError, UnknownNameError
from conflictkit.types import Step

INF = math.inf
# Multiples of 1/8: shifts and permutations of them are exact in float32.
LOGIT = st.integers(-160, 160).map(lambda eighths: eighths / 8)


@st.composite
def pairs(draw: st.DrawFn, minus_inf: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Two streams' raw logits `[rows, vocab]`, with at least one token that both allow."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(2, 14)))
    element = LOGIT | st.just(-INF) if minus_inf else LOGIT
    context, memory = (draw(arrays(np.float32, shape, elements=element)) for _ in range(2))
    context[:, 0], memory[:, 0] = np.maximum(context[:, 0], 0), np.maximum(memory[:, 0], 0)
    return context, memory


def step(context: np.ndarray | Tensor, memory: np.ndarray | Tensor) -> Step:
    streams = {"context": torch.as_tensor(context), "memory": torch.as_tensor(memory)}
    return Step.from_logits(streams)


def score(name: str, at: Step) -> Tensor:
    result = ck.detectors.get(name)(at)
    assert result.shape == (len(at.logits),)
    assert result.dtype == torch.float32
    return result


def ref_entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def ref_kl(p: np.ndarray, q: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float((p[p > 0] * (np.log(p[p > 0]) - np.log(q[p > 0]))).sum())


def ref_kept(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def plausible(x: np.ndarray) -> np.ndarray:
        return (x >= np.sort(x)[-min(10, len(x))]) | (x >= 0.01 * x.max())

    kept = (plausible(p) | plausible(q)) & (p > 0)
    return p[kept] / p[kept].sum(), q[kept] / q[kept].sum()


def ref_gain(p: np.ndarray, q: np.ndarray) -> float:
    return ref_entropy(q) - ref_entropy(p)


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "jsd": lambda p, q: (ref_kl(p, (p + q) / 2) + ref_kl(q, (p + q) / 2)) / 2,
    "kl-context-memory": ref_kl,
    "kl-memory-context": lambda p, q: ref_kl(q, p),
    "total-variation": lambda p, q: float(np.abs(p - q).sum() / 2),
    "context-entropy": lambda p, q: ref_entropy(p),
    "memory-entropy": lambda p, q: ref_entropy(q),
    "confidence-gain": ref_gain,
    "confidence-gain-kept": lambda p, q: ref_gain(*ref_kept(p, q)),
    "context-entropy-kept": lambda p, q: ref_entropy(ref_kept(p, q)[0]),
    "memory-entropy-kept": lambda p, q: ref_entropy(ref_kept(p, q)[1]),
    "context-confidence": lambda p, q: float(p.max()),
    "memory-confidence": lambda p, q: float(q.max()),
    "top-disagreement": lambda p, q: float(p.argmax() != q.argmax()),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("seed", range(4))
def test_detector_is_the_formula(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    context, memory = rng.standard_normal((2, 40, 5 + 15 * seed)) * rng.choice([1, 3, 9], (40, 1))
    if seed == 1:
        context[rng.random(context.shape) < 0.3] = -np.inf
        context[:, 0] = 0
    at = step(context, memory)
    p = at.context.double().exp().numpy()
    q = at.memory.double().exp().numpy()
    expected = [REFERENCES[name](p[row] / p[row].sum(), q[row] / q[row].sum()) for row in range(40)]
    np.testing.assert_allclose(score(name, at).numpy(), expected, rtol=1e-4, atol=2e-6)


def test_every_detector_has_a_reference() -> None:
    assert set(REFERENCES) == set(ck.detectors.names())


@given(pairs())
def test_jsd_is_bounded_and_symmetric(pair: tuple[np.ndarray, np.ndarray]) -> None:
    at = step(*pair)
    there, back = jsd(at.context, at.memory), jsd(at.memory, at.context)
    assert all(0 <= value <= math.log(2) for value in there.tolist())
    assert torch.equal(there, back)


@given(pairs())
def test_ranges(pair: tuple[np.ndarray, np.ndarray]) -> None:
    at = step(*pair)
    for name in ck.detectors.names():
        values = score(name, at)
        assert values.isfinite().all()
        if "gain" not in name:
            assert (values >= 0).all()
    assert (total_variation(at.context, at.memory) <= 1).all()
    assert (score("context-confidence", at) <= 1).all()
    most = at.allowed.sum(-1).float().log()
    assert (entropy(at.context) <= most + 1e-5).all()


@given(pairs())
def test_equal_streams_do_not_conflict(pair: tuple[np.ndarray, np.ndarray]) -> None:
    at = step(pair[0], pair[0].copy())
    zero = ("jsd", "kl-context-memory", "kl-memory-context", "total-variation")
    for name in (*zero, "confidence-gain", "confidence-gain-kept", "top-disagreement"):
        assert score(name, at).tolist() == [0.0] * len(pair[0])


@given(pairs(), st.integers(0, 99))
def test_order_of_the_vocabulary_does_not_matter(
    pair: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    context, memory = pair
    order = np.random.default_rng(seed).permutation(context.shape[1])
    at, moved = step(context, memory), step(context[:, order], memory[:, order])
    for name in ck.detectors.names():
        if name == "top-disagreement":  # first index on ties
            continue
        torch.testing.assert_close(score(name, at), score(name, moved), rtol=1e-4, atol=1e-5)


@given(pairs(), st.integers(-64, 64))
def test_constants_in_the_logits_do_not_matter(
    pair: tuple[np.ndarray, np.ndarray], shift: int
) -> None:
    at, moved = step(*pair), step(pair[0] + np.float32(shift), pair[1] - np.float32(shift))
    for name in ck.detectors.names():
        torch.testing.assert_close(score(name, at), score(name, moved), rtol=1e-4, atol=1e-5)


@given(pairs())
def test_rows_are_independent(pair: tuple[np.ndarray, np.ndarray]) -> None:
    context, memory = (np.concatenate([part, part]) for part in pair)
    rows = len(pair[0])
    context[rows:], memory[rows:] = np.nan, -INF
    at = step(context, memory)
    assert at.invalid.tolist() == [False] * rows + [True] * rows
    alone = step(np.concatenate([pair[0]] * 2), np.concatenate([pair[1]] * 2))
    for name in ck.detectors.names():
        assert torch.equal(score(name, at)[:rows], score(name, alone)[:rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_is_read_as_float32(dtype: torch.dtype) -> None:
    context, memory = (torch.randn(4, 50) * 5).to(dtype), (torch.randn(4, 50) * 5).to(dtype)
    for name in ck.detectors.names():
        assert torch.equal(
            score(name, step(context, memory)), score(name, step(context.float(), memory.float()))
        )


def test_one_hot_rows() -> None:
    hot = torch.tensor([[0.0, -INF, -INF], [0.0, -INF, -INF]])
    other = torch.tensor([[-INF, 0.0, -INF], [0.0, -INF, -INF]])
    assert entropy(hot).tolist() == [0.0, 0.0]
    assert jsd(hot, other).tolist() == pytest.approx([math.log(2), 0.0])
    assert jsd(hot, other).max().item() <= math.log(2)
    assert kl(hot, other).tolist() == [INF, 0.0]
    assert total_variation(hot, other).tolist() == [1.0, 0.0]


def test_sharp_rows_keep_their_digits() -> None:
    row = torch.tensor([[0.0, -14.0, -16.0]])
    exact = ref_entropy(row.double().softmax(-1).numpy()[0])
    assert entropy(row.log_softmax(-1)).item() == pytest.approx(exact, rel=1e-5)


def test_half_precision_limits_and_a_large_vocabulary() -> None:
    context = torch.full((2, 262_144), -65504.0, dtype=torch.float16)
    memory = context.clone()
    context[0, 5], memory[0, 7] = 65504.0, 65504.0
    at = step(context, memory)
    for name in ck.detectors.names():
        assert score(name, at).isfinite().all()
    assert score("jsd", at).tolist() == pytest.approx([math.log(2), 0.0])
    assert score("context-entropy", at)[1].item() == pytest.approx(math.log(262_144), rel=1e-5)


def test_kept_set() -> None:
    context = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.039, 0.001]]).log()
    memory = torch.tensor([[0.001, 0.001, 0.001, 0.007, 0.39, 0.6]]).log()
    kept = kept_set(context, memory, select_top=1, relative_top=0.5)
    assert kept.tolist() == [[True, True, False, False, True, True]]
    kept = kept_set(context, memory, select_top=3, relative_top=1.0)
    assert kept.tolist() == [[True, True, True, True, True, True]]
    assert kept_set(context, memory, select_top=99, relative_top=1.0).all()
    assert kept_set(context, memory, select_top=1, relative_top=0.0).all()


FORBIDDEN = ("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "cpu", "nonzero")


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step(torch.randn(3, 20), torch.randn(3, 20))]
    steps.append(step(torch.empty(3, 20, device="meta"), torch.empty(3, 20, device="meta")))

    def refuse(*args: object) -> None:
        raise AssertionError("a detector looked at a value")

    for name in (*FORBIDDEN, "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    shapes = [tuple(score(name, at).shape) for name in ck.detectors.names() for at in steps]
    monkeypatch.undo()
    assert set(shapes) == {(3,)}


def test_registry() -> None:
    for name in ck.detectors.names():
        detector = ck.detectors.get(name)
        assert detector.name == name
        assert detector.summary
        assert set(detector.needs) <= {"context", "memory"}
        only = Step.from_logits({stream: torch.randn(2, 9) for stream in detector.needs})
        assert detector(only).shape == (2,)
    with pytest.raises(UnknownNameError, match="did you mean 'memory-entropy'"):
        ck.detectors.get("memory_entropi")
    with pytest.raises(ConflictKitError, match="valid: .*jsd"):
        ck.detectors.get("zzz")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pairwise_divergences_are_the_formula_for_any_two(count: int) -> None:
    rng = np.random.default_rng(count)
    logits = torch.from_numpy(rng.standard_normal((3, count, 12)) * 4)
    logits[:, :, 3] = -INF
    logits[1, -1] = logits[1, 0]
    probabilities = logits.softmax(-1).numpy()
    found = pairwise_jsd(logits.float().log_softmax(-1))
    assert found.dtype == torch.float32
    for row in range(3):
        expected = [
            [REFERENCES["jsd"](p, q) for q in probabilities[row]] for p in probabilities[row]
        ]
        assert found[row].numpy() == pytest.approx(np.array(expected), abs=1e-6)
        assert torch.equal(found[row], found[row].T)
    assert found[1, 0, -1] == 0
    assert (found.diagonal(dim1=1, dim2=2) == 0).all()
