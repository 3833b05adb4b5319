"""The policy that ships with Atlas."""

from __future__ import annotations

import conflictkit as ck
from conflictkit.interventions.contrast.auto import SIGNALS


def test_the_policy_belongs_to_the_shipped_weights() -> None:
    model, policy = ck.load("atlas"), ck.Policy.load(ck.atlas.auto())
    assert policy.model is not None
    again = "the weights have changed: run experiments/auto/fit.py"
    assert policy.model.fingerprint == model.fingerprint, again


def test_the_policy_is_a_fitted_one() -> None:
    policy = ck.Policy.load(ck.atlas.auto())
    assert policy.controller.name == "auto"
    assert any(policy.controller.params[name] for name in SIGNALS)
