"""Every rule against the formula of its paper, written again in float64 numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conflictkit import methods

Row = NDArray[np.float64]
TIE = 1e-5


def log_softmax(row: Row) -> Row:
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def entropy(logprobs: Row) -> float:
    p = np.exp(logprobs)
    return float(-(p[p > 0] * logprobs[p > 0]).sum())


def jsd(l_c: Row, l_m: Row) -> float:
    p, q = np.exp(l_c), np.exp(l_m)
    middle = (p + q) / 2
    return float(
        0.5 * (p[p > 0] * np.log(p / middle, where=p > 0, out=np.zeros_like(p))[p > 0]).sum()
        + 0.5 * (q[q > 0] * np.log(q / middle, where=q > 0, out=np.zeros_like(q))[q > 0]).sum()
    )


def read(context: Row, memory: Row) -> tuple[Row, Row, NDArray[np.bool_]]:
    """Log-probabilities by the -inf rules, over the tokens that the context allows."""
    allowed = context > -np.inf
    l_m = log_softmax(memory[allowed])
    finite = l_m > -np.inf
    if not finite.all():
        l_m = log_softmax(np.where(finite, l_m, l_m[finite].min()))
    return log_softmax(context[allowed]), l_m, allowed


def plain(l_c: Row, l_m: Row) -> Row:
    return l_c


def memory(l_c: Row, l_m: Row) -> Row:
    return l_m


def interpolate(l_c: Row, l_m: Row, weight: float = 0.75) -> Row:
    return weight * l_c + (1 - weight) * l_m


def cad(l_c: Row, l_m: Row, alpha: float = 1.0) -> Row:
    return l_c + alpha * (l_c - l_m)


def adacad(l_c: Row, l_m: Row, threshold: float = 0.0) -> Row:
    return cad(l_c, l_m, max(jsd(l_c, l_m), threshold))


def coiecd(l_c: Row, l_m: Row, beta: float = 1.0, ratio: float = 4.0) -> Row:
    dominant = l_c > l_c.max() - np.log(ratio) + TIE
    flagged = dominant & (dominant.sum() >= 2)
    return np.where(flagged, l_c, l_m) + beta * (l_c - l_m)


def ck_plug(
    l_c: Row,
    l_m: Row,
    alpha: float = 0.5,
    adaptive: bool = True,
    select_top: int = 10,
    relative_top: float = 0.01,
    epsilon: float = 0.0,
) -> Row:
    kept = np.zeros(len(l_c), bool)
    for row in (l_c, l_m):
        least = np.sort(row)[::-1][min(select_top, len(row)) - 1]
        kept |= (row >= least) | (row >= row.max() + np.log(relative_top))
    k_c, k_m = log_softmax(l_c[kept]), log_softmax(l_m[kept])
    h_c, h_m = entropy(k_c), entropy(k_m)
    if not h_m - h_c < epsilon * h_c - TIE or np.abs(k_c - k_m).max() <= TIE:
        return l_c
    if not adaptive and alpha == 0 and k_c.argmax() == k_m.argmax():
        return l_c
    norm = h_c + h_m * (1 + abs(h_c - h_m) / (h_c + h_m))
    of_memory = 2 * h_c / norm if adaptive else alpha
    of_difference = 2 * h_m / norm if adaptive else 1 - alpha
    scores = np.full(len(l_c), -np.inf)
    scores[kept] = of_memory * k_m + of_difference * (k_c - k_m)
    return scores


def arr(l_c: Row, l_m: Row) -> Row:
    share = jsd(l_c, l_m) / np.log(2)
    tau = 1 + share if np.exp(l_c.max()) > np.exp(l_m.max()) + TIE else 1 - share
    return tau * l_c + (1 - tau) * l_m


def grd(l_c: Row, l_m: Row, depth: float = 0.75, gate: str = "full") -> Row:
    """The first step of an answer."""
    a, b = l_c.argmax(), l_m.argmax()
    confident, surer = np.exp(l_m[b]) > 0.5 + TIE, entropy(l_m) < entropy(l_c) - TIE
    trusted = {"full": confident and surer, "confidence": confident, "entropy": surer}[gate]
    if a == b or not trusted:
        return l_c
    m_c, m_p = l_c[a] - l_c[b], l_m[b] - l_m[a]
    tau = (1 - depth) * (m_p / (m_c + m_p) if m_c + m_p > 1e-9 else 1.0)
    return tau * l_c + (1 - tau) * l_m


def auto(l_c: Row, l_m: Row, bias: float = 0.0, reach: float = 1.0, **per: float) -> Row:
    """The first step of an answer."""
    tops_c, tops_m = l_c >= l_c.max() - TIE, l_m >= l_m.max() - TIE
    if (tops_c & tops_m).any():
        return l_c
    seen = {
        "jsd": jsd(l_c, l_m),
        "context_entropy": entropy(l_c),
        "memory_entropy": entropy(l_m),
        "context_confidence": np.exp(l_c.max()),
        "memory_confidence": np.exp(l_m.max()),
        "context_rank": np.log(2 + (l_c > l_c[tops_m].max() + TIE).sum()),
        "memory_rank": np.log(2 + (l_m > l_m[tops_c].max() + TIE).sum()),
    }
    tau = reach / (1 + np.exp(-bias - sum(per[name] * seen[name] for name in per)))
    return tau * l_c + (1 - tau) * l_m


CASES: list[tuple[Callable[..., Row], dict[str, object]]] = [
    (plain, {}),
    (memory, {}),
    (interpolate, {}),
    (interpolate, {"weight": 0.0}),
    (interpolate, {"weight": 0.3}),
    (cad, {}),
    (cad, {"alpha": 0.0}),
    (cad, {"alpha": 2.5}),
    (adacad, {}),
    (adacad, {"threshold": 0.3}),
    (adacad, {"threshold": 1.5}),
    (coiecd, {}),
    (coiecd, {"beta": 0.5, "ratio": 2.0}),
    (coiecd, {"beta": 2.0, "ratio": 20.0}),
    (ck_plug, {}),
    (ck_plug, {"epsilon": 1.0, "select_top": 3}),
    (ck_plug, {"epsilon": -0.2, "select_top": 2, "relative_top": 0.2}),
    (ck_plug, {"alpha": 0.0, "adaptive": False, "epsilon": 1.0}),
    (ck_plug, {"alpha": 0.2, "adaptive": False, "select_top": 1, "relative_top": 0.5}),
    (ck_plug, {"alpha": 1.0, "adaptive": False}),
    (arr, {}),
    (grd, {}),
    (grd, {"gate": "confidence", "depth": 0.5}),
    (grd, {"gate": "entropy", "depth": 1.0}),
    (auto, {}),
    (auto, {"bias": -1.0, "reach": 0.5}),
    (auto, {"jsd": 3.0, "context_entropy": -0.7, "reach": 2.0}),
    (auto, {"memory_entropy": 0.9, "context_confidence": 2.0, "memory_confidence": -3.0}),
    (auto, {"bias": 0.5, "context_rank": -0.8, "memory_rank": 0.4}),
]


def streams(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`[rows, vocab]` logits: sharp, flat, alike and opposed rows; every third pair with -inf."""
    rng = np.random.default_rng(seed)
    rows, vocab = 64, 3 + 7 * (seed % 5)
    scale = rng.choice([0.3, 1.0, 3.0, 10.0], (2, rows, 1))
    context, other = rng.standard_normal((2, rows, vocab)) * scale
    alike = rng.random((rows, 1)) < 0.3
    other = np.where(alike, context * rng.choice([0.5, 1.0, 2.0], (rows, 1)), other)
    if seed % 3 == 0:
        context[rng.random((rows, vocab)) < 0.2] = -np.inf
        other[rng.random((rows, vocab)) < 0.2] = -np.inf
        context[:, 0], other[:, 0] = 0.5, 0.25
    return context.astype(np.float32), other.astype(np.float32)


@pytest.mark.parametrize(("reference", "params"), CASES)
@pytest.mark.parametrize("seed", range(6))
def test_rule_is_the_formula(
    reference: Callable[..., Row], params: dict[str, object], seed: int
) -> None:
    context, other = streams(seed)
    rule = methods.build(reference.__name__.replace("_", "-"), **params)
    combined = rule.combine(torch.from_numpy(context), torch.from_numpy(other))
    ours = combined.logits.double().log_softmax(-1).numpy()
    for row in range(len(context)):
        l_c, l_m, allowed = read(context[row].astype(float), other[row].astype(float))
        expected = np.full(len(allowed), -np.inf)
        expected[allowed] = log_softmax(reference(l_c, l_m, **params))
        np.testing.assert_allclose(ours[row], expected, rtol=2e-5, atol=2e-5)


def test_every_method_has_a_reference() -> None:
    assert {case.__name__.replace("_", "-") for case, _ in CASES} == set(methods.names(edits=False))


def test_grd_decides_once_per_row_and_remembers() -> None:
    rule = methods.build("grd")
    agree = torch.tensor([[4.0, 0.0, 0.0]])
    context, sure = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 6.0, 0.0]])
    unsure = torch.tensor([[0.0, 0.5, 0.0]])
    state = rule.initial(3)
    assert state["decision"].tolist() == [0, 0, 0]

    first = rule.combine(agree.repeat(3, 1), agree.repeat(3, 1), state)
    assert first.state["decision"].tolist() == [0, 0, 0]
    second = rule.combine(context.repeat(3, 1), torch.cat([sure, unsure, context]), first.state)
    assert second.state["decision"].tolist() == [2, 1, 0]
    # What would convince a fresh row does not move one that has decided.
    third = rule.combine(context.repeat(3, 1), torch.cat([unsure, sure, unsure]), second.state)
    assert third.state["decision"].tolist() == [2, 1, 1]
    assert third.context_weight[0] < 1
    assert torch.equal(third.logits[1:], context.repeat(2, 1))
    # The state is per row, so reordering rows and state reorders the result.
    order = torch.tensor([2, 0, 1])
    moved = rule.combine(
        context.repeat(3, 1),
        torch.cat([unsure, sure, unsure])[order],
        {name: values[order] for name, values in second.state.items()},
    )
    assert torch.equal(moved.logits, third.logits[order])
    assert state["decision"].tolist() == [0, 0, 0]


def test_auto_judges_once_per_row_and_remembers() -> None:
    rule = methods.build("auto", memory_confidence=-8.0, bias=4.0)
    agree = torch.tensor([[4.0, 0.0, 0.0]])
    context, sure = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 6.0, 0.0]])
    unsure = torch.tensor([[0.0, 0.5, 0.0]])
    first = rule.combine(agree.repeat(3, 1), agree.repeat(3, 1))
    assert torch.equal(first.logits, agree.repeat(3, 1))
    assert first.state["trust"].tolist() == [-1, -1, -1]

    second = rule.combine(context.repeat(3, 1), torch.cat([sure, unsure, context]), first.state)
    trust = second.state["trust"]
    expected = [1 / (1 + np.exp(8 * p - 4)) for p in (0.9951, 0.4519)]
    np.testing.assert_allclose(trust[:2], expected, atol=1e-3)
    assert trust[2] == -1
    # What would be judged otherwise afresh moves no row that was judged.
    order = torch.tensor([2, 0, 1])
    swapped = torch.cat([agree, sure, unsure])
    third = rule.combine(context.repeat(3, 1), swapped, second.state)
    assert torch.equal(third.state["trust"][:2], trust[:2])
    assert torch.equal(third.context_weight[:2, 0], trust[:2])
    assert third.state["trust"][2] == trust[1]
    state = {name: values[order] for name, values in second.state.items()}
    moved = rule.combine(context.repeat(3, 1), swapped[order], state)
    assert torch.equal(moved.logits, third.logits[order])


def test_documented_equivalences() -> None:
    context, other = (torch.from_numpy(part) for part in streams(1))
    guided = methods.build("cad", alpha=0.7).combine(context, other).logits.log_softmax(-1)
    scale = 1.7  # classifier-free guidance: g * (l_c - l_m) + l_m
    l_c, l_m = context.log_softmax(-1), other.log_softmax(-1)
    torch.testing.assert_close(guided, (scale * (l_c - l_m) + l_m).log_softmax(-1))
    halfway = methods.build("ck-plug", alpha=0.5, adaptive=False, epsilon=1.0)
    kept = halfway.combine(context, other).logits
    assert torch.equal(kept.argmax(-1), context.argmax(-1))


def test_released_coiecd_turns_into_cad_where_the_context_is_masked() -> None:
    context, other = (torch.from_numpy(part) for part in streams(0))
    masked = (context == -torch.inf).any(-1)
    released = methods.build("coiecd", variant="released").combine(context, other).logits
    cad = methods.build("cad").combine(context, other).logits
    assert masked.any()
    torch.testing.assert_close(released[masked], cad[masked])
