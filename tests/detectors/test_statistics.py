"""Statistics of activations against the released code's numbers and written-out sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from conflictkit.detectors.statistics import STATISTICS, gini, hoyer, kurtosis
from tests.golden import mechanistic


def test_the_released_numbers(shared: Path) -> None:
    golden = mechanistic(shared, "spare_activation_stats.npz")
    names = {"kurtosis": "kurtosis", "hoyer": "hoyer", "gini": "gini",
             "l1-norm": "l1norm", "l2-norm": "l2norm"}  # fmt: skip
    for case in range(int(golden["n_cases"])):
        values = torch.from_numpy(golden[f"c{case}/x"])
        for name, theirs in names.items():
            found = STATISTICS[name](values)
            np.testing.assert_allclose(found, golden[f"c{case}/{theirs}"], rtol=1e-4)


def test_sums_written_out() -> None:
    rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    for row, k, h, g in zip(rows, kurtosis(rows), hoyer(rows), gini(rows), strict=True):
        x = row.double().numpy()
        assert k == pytest.approx(stats.kurtosis(x, fisher=False), rel=1e-5)
        size = len(x) ** 0.5
        ratio = abs(x).sum() / (x**2).sum() ** 0.5
        assert h == pytest.approx((size - ratio) / (size - 1), rel=1e-5)
        ordered = sorted(abs(x))
        total = sum((7 - place) * value for place, value in enumerate(ordered))
        assert g == pytest.approx(1 - 2 / 7 * total / sum(ordered), abs=1e-6)


def test_the_ends_of_their_ranges() -> None:
    alone = torch.tensor([0.0, 0.0, -3.0, 0.0])
    alike = torch.full((4,), 2.0)
    assert hoyer(alone) == pytest.approx(1.0)
    assert hoyer(alike) == pytest.approx(0.0, abs=1e-6)
    assert gini(alone) == pytest.approx(0.5)
    assert gini(alike) == pytest.approx(-0.25)
    for statistic in STATISTICS.values():
        assert statistic(torch.randn(2, 3, 5)).shape == (2, 3)
        assert statistic(torch.randn(5).half()).dtype == torch.float32
