"""Where a model declines, against the same derived again from the model by plain hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conflictkit.errors import EmptyInputError, InvalidParameterError, UnknownNameError
from conflictkit.interventions.directions import Directions
from conflictkit.mechanics.steering import FEWEST, REGION, fit_refusal
from tests.mechanics.test_steering import SHORT, ids, read
from tests.mechanics.test_steering import atlas as atlas


@pytest.mark.slow
@pytest.mark.parametrize("variant", REGION)
def test_a_refusal_region_is_derived_again(variant: str, atlas: Any) -> None:
    answerable, refused = SHORT[:FEWEST], SHORT[20 : 20 + FEWEST + 3]
    fit = fit_refusal(atlas, answerable, refused, share=0.25, variant=variant)
    assert fit.about == {
        "method": "refusal-region", "pairs": FEWEST, "share": 0.25, "variant": variant,
    }  # fmt: skip
    both = [
        torch.stack([read(atlas, ids(atlas, one))[0] for one in cases[:FEWEST]]).double()
        for cases in (answerable, refused)
    ]
    d = (both[0] - both[1]).numpy()
    rule: Any = fit.policy.controller.rule
    found = Directions.read(rule.directions).vectors
    assert list(found) == list(range(int(variant == "released"), 6))
    for layer, vector in found.items():
        mine = d[:, layer - (variant == "released")]
        least = np.argsort(mine.var(0))[:48]
        expected = np.zeros(192)
        expected[least] = mine.mean(0)[least]
        np.testing.assert_allclose(vector.numpy(), expected, atol=1e-4)
    prompt = ids(atlas, SHORT[50])
    _, expected = read(atlas, prompt, {at: -0.1 * v for at, v in found.items()}, last=False)
    with rule.attach(atlas.model), torch.no_grad():
        steered = atlas.model(prompt).logits[0, -1].double().log_softmax(-1)
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=1e-4)


def test_refusal_regions_need_pairs(atlas: Any) -> None:
    with pytest.raises(EmptyInputError, match=f"7 pairs of cases: {FEWEST} are needed"):
        fit_refusal(atlas, SHORT[:7], SHORT[20:40])
    with pytest.raises(UnknownNameError, match="variant"):
        fit_refusal(atlas, SHORT[:9], SHORT[20:40], variant="paper")
    for share in (0, 1.5, -1.0, float("nan")):
        with pytest.raises(InvalidParameterError, match="share must lie between 0 and 1"):
            fit_refusal(atlas, SHORT[:9], SHORT[20:40], share=share)
