"""SpARE's features: against released code and caches, and what becomes of dead ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conflictkit.errors import InvalidParameterError
from conflictkit.mechanics import spare
from conflictkit.mechanics.steering import pattern
from tests.golden import mechanistic, of_case

HALVES = torch.arange(80) % 2 == 0


def codes(live: int = 20, dead: int = 0, seed: int = 0) -> torch.Tensor:
    """`[80, live + dead]` sparse codes; the first six tell the label, odd ones by being low."""
    own = torch.Generator().manual_seed(seed)
    made = (torch.randn(80, live, generator=own) - 0.5).relu()
    for feature in range(6):
        side = HALVES if feature % 2 == 0 else ~HALVES
        made[:, feature] += side * (6.0 - feature) * 0.4
    return torch.cat([made, torch.zeros(80, dead)], dim=1)


@pytest.mark.parametrize("case", range(4))
def test_features_are_the_released_codes(case: int, shared: Path) -> None:
    get = of_case(mechanistic(shared, "spare_select_features.npz"), case)
    mi, expectation = torch.from_numpy(get["mi"]), torch.from_numpy(get["expectation"])
    context, memory = spare.select(mi, expectation, float(get["proportion"]))
    assert context == get["use_context"].tolist()
    assert memory == get["use_parameter"].tolist()


@pytest.mark.parametrize("case", range(4))
def test_targets_are_the_released_codes(case: int, shared: Path) -> None:
    get = of_case(mechanistic(shared, "spare_function_weights.npz"), case)
    for side, own, other in (("context", "ss", "so"), ("parameter", "so", "ss")):
        sure = spare.confidence(get[f"{own}_{side}"].tolist(), get[f"{other}_{side}"].tolist())
        found = spare.targets(torch.from_numpy(get[f"z_{side}"]), sure)
        expected = torch.from_numpy(get[f"w_{side}"]).double()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", range(4))
def test_information_is_the_released_codes(case: int, shared: Path) -> None:
    get = of_case(mechanistic(shared, "spare_mutual_information.npz"), case)
    values, labels = torch.from_numpy(get["X"]), torch.from_numpy(get["labels"]).bool()
    mean, spread = get["mi_mean"], get["mi_runs"].std(0)
    found = [spare.information(values, labels, seed).numpy() for seed in range(3)]
    for one in found:
        assert (np.abs(one - mean) <= np.maximum(3 * spread, 0.15)).all()
        assert np.abs(one - mean)[spread < 1e-9].max(initial=0) < 1e-3  # no ties, no noise
    assert found[0].max() > 0.1  # there is some
    assert np.abs(np.mean(found, 0) - mean).max() < 0.12
    difference = values[labels].mean(0) - values[~labels].mean(0)
    expected = torch.from_numpy(get["expectation"])
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", range(4))
def test_refusal_patterns_are_the_released_codes(case: int, shared: Path) -> None:
    get = of_case(mechanistic(shared, "roleref_pattern.npz"), case)
    differences = torch.from_numpy(get["diffs"]).transpose(0, 1)
    for name, share in (("03", 0.3), ("half", 0.5), ("all", 1.0)):
        expected = torch.from_numpy(get[f"pattern_{name}"])
        torch.testing.assert_close(pattern(differences, share), expected, atol=1e-9, rtol=0)


def test_a_share_that_keeps_nothing_is_refused() -> None:
    differences = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    assert (pattern(differences, 0.12) != 0).sum(-1).tolist() == [1, 1]
    with pytest.raises(InvalidParameterError, match=r"0\.1 keeps none of the dimensions"):
        pattern(differences, 0.1)


@pytest.mark.parametrize(("name", "layer"), [("Llama-2-7b-hf", 13), ("gemma-2-9b", 24)])
def test_features_of_the_released_caches(name: str, layer: int, shared: Path) -> None:
    folder = shared / "data" / "spare_cache" / name / "mutual_information"
    counts = shared / "parity" / "mechanistic" / "spare_real_selected_counts.json"
    if not folder.is_dir() or not counts.is_file():
        pytest.skip(f"needs {folder} and {counts}")
    cached = torch.load(
        folder / f"layer-{layer} mi_expectation.pt", map_location="cpu", weights_only=True
    )
    told: Any = next(
        one for one in json.loads(counts.read_text(encoding="utf-8"))["cases"]
        if (one["model"], one["layer"]) == (name, layer)
    )  # fmt: skip
    mi, expectation = cached["mi_scores"], cached["expectation"]
    context, memory = spare.select(mi, expectation, told["proportion"])
    assert (len(context), len(memory)) == (told["n_ctx"], told["n_par"])
    assert (expectation[context] > 0).all()
    assert (expectation[memory] < 0).all()
    for side in (context, memory):
        assert mi[side].diff().max() <= 0  # most informative first


@pytest.mark.parametrize("variant", spare.VARIANTS)
def test_what_tells_the_sides_is_found(variant: str) -> None:
    behind = torch.cat([torch.zeros(80, 9), codes()], dim=1)  # dead ones stand before
    context, memory = spare.features(behind, HALVES, 0.85, variant)
    assert set(context[:3]) == {9, 11, 13}
    assert set(memory[:3]) == {10, 12, 14}


@pytest.mark.slow
def test_dead_features_do_not_crowd_out_live_ones() -> None:
    live, many, share = codes(), codes(dead=300), 0.15
    dead = set(range(20, 320))
    # As released, the noise of the dead is most of the sum.
    noise = spare.information(many, HALVES)
    assert noise[20:].sum() > 1.5 * noise[:20].sum()
    corrected, released = (
        spare.features(many, HALVES, share, variant) for variant in spare.VARIANTS
    )
    for context, memory in (corrected, released):
        assert not dead & {*context, *memory}  # they differ on neither side
    # The same share of what the sum would have been, within the noise of its estimate.
    sizes = [len(one[0]) + len(one[1]) for one in (corrected, released)]
    assert abs(sizes[0] - sizes[1]) <= 1
    assert corrected == ([0], [3, 1])
    assert spare.features(live, HALVES, share) == ([0], [])


def test_only_the_rows_of_live_features_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = spare.information

    def watch(values: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(values.shape[1])
        return real(values, *rest)

    monkeypatch.setattr(spare, "information", watch)
    spare.features(codes(dead=100), HALVES, 0.02)
    spare.features(codes(dead=100), HALVES, 0.02, "released")
    assert seen == [20 + 64, 120]


@pytest.mark.slow
@pytest.mark.parametrize("variant", spare.VARIANTS)
def test_a_seed_gives_the_same_again(variant: str) -> None:
    many = codes(dead=100, seed=4)
    one, two, other = (spare.features(many, HALVES, 0.9, variant, seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other  # ties are broken otherwise
    first, again = (spare.information(many, HALVES, 7) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("variant", spare.VARIANTS)
@pytest.mark.parametrize("what", ["dead", "alike"])
def test_nothing_to_find_is_said(variant: str, what: str) -> None:
    nothing = torch.zeros(80, 12) if what == "dead" else torch.ones(80, 12)
    with pytest.raises(InvalidParameterError, match="no feature of the autoencoder tells"):
        spare.features(nothing, HALVES, 0.5, variant)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), 7])
def test_a_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(InvalidParameterError, match="share must lie between 0 and 1, not"):
        spare.features(codes(), HALVES, share)


def test_a_feature_on_neither_side_is_passed_over() -> None:
    scores = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1])
    difference = torch.tensor([0.0, -1.0, 2.0, 0.0, 3.0])
    # 0.5 + 0.4 exceeds half of 1.5: two features, and the first does not count.
    assert spare.select(scores, difference, 0.5) == ([2], [1])
    assert spare.select(scores, difference, 0.999) == ([2, 4], [1])
    assert spare.select(scores, difference, 0.1) == ([], [1])


def test_confident_prompts_count_more() -> None:
    sure = spare.confidence([1.0, 3.0], [3.0, 1.0])
    torch.testing.assert_close(sure, torch.tensor([0.75, 0.25]).double())
    found = spare.targets(torch.tensor([[4.0, 0.0], [0.0, 8.0]]), sure)
    torch.testing.assert_close(found, torch.tensor([3.0, 2.0]).double())
