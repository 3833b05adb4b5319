"""Detection against scikit-learn, which the package itself does not need."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from conflictkit import detectors
from conflictkit.evaluation.metrics import Summary, summarise
from conflictkit.evaluation.metrics.detection import Scored, calibration, ranked, roc_curve
from tests.evaluation.metrics.made import case, result, tokens


def _scored(seed: int, items: int = 200, levels: int = 0) -> Scored:
    """Scores that tell something; with `levels` they are rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    conflict = rng.random(items) < 0.4
    scores = rng.normal(size=items) + conflict
    if levels:
        scores = np.round(scores * levels) / levels
    return Scored(scores, conflict, rng.integers(0, 40, items))


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_auroc_and_auprc_are_scikit_learns(seed: int, levels: int) -> None:
    scored = _scored(seed, levels=levels)
    weights = np.random.default_rng(seed).multinomial(40, np.full(40, 1 / 40), size=30)
    weights = np.concatenate([np.ones((1, 40)), weights.astype(float)])
    auroc, precision = ranked(scored, weights)
    for number, row in enumerate(weights):
        weight = row[scored.subjects]
        labels, scores = scored.conflict, scored.scores
        assert auroc[number] == pytest.approx(
            metrics.roc_auc_score(labels, scores, sample_weight=weight)
        )
        assert precision[number] == pytest.approx(
            metrics.average_precision_score(labels, scores, sample_weight=weight)
        )


def test_one_side_alone_has_no_auroc() -> None:
    scored = Scored(np.array([1.0, 2.0]), np.array([True, False]), np.array([0, 1]))
    auroc, precision = ranked(scored, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    assert auroc[0] == 0.0
    assert precision[0] == 0.5
    assert np.isnan(auroc[1:]).all()
    assert np.isnan(precision[1:]).all()


@pytest.mark.parametrize("levels", [0, 2])
def test_the_curve_is_scikit_learns(levels: int) -> None:
    scored = _scored(3, levels=levels)
    fpr, tpr, _ = metrics.roc_curve(scored.conflict, scored.scores, drop_intermediate=False)
    curve = roc_curve(scored)
    if levels:
        assert curve == {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
    area = metrics.auc(curve["fpr"], curve["tpr"])
    assert area == pytest.approx(metrics.auc(fpr, tpr), abs=0.005)


def test_a_long_curve_is_thinned() -> None:
    scored = _scored(4, items=5000)
    curve = roc_curve(scored)
    assert len(curve["fpr"]) <= 202
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
    exact = metrics.roc_auc_score(scored.conflict, scored.scores)
    assert metrics.auc(curve["fpr"], curve["tpr"]) == pytest.approx(exact, abs=1e-3)


def test_calibration_says_what_share_a_score_means() -> None:
    scored = _scored(5, items=1000)
    bins = calibration(scored, ">")
    assert [b["n"] for b in bins] == [100] * 10
    for one in bins:
        there = (scored.scores >= one["score_low"]) & (scored.scores <= one["score_high"])
        assert one["conflict"] == pytest.approx(scored.conflict[there].mean())
        assert one["low"] < one["conflict"] < one["high"]
    shares = [b["conflict"] for b in bins]
    assert shares[0] < 0.2 < 0.7 < shares[-1]


def test_equal_scores_share_a_bin_and_low_means_conflict_is_shown_on_its_own_scale() -> None:
    flags = np.repeat([0.0, 1.0], [30, 70])
    conflict = flags > 0
    bins = calibration(Scored(-flags, conflict, np.arange(100)), "<")
    assert [(b["score_low"], b["score_high"], b["n"], b["conflict"]) for b in bins] == [
        (0.0, 0.0, 30, 0.0),
        (1.0, 1.0, 70, 1.0),
    ]
    assert bins[0]["high"] > 0.05  # nothing seen in 30 is not nothing


def _summary(name: str = "jsd", flip: float = 1.0) -> Summary:
    cases, results = [], []
    rng = np.random.default_rng(0)
    for number in range(120):
        state = ("correction", "resistance", "agreement", "irrelevant")[number % 4]
        shift = 1.0 if state in ("correction", "resistance") else 0.0
        cases.append(case(str(number), state, subject=f"s{number // 3}"))
        scores = flip * (rng.normal(size=3) + shift)
        # A fourth entry: the end token, which is no answer's.
        held = tokens(*scores, flip * 100.0, name=name)
        results.append(result(str(number), "x", ids=(1, 2, 3), tokens=held))
    return summarise(cases, results)


def test_levels_of_detection() -> None:
    found = _summary().detection["jsd"]
    rng = np.random.default_rng(0)
    labels, scores = [], []
    for number in range(120):
        conflict = number % 4 < 2
        drawn = rng.normal(size=3) + conflict
        if number % 4 < 3:
            labels.append(conflict)
            scores.append(drawn)
    per_token = metrics.roc_auc_score(np.repeat(labels, 3), np.concatenate(scores))
    per_answer = metrics.roc_auc_score(labels, [max(s) for s in scores])
    assert found["token"]["auroc"] == pytest.approx(per_token)
    assert found["answer"]["auroc"] == pytest.approx(per_answer)
    assert (found["answer"]["n_conflict"], found["answer"]["n_agreement"]) == (60, 30)
    assert (found["token"]["n_conflict"], found["token"]["n_agreement"]) == (180, 90)
    for level in found.values():
        for name in ("auroc", "auprc"):
            assert level[f"{name}_low"] < level[name] < level[f"{name}_high"]


def test_a_detector_whose_low_side_is_conflict_is_turned_round() -> None:
    assert detectors.get("confidence-gain").sign == "<"
    turned = _summary("confidence_gain", flip=-1.0).detection["confidence-gain"]
    plain = _summary().detection["jsd"]
    for level in ("token", "answer"):
        assert turned[level]["auroc"] == pytest.approx(plain[level]["auroc"])
        assert turned[level]["auroc_low"] == pytest.approx(plain[level]["auroc_low"])
    low, high = turned["answer"]["calibration"][0], turned["answer"]["calibration"][-1]
    assert low["score_low"] < high["score_low"]
    assert low["conflict"] > high["conflict"]


def test_the_interval_is_by_subject() -> None:
    """Each case four times over under one subject: no narrower than the cases once."""
    rng = np.random.default_rng(2)
    cases, results = [], []
    for number in range(200):
        state = "correction" if number % 2 else "agreement"
        score = float(rng.normal() + number % 2)
        for copy in range(4):
            cases.append(case(f"{number}-{copy}", state, subject=str(number)))
            results.append(result(f"{number}-{copy}", "x", tokens=tokens(score)))
    copied = summarise(cases, results).detection["jsd"]["answer"]
    once = [n for n, one in enumerate(cases) if one.id.endswith("-0")]
    single = summarise([cases[n] for n in once], [results[n] for n in once])
    alone = single.detection["jsd"]["answer"]
    assert copied["auroc"] == pytest.approx(alone["auroc"])
    assert copied["auroc_low"] == pytest.approx(alone["auroc_low"])
    assert copied["auroc_high"] == pytest.approx(alone["auroc_high"])


def test_a_perfect_detector_has_an_interval() -> None:
    cases = [case(f"{n}", "correction" if n < 20 else "agreement") for n in range(60)]
    results = [result(f"{n}", "x", tokens=tokens(float(n < 20))) for n in range(60)]
    found = summarise(cases, results).detection["jsd"]["answer"]
    assert (found["auroc"], found["auroc_high"]) == (1.0, 1.0)
    assert 0.8 < found["auroc_low"] < 0.9
    assert "Wilson interval of 20 subjects" in found["note"]
    assert "20 subjects on one side" in found["note"]


def test_without_both_sides_or_numbers_there_is_no_detection() -> None:
    cases = [case("1", "correction"), case("2", "agreement")]
    one_side = [result("1", "x", tokens=tokens(1.0)), result("2", "x", tokens=())]
    assert summarise(cases, one_side).detection == {}
    broken = [result(n, "x", tokens=tokens(float("nan"))) for n in "12"]
    assert summarise(cases, broken).detection == {}
    unknown = [result(n, "x", tokens=tokens(1.0, name="strength")) for n in "12"]
    assert summarise(cases, unknown).detection == {}
