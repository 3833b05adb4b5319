"""Probes: what a fit minimises, what a file holds, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from scipy import optimize

from conflictkit.detectors.probe import LayerProbe, fit
from conflictkit.errors import InvalidParameterError, ProbeError, UnknownNameError

DIGEST = "0123456789abcdef" * 4


def rows(count: int = 120, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    own = torch.Generator().manual_seed(1)
    values = torch.randn(count, width, generator=own) * torch.tensor([1.0, 5.0, 0.2, 1.0, 1.0])
    values += torch.tensor([3.0, 0.0, -1.0, 0.0, 9.0])
    noise = torch.randn(count, generator=own)
    return values, values[:, 0] - 3 + 0.4 * values[:, 1] + noise > 0


def probe(**given: Any) -> LayerProbe:
    fields: dict[str, Any] = {
        "target": "conflict", "kind": "residual", "layer": 3,
        "weights": torch.tensor([0.5, -1.25, 1 / 3]), "bias": 0.1, "model": "tiny",
        "fingerprint": DIGEST, "about": {"auroc": 0.9, "n": 7},
    }  # fmt: skip
    return LayerProbe(**fields | given)


@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_a_fit_is_the_least_of_its_loss(penalty: str, strength: float) -> None:
    values, labels = rows()
    weights, bias = fit(values, labels, penalty=penalty, strength=strength)
    x, y = values.double().numpy(), np.where(labels.numpy(), 1.0, -1.0)
    spread = x.std(0)
    z = (x - x.mean(0)) / spread

    def loss(w: Any, b: float) -> float:
        sizes = np.abs(w).sum() if penalty == "l1" else (w**2).sum() / 2
        return float(strength * sizes + np.logaddexp(0, -y * (z @ w + b)).sum())

    w = weights.double().numpy() * spread
    mine = loss(w, bias + float(weights.double().numpy() @ x.mean(0)))
    found = optimize.minimize(
        lambda p: loss(p[:-1], p[-1]), np.zeros(6), method="Powell",
        options={"maxiter": 200_000, "maxfev": 200_000, "xtol": 1e-10, "ftol": 1e-14},
    )  # fmt: skip
    assert mine <= found.fun + 1e-3
    if penalty == "l1" and strength == 20.0:
        assert (np.abs(w[2:]) < 1e-6).any()


def test_the_papers_optimiser_is_what_it_says() -> None:
    """Twenty epochs of Adam on the penalised loss, written out without autograd."""
    values, labels = rows()
    weights, bias = fit(values, labels, optimiser="paper", strength=50.0, seed=3)
    generator = torch.Generator().manual_seed(3)
    size = values.shape[1] ** -0.5
    p = torch.empty(6).uniform_(-size, size, generator=generator).double().numpy()
    x, y = values.double().numpy(), labels.double().numpy()
    m, v, rate, step = np.zeros(6), np.zeros(6), 2e-3, 0
    for _ in range(20):
        for batch in torch.randperm(120, generator=generator).split(64):
            part = batch.numpy()
            ones = np.concatenate([x[part], np.ones((len(part), 1))], 1)
            error = 1 / (1 + np.exp(-ones @ p)) - y[part]
            gradient = ones.T @ error / len(part) + 50 * 6e-4 * np.sign(p)
            step += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            p = p - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        rate *= 0.95
    np.testing.assert_allclose(weights, p[:-1], atol=1e-4)
    assert bias == pytest.approx(p[-1], abs=1e-4)


def test_a_probe_reads_its_width_and_nothing_else() -> None:
    made = probe()
    values = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    expected = torch.tensor([0.5 - 2.5 + 1.0 + 0.1, 0.1])
    torch.testing.assert_close(made.logit(values), expected)
    torch.testing.assert_close(made(values), 1 / (1 + (-expected).exp()))
    assert made(values[None]).shape == (1, 2)
    with pytest.raises(InvalidParameterError, match="width 3, not \\[4\\]"):
        made(torch.zeros(4))


def test_a_file_gives_back_exactly_what_was_written(tmp_path: Path) -> None:
    made = probe()
    made.save(tmp_path / "probe.safetensors")
    read = LayerProbe.load(tmp_path / "probe.safetensors")
    assert torch.equal(read.weights, made.weights)
    for name in ("target", "kind", "layer", "bias", "model", "fingerprint", "about"):
        assert getattr(read, name) == getattr(made, name)
    assert os.listdir(tmp_path) == ["probe.safetensors"]
    assert load_file(tmp_path / "probe.safetensors").keys() == {"weights"}
    read.check("tiny", DIGEST)
    with pytest.raises(ProbeError, match="fitted on the model 'tiny', not on 'other'.*fit-probe"):
        read.check("other", "f" * 64)
    with pytest.raises(ProbeError, match="cannot write"):
        made.save(tmp_path / "none" / "probe.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "format must be"),
        ({"version": 2}, "version 2 cannot be read"),
        ({"target": "truth"}, "target must be one of conflict, source"),
        ({"kind": "stream"}, "kind must be one of"),
        ({"layer": -1}, "layer must be"),
        ({"layer": True}, "layer must be"),
        ({"bias": "0"}, "bias must be"),
        ({"bias": 10**400}, "bias must be"),
        ({"fingerprint": "x"}, "64 hexadecimal"),
        ({"about": [1]}, "about an object"),
        ({"about": ...}, "lacks the field 'about'"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    told: dict[str, Any] = {
        "format": "conflictkit-probe", "version": 1, "target": "conflict", "kind": "mlp",
        "layer": 0, "bias": 0.5, "model": "tiny", "fingerprint": DIGEST, "about": {},
    }  # fmt: skip
    told = {name: value for name, value in (told | change).items() if value is not ...}
    path = tmp_path / "probe.safetensors"
    path.write_bytes(save({"weights": torch.ones(2)}, metadata={"conflictkit": json.dumps(told)}))
    with pytest.raises(ProbeError, match=said) as caught:
        LayerProbe.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_probe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    probe().save(path)
    good = path.read_bytes()
    told = {"conflictkit": "{}"}
    for data in [
        b"",
        good[:30],
        b"\x80\x04K\x01.",
        (2**62).to_bytes(8, "little") + good[8:],
        save({"weights": torch.ones(2)}),
        save({"other": torch.ones(2)}, metadata=told),
        save({"weights": torch.ones(2, dtype=torch.float16)}, metadata=told),
        save({"weights": torch.ones(2, 2)}, metadata={"conflictkit": header(good)}),
        save({"weights": torch.tensor([1.0, torch.nan])}, metadata={"conflictkit": header(good)}),
        save({"weights": torch.ones(2)}, metadata={"conflictkit": "[" * 20_000}),
        save({"weights": torch.ones(2)}, metadata={"conflictkit": '{"a": NaN}'}),
    ]:
        path.write_bytes(data)
        with pytest.raises(ProbeError):
            LayerProbe.load(path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", "."):
        with pytest.raises(ProbeError, match="no such file"):
            LayerProbe.load(tmp_path / name)


def header(data: bytes) -> str:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])["__metadata__"]["conflictkit"]


def test_what_cannot_be_fitted_is_refused() -> None:
    values, labels = rows()
    for given, error, said in [
        ({"penalty": "l3"}, UnknownNameError, "penalty"),
        ({"optimiser": "adam"}, UnknownNameError, "optimiser"),
        ({"strength": 0}, InvalidParameterError, "above 0"),
    ]:
        with pytest.raises(error, match=said):
            fit(values, labels, **given)
    with pytest.raises(InvalidParameterError, match="both kinds"):
        fit(values, torch.ones(120, dtype=torch.bool))
    with pytest.raises(InvalidParameterError, match="\\[rows\\]"):
        fit(values, labels[:-1])
    with pytest.raises(InvalidParameterError, match="not finite"):
        fit(values * torch.inf, labels)
