"""Probes of every layer: what can be read is found, what cannot is not, and figures are right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import conflictkit as ck
from conflictkit.errors import EmptyInputError, InvalidParameterError, UnknownNameError
from conflictkit.evaluation.metrics import judge
from conflictkit.mechanics.capture import capture
from conflictkit.mechanics.probing import FEWEST, fit_probes, labelled, measure
from conflictkit.types import Case


@pytest.fixture(scope="module")
def atlas() -> Any:
    return ck.load("atlas")


def told(labels: Sequence[bool], cases: Sequence[Case]) -> list[Case]:
    """Cases under the states that labels say."""
    states = {True: "correction", False: "agreement"}
    return [replace(one, state=states[label]) for one, label in zip(cases, labels, strict=True)]


def short(count: int) -> list[Case]:
    """Cases with one sentence, half of them about a country."""
    every = [
        c for c in ck.atlas.cases("train") if c.state in ("correction", "resistance")
        and c.meta["layout"] == "sentence"
    ]  # fmt: skip
    halves = [[c for c in every if (c.relation == "country") == side] for side in (True, False)]
    return [case for half in halves for case in half[: count // 2]]


@pytest.mark.slow
def test_what_can_be_read_is_found_and_what_cannot_is_not(atlas: Any, tmp_path: Path) -> None:
    cases = short(160)
    about = [case.relation == "country" for case in cases]
    probed = fit_probes(atlas, told(about, cases), layers=[3, 0], kinds=("mlp", "residual"))
    assert [(one.kind, one.layer) for one in probed.scores] == [
        ("mlp", 3), ("mlp", 0), ("residual", 3), ("residual", 0),
    ]  # fmt: skip
    assert max(one.auroc for one in probed.scores) > 0.97
    best = max(probed.scores, key=lambda one: one.auroc)
    assert (probed.probe.kind, probed.probe.layer) == (best.kind, best.layer)
    # On other cases it does as well, and the figures are scikit-learn's.
    others = ck.atlas.cases("test")[:300]
    kept = capture(atlas, others, tmp_path / "acts", kinds=[best.kind], layers=[best.layer])
    values = kept.values(best.kind, best.layer)
    right = torch.tensor([case.relation == "country" for case in others])
    found = measure(probed.probe, values, right, [case.subject for case in others])
    said = probed.probe(values).numpy()
    assert found.auroc == pytest.approx(roc_auc_score(right, said))
    assert found.auprc == pytest.approx(average_precision_score(right, said))
    assert found.accuracy == pytest.approx(((said >= 0.5) == right.numpy()).mean())
    assert found.auroc_low is not None
    assert found.auroc_low < found.auroc
    assert found.auroc > 0.95
    draw = random.Random(0)
    noise = fit_probes(atlas, told([draw.random() < 0.5 for _ in cases], cases), layers=[3])
    assert noise.scores[0].auroc < 0.8


@pytest.mark.slow
def test_no_subject_is_on_both_sides_of_the_split(
    atlas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conflictkit.mechanics import probing

    seen: list[Any] = []
    real = probing._layer

    def watch(model: Any, what: Any, values: Any, split: Any, how: Any) -> Any:
        seen.append(split)
        return real(model, what, values, split, how)

    monkeypatch.setattr(probing, "_layer", watch)
    cases = short(80)
    twice = [one for case in cases for one in (case, replace(case, id=case.id + "-again"))]
    labels = [case.relation == "country" for case in twice]
    probed = fit_probes(atlas, told(labels, twice), layers=[1], strengths=(10.0,))
    _, held, subjects = seen[0]
    sides = [{s for s, out in zip(subjects, held, strict=True) if out == side} for side in (0, 1)]
    assert not sides[0] & sides[1]
    assert probed.probe.about["rows"] == int((~held).sum())
    assert probed.probe.about["validation"]["auroc"] == probed.scores[0].auroc
    probed.probe.check("atlas", atlas.fingerprint)


@pytest.mark.slow
def test_the_best_on_held_out_subjects_is_taken(
    atlas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conflictkit.mechanics import probing

    areas = {4: 0.6, 1: 0.9, 2: 0.7, 5: 0.9}
    real = probing._layer

    def pretend(model: Any, what: Any, *rest: Any) -> Any:
        probe, score = real(model, what, *rest)
        return probe, replace(score, auroc=areas[what[2]])

    monkeypatch.setattr(probing, "_layer", pretend)
    cases = short(80)
    labels = [case.relation == "country" for case in cases]
    probed = fit_probes(atlas, told(labels, cases), layers=list(areas), strengths=(10.0,))
    assert [one.auroc for one in probed.scores] == list(areas.values())
    assert probed.probe.layer == 1  # of equal ones the first


@pytest.mark.slow
def test_the_source_is_whose_answer_the_model_gives(atlas: Any, tmp_path: Path) -> None:
    cases = [*short(24), *ck.atlas.cases("train", "agreement")[:3]]
    chosen, labels, dropped = labelled(atlas, cases, "source", tmp_path, {})
    for case, label in zip(chosen, labels.tolist(), strict=True):
        answer = atlas.ask(case.question, case.contexts, "plain", trace=False).text
        assert judge(case, answer).source == ("context" if label else "memory")
    assert dropped["no conflict"] == 3
    assert len(chosen) + sum(dropped.values()) == len(cases)
    assert labels.any()
    assert not labels.all()
    same, states, left = labelled(atlas, cases, "conflict", tmp_path, {})
    assert states.tolist() == [case.state != "agreement" for case in same]
    assert left == {}
    recall = ck.atlas.guards("test", "recall")[:2]
    assert labelled(atlas, recall, "conflict", tmp_path, {})[2] == {
        "neither conflict nor agreement": 2
    }
    with pytest.raises(EmptyInputError, match="contradicts memory"):
        labelled(atlas, recall, "source", tmp_path, {})


def test_what_cannot_be_fitted_is_refused(atlas: Any) -> None:
    cases = short(2 * FEWEST)
    with pytest.raises(UnknownNameError, match="target"):
        fit_probes(atlas, cases, target="truth")
    with pytest.raises(InvalidParameterError, match="at least one strength"):
        fit_probes(atlas, cases, strengths=())
    passes: list[Any] = []
    hook = atlas.model.register_forward_pre_hook(lambda *_: passes.append(1))
    with pytest.raises(InvalidParameterError, match="no layer 99: it has 6"):
        fit_probes(atlas, cases, target="source", layers=[99])
    hook.remove()
    assert not passes  # before anything is answered
    labels = [case.relation == "country" for case in cases]
    with pytest.raises(EmptyInputError, match=r"too few cases to .*, 8 are needed"):
        fit_probes(atlas, told(labels, cases), layers=[0])
