"""The scores that rules hand out, against their definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conflictkit import methods

VOCAB, ROWS = 50, 6


def streams():
    draw = np.random.default_rng(3)
    context, memory = (draw.normal(0, scale, (ROWS, VOCAB)) for scale in (2.0, 4.0))
    return context.astype(np.float32), memory.astype(np.float32)


def probabilities(logits):
    odds = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def kept(p, q):
    def plausible(x):
        tenth = np.sort(x, -1)[:, -10][:, None]
        return x >= np.minimum(tenth, 0.01 * x.max(-1, keepdims=True))

    return plausible(p) | plausible(q)


def scores(name, **params):
    context, memory = streams()
    out = methods.build(name, **params).combine(torch.tensor(context), torch.tensor(memory))
    return {key: value.double().numpy() for key, value in out.scores.items()}


@pytest.mark.parametrize("variant", ["mended", "released"])
@pytest.mark.parametrize("params", [{}, {"alpha": 0.3}])
def test_ck_plug_tells_its_entropies_on_the_kept_tokens(variant, params):
    p, q = map(probabilities, streams())
    keep = kept(p, q)
    p, q = (np.where(keep, x, 0) / np.where(keep, x, 0).sum(-1, keepdims=True) for x in (p, q))
    h_c, h_m = entropy(p), entropy(q)
    found = scores("ck-plug", variant=variant, **params)
    np.testing.assert_allclose(found["context_entropy"], h_c, atol=1e-5)
    np.testing.assert_allclose(found["memory_entropy"], h_m, atol=1e-5)
    np.testing.assert_allclose(found["confidence_gain"], h_m - h_c, atol=1e-5)
    np.testing.assert_allclose(found["alpha"], params.get("alpha", h_c / (h_c + h_m)), atol=1e-5)


def test_grd_tells_its_entropies():
    p, q = map(probabilities, streams())
    found = scores("grd")
    np.testing.assert_allclose(found["context_entropy"], entropy(p), atol=1e-5)
    np.testing.assert_allclose(found["memory_entropy"], entropy(q), atol=1e-5)


def test_auto_tells_what_a_fit_needs():
    context, memory = streams()
    p, q = map(probabilities, (context, memory))
    m = (p + q) / 2
    a, b = p.argmax(-1), q.argmax(-1)
    rows = np.arange(ROWS)
    wanted = {
        "jsd": ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2,
        "context_entropy": entropy(p),
        "memory_entropy": entropy(q),
        "context_confidence": p.max(-1),
        "memory_confidence": q.max(-1),
        "context_rank": np.log(1 + (p >= p[rows, b][:, None]).sum(-1)),
        "memory_rank": np.log(1 + (q >= q[rows, a][:, None]).sum(-1)),
        "differ": a != b,
        "tau": np.ones(ROWS),
        "judgement": np.ones(ROWS),
    }
    assert wanted["differ"].sum() > 0
    found = scores("auto", bias=50.0)
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["adacad", "arr"])
def test_jsd_is_told_where_it_decides(name):
    p, q = map(probabilities, streams())
    m = (p + q) / 2
    jsd = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
    np.testing.assert_allclose(scores(name)["jsd"], jsd, atol=1e-5)


@pytest.mark.parametrize("variant", ["mended", "released"])
def test_alpha_is_told_where_there_is_one(variant):
    np.testing.assert_array_equal(scores("cad", alpha=0.25, variant=variant)["alpha"], 0.25)
    found = scores("adacad", threshold=0.6, variant=variant)
    np.testing.assert_allclose(found["alpha"], np.maximum(found["jsd"], 0.6), atol=1e-7)
    assert (found["alpha"] == np.float32(0.6)).any()
    assert (found["alpha"] > 0.61).any()
