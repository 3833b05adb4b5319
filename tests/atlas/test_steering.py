"""What ships for steering Atlas: it belongs to these weights, and does what its card says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.errors import SAEError
from conflictkit.interventions.edited import SpARE, SteeredRule
from conflictkit.interventions.sae import SAE
from conflictkit.policy import Policy
from tests.tiny import byte_tokenizer, llama

METHODS = ("spare", "caa", "repe", "iti", "refusal-region")


@pytest.fixture(scope="module")
def atlas() -> Any:
    return ck.load("atlas")


@pytest.fixture(scope="module")
def card() -> Any:
    return json.loads((ck.atlas.saes()[0].parent / "card.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", METHODS)
def test_fits_belong_to_the_shipped_weights(method: str, atlas: Any) -> None:
    file = ck.atlas.steering(method)
    assert file is not None
    policy = Policy.load(file)
    assert policy.model is not None
    assert policy.model.fingerprint == atlas.fingerprint
    rule = policy.controller.rule
    assert isinstance(rule, SteeredRule)
    assert rule.name == method
    assert rule.is_settled
    if isinstance(rule, SpARE):
        rule.check_model("atlas", atlas.fingerprint)  # the digest too


def test_features_of_another_models_autoencoders_are_refused() -> None:
    file = ck.atlas.steering("spare")
    assert file is not None
    loose = Policy(Policy.load(file).controller)  # tied to nothing by itself
    other = ck.load(llama(300), tokenizer=byte_tokenizer())
    with pytest.raises(SAEError, match="atlas"):
        other.ask("Who?", "She.", policy=loose)


def test_there_is_nothing_for_other_methods() -> None:
    assert ck.atlas.steering("cad") is None


def test_the_autoencoders_are_small_and_belong_to_the_shipped_weights(
    atlas: Any, card: Any
) -> None:
    files = [file for folder in ck.atlas.saes() for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 6_000_000
    assert card["model"]["fingerprint"] == atlas.fingerprint
    saes = [SAE.load(folder) for folder in ck.atlas.saes()]
    assert [sae.layer for sae in saes] == [row["layer"] for row in card["layers"]]
    for sae, row in zip(saes, card["layers"], strict=True):
        sae.check("atlas", atlas.fingerprint, 192, 6)
        assert row["l0"] <= 32
        assert row["answers_kept"] >= 0.95
        assert row["features"] == sae.features
        assert row["digest"] == sae.digest, "the card is of other weights"


@pytest.mark.slow
@torch.no_grad()
def test_sparsity_and_variance_are_about_what_the_card_says(atlas: Any, card: Any) -> None:
    cases = ck.atlas.cases("test")[::40]
    body = anatomy.find(atlas.model)
    for folder, row in zip(ck.atlas.saes(), card["layers"], strict=True):
        sae = SAE.load(folder)
        seen: list[torch.Tensor] = []

        def keep(_: Any, __: Any, out: Any, seen: list[torch.Tensor] = seen) -> None:
            seen.append(out[0] if isinstance(out, tuple) else out)

        hook = body.layers[sae.layer].register_forward_hook(keep)
        try:
            for case in cases:
                prompt = atlas.prompts(case.question, list(case.contexts))["context"]
                atlas.model(torch.tensor([prompt.ids]))
        finally:
            hook.remove()
        values = torch.cat([one[0] for one in seen])
        codes = sae.encode(values)
        assert float((codes > 0).sum(-1).double().mean()) == pytest.approx(row["l0"], abs=9)
        left = (values - sae.decode(codes)).square().sum()
        explained = float(1 - left / (values - values.mean(0)).square().sum())
        assert explained == pytest.approx(row["explained_variance"], abs=0.08)


def test_a_dispute_is_settled_either_way(atlas: Any) -> None:
    question, context = "What is the capital of Poland?", "The capital of Poland is London."
    for method in ("spare", "caa", "iti"):
        said = [
            atlas.ask(question, context, method, prefer=side, trace=False).text
            for side in ("context", "memory")
        ]
        assert said == ["London", "Warsaw"]
