"""Fits of methods that steer, against the same derived again from the model by plain hooks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import conflictkit as ck
from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    PolicyError,
    SAEError,
    UnknownNameError,
)
from conflictkit.evaluation.metrics import judge
from conflictkit.interventions.directions import Directions
from conflictkit.interventions.edited import SpARE
from conflictkit.interventions.edited import spare as rules
from conflictkit.interventions.sae import SAE
from conflictkit.mechanics import spare, steering
from conflictkit.mechanics.steering import FEWEST, fit_steering
from conflictkit.policy import Policy
from conflictkit.prompts import answer_ids
from tests import saes

SHORT = [one for one in ck.atlas.cases("train", "resistance") if one.meta["layout"] == "sentence"]
CASES = SHORT[12:36]
LAYERS = [2, 3]
ASKED = [(one.question, one.contexts) for one in SHORT[40:46]]


@pytest.fixture(scope="module")
def atlas() -> Any:
    return ck.load("atlas")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers and activations, for all fits of this file."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def fits(atlas: Any, kept: Path) -> Any:
    """Method -> its fit, made once."""
    made: dict[str, Any] = {}

    def get(method: str) -> Any:
        if method not in made:
            made[method] = fit_steering(atlas, CASES, method, layers=LAYERS, keep=kept)
        return made[method]

    return get


def ids(model: Any, case: Any) -> torch.Tensor:
    return torch.tensor([model.prompts(case.question, list(case.contexts))["context"].ids])


def read(model: Any, prompt: torch.Tensor, vectors: Any = None, last: bool = True) -> Any:
    """The stream behind every layer at the last position, and log-probabilities there; `vectors`,
    by layer, are added at the last position or at all."""
    streams, hooks = [], []

    def behind(layer: int) -> Any:
        def hook(_: Any, __: Any, out: Any) -> Any:
            values = (out[0] if isinstance(out, tuple) else out).clone()
            if vectors is not None and layer in vectors:
                values[:, -1 if last else slice(None)] += vectors[layer]
            streams.append(values[0, -1])
            return (values, *out[1:]) if isinstance(out, tuple) else values

        return hook

    for layer, module in enumerate(model.model.model.layers):
        hooks.append(module.register_forward_hook(behind(layer)))
    with torch.no_grad():
        logits = model.model(prompt).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return torch.stack(streams), logits.double().log_softmax(-1)


@pytest.fixture(scope="module")
def runs(atlas: Any) -> Any:
    """`[cases, layers, width]` float64 streams of the cases that follow a source, the cases, and
    whether that is the context."""
    answers = atlas.ask_batch(
        [one.question for one in CASES], [one.contexts for one in CASES], "plain", trace=False
    )
    said = [judge(case, one.text).source for case, one in zip(CASES, answers, strict=True)]
    chosen = [case for case, one in zip(CASES, said, strict=True) if one in ("context", "memory")]
    labels = torch.tensor([one == "context" for one in said if one in ("context", "memory")])
    assert FEWEST <= int(labels.sum()) <= len(labels) - FEWEST
    return torch.stack([read(atlas, ids(atlas, one))[0] for one in chosen]).double(), chosen, labels


def caa(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    sides = [np.mean([v for v, y in zip(values.numpy(), labels, strict=True) if y == side], axis=0)
             for side in (True, False)]  # fmt: skip
    return torch.from_numpy(sides[0] - sides[1])


def repe(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The first right singular vector of the differences that the seed draws (their opposites
    change none of them)."""
    drawn = torch.Generator().manual_seed(0)
    first, second = (
        side[torch.randint(len(side), (4096,), generator=drawn)]
        for side in (values[labels], values[~labels])
    )
    pairs = (first - second).numpy()
    axis = np.linalg.svd(pairs, full_matrices=False)[2][0]
    return torch.from_numpy(axis * (pairs @ axis).mean())


def iti(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logistic regression on standardised activations, L2 of strength 10, by Newton's method."""
    spread = values.std(0, correction=0)
    x = torch.cat([(values - values.mean(0)) / spread, torch.ones(len(values), 1)], 1).double()
    penalty = torch.diag(torch.tensor([10.0] * values.shape[1] + [0.0]).double())
    w = torch.zeros(x.shape[1]).double()
    for _ in range(30):
        said = (x @ w).sigmoid()
        slope = x.T @ (said - labels.double()) + penalty @ w
        w = w - torch.linalg.solve((x.T * (said * (1 - said))) @ x + penalty, slope)
    axis = w[:-1] / spread
    axis = axis / axis.norm()
    return axis * (values @ axis).std(correction=0)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "again"), [("caa", caa), ("repe", repe), ("iti", iti)])
def test_directions_are_derived_again(method: str, again: Any, fits: Any, runs: Any) -> None:
    streams, chosen, labels = runs
    expected = torch.stack([again(streams[:, layer], labels) for layer in LAYERS])
    found = Directions.read(fits(method).policy.controller.rule.directions).vectors
    assert list(found) == LAYERS
    mine = torch.stack([found[layer] for layer in LAYERS]).double()
    scale = (mine * expected).sum() / expected.square().sum()
    assert scale > 0  # towards the context
    # One scale for all layers.
    close = 1e-4 if method != "iti" else 2e-2  # scikit-learn stops earlier
    assert (mine - scale * expected).norm() < close * mine.norm()
    about = fits(method).about
    assert about["cases"] == {"context": int(labels.sum()), "memory": int((~labels).sum())}
    assert sum(about["dropped"].values()) == len(CASES) - len(chosen)
    norms = {layer: float(one.norm()) for layer, one in zip(LAYERS, mine, strict=True)}
    assert about["norms"] == pytest.approx(norms, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["caa", "repe", "iti"])
def test_a_unit_of_strength_moves_by_the_budget(
    method: str, fits: Any, atlas: Any, runs: Any
) -> None:
    vectors = Directions.read(fits(method).policy.controller.rule.directions).vectors
    moved = []
    for case in runs[1]:
        _, plain = read(atlas, ids(atlas, case))
        for sign in (1, -1):
            _, other = read(atlas, ids(atlas, case), {at: sign * v for at, v in vectors.items()})
            moved.append(float((plain.exp() * (plain - other)).sum()))
    assert np.mean(moved) == pytest.approx(0.5, rel=0.02)
    assert np.mean(moved) == pytest.approx(fits(method).about["kl"], rel=1e-3)
    assert fits(method).about["budget"] == 0.5


@pytest.mark.slow
def test_other_budgets_are_met_and_too_large_ones_refused(
    atlas: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "_CASES", 8)
    options: Any = {"layers": LAYERS, "keep": kept}
    small, large = (fit_steering(atlas, CASES, "caa", budget=b, **options) for b in (0.01, 4.0))
    assert small.about["kl"] == pytest.approx(0.01, rel=0.02)
    assert large.about["kl"] == pytest.approx(4.0, rel=0.02)
    assert large.about["norms"][3] > 5 * small.about["norms"][3]
    monkeypatch.setattr(steering, "_TRIES", 8)
    with pytest.raises(InvalidParameterError, match="no length of its directions moves .* 19 nats"):
        fit_steering(atlas, CASES, "caa", budget=19.0, **options)


@pytest.mark.slow
def test_a_seed_gives_the_same_again(
    atlas: Any, fits: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "_CASES", 8)
    alone, there = (
        fit_steering(atlas, CASES, "repe", layers=LAYERS, keep=keep) for keep in (None, kept)
    )
    assert alone.policy == there.policy
    assert alone.about == there.about
    other = fit_steering(atlas, CASES, "repe", layers=LAYERS, keep=kept, seed=1)
    assert other.policy != there.policy


@pytest.mark.slow
@pytest.mark.parametrize("method", ["caa", "repe", "iti"])
def test_a_saved_policy_answers_the_same(
    method: str, fits: Any, atlas: Any, tmp_path: Path
) -> None:
    policy = fits(method).policy
    policy.save(tmp_path / "policy.json")
    loaded = Policy.load(tmp_path / "policy.json")
    assert loaded == policy
    with pytest.raises(PolicyError, match="was made for"):
        loaded.check("other", "0" * 64)
    answers = []
    for one, prefer in ((policy, "context"), (loaded, "context"), (loaded, "memory")):
        rule = replace(one.controller.rule, prefer=prefer, alpha=3.0)
        steered = replace(one, controller=replace(one.controller, rule=rule))
        questions, contexts = zip(*ASKED, strict=True)
        made = atlas.ask_batch(questions, contexts, policy=steered, trace=False)
        answers.append([answer.text for answer in made])
    assert answers[0] == answers[1]
    assert answers[1] != answers[2]


@pytest.mark.parametrize(
    ("method", "options", "error", "why"),
    [("sparse", {}, UnknownNameError, "method to fit"), ("cad", {}, UnknownNameError, "method"),
     ("spare", {"variant": "old"}, UnknownNameError, "variant"),
     ("caa", {"budget": 0.0}, InvalidParameterError, "budget must lie between 0 and 20 nats"),
     ("caa", {"budget": float("nan")}, InvalidParameterError, "budget must lie between"),
     ("caa", {"budget": 20}, InvalidParameterError, "budget must lie between 0 and 20 nats, not"),
     ("spare", {"sae": "/nowhere"}, SAEError, "there is no cfg.json in '/nowhere'")],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused_before_anything_is_read(
    method: str, options: Any, error: Any, why: str, atlas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(steering, "labelled")
    with pytest.raises(error, match=why):
        fit_steering(atlas, CASES, method, **options)


@pytest.mark.slow
def test_conflicts_have_to_go_either_way(atlas: Any) -> None:
    with pytest.raises(EmptyInputError, match=r"^\d conflicts went with the context and \d with"):
        fit_steering(atlas, SHORT[:9], "caa", layers=[3])
    with pytest.raises(EmptyInputError, match="no case has a context that contradicts memory"):
        fit_steering(atlas, ck.atlas.cases("train", "agreement")[:9], "caa", layers=[3])
    with pytest.raises(InvalidParameterError, match="has no layer 6"):
        fit_steering(atlas, CASES, "caa", layers=[6])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random autoencoder behind Atlas's layer 3."""
    return saes.write(
        tmp_path_factory.mktemp("saes") / "layer3", layer=3, width=192, features=90, model="atlas"
    )


@pytest.fixture(scope="module")
def fitted(atlas: Any, kept: Path, folder: Path) -> Any:
    return fit_steering(atlas, CASES, "spare", sae=str(folder), share=0.5, keep=kept)


@pytest.mark.slow
def test_spares_features_and_targets_are_derived_again(
    fitted: Any, folder: Path, atlas: Any, runs: Any
) -> None:
    streams, chosen, labels = runs
    rule: SpARE = fitted.policy.controller.rule
    codes = SAE.load(folder).code(streams[:, 3].float())
    expected = spare.features(codes, labels, 0.5)
    sides = [rules.targets_of(text) for text in (rule.context, rule.memory)]
    assert [list(side[3]) for side in sides] == [list(one) for one in expected]
    assert min(map(len, expected)) > 3
    assert fitted.about["features"] == {
        "3": {"context": len(expected[0]), "memory": len(expected[1])}
    }
    losses: dict[str, list[float]] = {"context": [], "memory": []}
    for case in chosen:
        for side, answers in (("context", case.context_answers), ("memory", case.memory_answers)):
            answer = answer_ids(atlas.tokenizer, case.question, answers[0])
            text = torch.cat([ids(atlas, case), torch.tensor([list(answer)])], 1)
            with torch.no_grad():
                losses[side].append(float(atlas.model(text, labels=text).loss))
    own, other = (torch.tensor(losses[side]).double() for side in ("context", "memory"))
    for side, mine, sure in (
        (sides[0], labels, other / (own + other)), (sides[1], ~labels, own / (own + other)),
    ):  # fmt: skip
        weights = sure[mine] / sure[mine].sum()
        means = (weights[:, None] * codes[mine].double()).sum(0)
        assert side[3] == pytest.approx({at: float(means[at]) for at in side[3]}, rel=1e-3)


@pytest.mark.slow
def test_spares_policy_names_its_autoencoder(
    fitted: Any, folder: Path, atlas: Any, tmp_path: Path
) -> None:
    policy = fitted.policy
    assert policy.controller.rule.sae == str(folder)
    policy.save(tmp_path / "spare.json")
    loaded = Policy.load(tmp_path / "spare.json")
    assert loaded == policy
    question, context = ASKED[0]
    for prefer in ("context", "memory"):
        rule: Any = replace(loaded.controller.rule, prefer=prefer, degree=6.0)
        with rule.attach(atlas.model, prompt_lengths=[len(ids(atlas, SHORT[40])[0])]) as handle:
            steered = atlas.model(ids(atlas, SHORT[40])).logits[0, -1]
        assert handle.edits == 1  # the prompt's last position
        assert not torch.allclose(steered, atlas.model(ids(atlas, SHORT[40])).logits[0, -1])
        same = [
            atlas.ask(question, context, trace=False, policy=replace(
                one, controller=replace(one.controller, rule=rule))).text
            for one in (policy, loaded)
        ]  # fmt: skip
        assert same[0] == same[1]


@pytest.mark.slow
def test_another_autoencoder_is_refused(fitted: Any, folder: Path, atlas: Any) -> None:
    rule = fitted.policy.controller.rule
    assert list(rule.rows()) == [3]
    file = folder / "sae_weights.safetensors"
    before = file.read_bytes()
    for name in ("W_dec", "W_enc"):
        changed = load_file(file)
        changed[name] *= 1.01
        save_file(changed, file)
        rules._rows.cache_clear()
        with pytest.raises(SAEError, match="these features were found in another autoencoder"):
            atlas.ask(*ASKED[0], policy=fitted.policy)
        file.write_bytes(before)
    rules._rows.cache_clear()
    assert list(rule.rows()) == [3]
    elsewhere = replace(rule, context="5.1:1.0", digest="")
    with pytest.raises(SAEError, match=r"spare: no autoencoder of layer 5 in '.*layer3'"):
        elsewhere.rows()
    with pytest.raises(SAEError, match=r"has no feature 90: it has 90"):
        replace(rule, context="3.90:1.0", memory="", digest="").rows()


@pytest.mark.parametrize(
    ("told", "layers", "error", "why"),
    [({}, [2], InvalidParameterError, "spare: no autoencoder of layer 2"),
     ({}, [3, 4], InvalidParameterError, "spare: no autoencoder of layer 4"),
     ({"width": 64}, None, SAEError, "of width 64; 'atlas' has width 192"),
     ({"layer": 6}, None, SAEError, "'atlas' has 6 layers"),
     ({"model": "gpt2"}, None, SAEError, "belongs to 'gpt2', not to 'atlas'"),
     ({"metadata": {"conflictkit_fingerprint": "1" * 64}}, None, SAEError, "has other weights")],
)  # fmt: skip
def test_spares_autoencoders_are_checked_before_anything_is_read(
    told: Any, layers: Any, error: Any, why: str, atlas: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delattr(steering, "labelled")
    options = {"layer": 3, "width": 192, "features": 8, "model": "atlas"} | told
    saes.write(tmp_path / "one", **options)
    with pytest.raises(error, match=why):
        fit_steering(atlas, CASES, "spare", sae=str(tmp_path), layers=layers)
