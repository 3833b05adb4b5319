"""The released variants against what the released programs computed (tests/data/decoding)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from conflictkit import detectors, methods
from conflictkit.interventions.contrast import Rule, mix
from conflictkit.interventions.contrast._released import nucleus
from conflictkit.types import Combined, Mix, Step

DATA = Path(__file__).parents[1] / "data" / "decoding" / "golden.npz"


class Golden:
    """The arrays of one vocabulary size, and the step they describe."""

    def __init__(self, arrays: Mapping[str, np.ndarray], size: str) -> None:
        self._arrays, self._size = arrays, size
        self.context = torch.from_numpy(self["ctx_logits"])
        self.memory = torch.from_numpy(self["mem_logits"])
        self.step = Step.from_logits({"context": self.context, "memory": self.memory})
        self.regime = [str(name) for name in self["regime"]]
        self.finite = np.array(["neginf" not in name for name in self.regime])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[f"{self._size}__{name}"]

    def has(self, name: str) -> bool:
        return f"{self._size}__{name}" in self._arrays

    def run(self, rule: Rule) -> tuple[Mix, Combined]:
        decision = rule(self.step, rule.initial(len(self.context)))
        return decision, mix(self.step, decision)


@pytest.fixture(scope="module", params=["v97", "v32k", "v32k-full"])
def golden(request: pytest.FixtureRequest) -> Golden:
    if request.param != "v32k-full":
        return Golden(np.load(DATA), request.param)
    full = request.getfixturevalue("shared") / "parity" / "decoding" / "parity_public.npz"
    if not full.is_file():
        pytest.skip(f"needs {full}: the whole set of golden numbers is not part of the project")
    return Golden(np.load(full), "v32k")


def assert_scores(
    golden: Golden, combined: Combined, final: np.ndarray, rows: np.ndarray, tolerance: float
) -> None:
    ours = combined.logits.double().log_softmax(-1).numpy()[rows]
    theirs = torch.from_numpy(final).double().log_softmax(-1).numpy()[rows]
    assert rows.any()
    assert np.array_equal(np.isfinite(ours), np.isfinite(theirs))
    finite = np.isfinite(theirs)
    error = np.abs(ours[finite] - theirs[finite]) / (1 + np.abs(theirs[finite]))
    assert error.max() <= tolerance


def assert_tokens(combined: Combined, token: np.ndarray, rows: np.ndarray) -> None:
    assert rows.any()
    assert np.array_equal(combined.logits.argmax(-1).numpy()[rows], token[rows])


def unfiltered(params: np.ndarray) -> list[int]:
    return [index for index, row in enumerate(params) if row[1] == row[2] == 1]


@pytest.mark.parametrize(("name", "strength"), [("cad", "alpha"), ("adacad", "threshold")])
def test_released_cad_family(golden: Golden, name: str, strength: str) -> None:
    params = golden[f"{name}__params"]
    for index in unfiltered(params):
        rule = methods.build(name, variant="released", **{strength: params[index, 0]})
        _, combined = golden.run(rule)
        comparable = golden[f"{name}__comparable"][:, index]
        if golden.has(f"{name}__final"):
            final = golden[f"{name}__final"][:, index]
            assert_scores(golden, combined, final, comparable & golden.finite, 1e-5)
        token = golden[f"{name}__token"][:, index]
        clear = golden[f"{name}__top_margin"][:, index] > 1e-3
        if (token >= 0).all():
            assert_tokens(combined, token, comparable & clear)


@pytest.mark.parametrize("name", ["cad", "adacad"])
def test_released_stream_filters(golden: Golden, name: str) -> None:
    for index, row in enumerate(golden[f"{name}__params"]):
        for stream, logits, mass in (
            ("ctx", golden.context, row[1]),
            ("mem", golden.memory, row[2]),
        ):
            kept = golden[f"{name}__{stream}_kept"][:, index]
            assert np.array_equal(nucleus(logits, mass).numpy(), kept)


@pytest.mark.parametrize(("name", "strength"), [("cad", "alpha"), ("adacad", "threshold")])
def test_mended_cad_family_agrees_with_released_unless_the_filter_decides(
    golden: Golden, name: str, strength: str
) -> None:
    params = golden[f"{name}__params"]
    for index in unfiltered(params):
        _, combined = golden.run(methods.build(name, **{strength: params[index, 0]}))
        token = golden[f"{name}__token"][:, index]
        rows = golden[f"{name}__top_margin"][:, index] > 1e-3
        rows &= golden[f"{name}__comparable"][:, index] & golden.finite & (token >= 0)
        vetoed = np.array([regime == "onehot_mem" for regime in golden.regime])
        context = golden.context.argmax(-1).numpy()
        if not rows.any():
            continue
        assert_tokens(combined, token, rows & ~vetoed)
        assert_tokens(combined, context, rows & vetoed)
        assert (token != context)[rows & vetoed].all()


def test_mended_cad_against_an_implementation_without_filters() -> None:
    golden = Golden(np.load(DATA), "v97")
    for index, alpha in enumerate(golden["cadplain__alpha"]):
        _, combined = golden.run(methods.build("cad", alpha=alpha))
        rows = golden["cadplain__comparable"][:, index]
        final = golden["cadplain__final"][:, index]
        assert_scores(golden, combined, final, rows & golden.finite, 1e-5)
        assert_tokens(combined, golden["cadplain__token"][:, index], rows)


def test_jsd(golden: Golden) -> None:
    ours = detectors.get("jsd")(golden.step).numpy()
    exact = golden["adacad__jsd_exact64"]
    assert np.abs(ours - exact)[golden.finite].max() <= 1e-5
    released, _ = golden.run(methods.build("adacad", variant="released"))
    official = golden["adacad__jsd"][:, 0]
    assert np.abs(released.scores["jsd"].numpy() - official).max() <= 1e-5


def test_released_coiecd(golden: Golden) -> None:
    for index, beta in enumerate(golden["coiecd__beta"]):
        decision, combined = golden.run(methods.build("coiecd", beta=beta, variant="released"))
        flagged = (decision.context_weight - beta).numpy() > 0.5
        official = golden["coiecd__conflict_flag"]
        assert np.array_equal(flagged[golden.finite], official[golden.finite])
        comparable = golden["coiecd__comparable"][:, index]
        if golden.has("coiecd__final"):
            final = golden["coiecd__final"][:, index]
            assert_scores(golden, combined, final, comparable & golden.finite, 1e-5)
        if index == 0:
            clear = golden["coiecd__top_margin"] > 1e-3
            assert_tokens(combined, golden["coiecd__token"], comparable & clear)


def test_mended_coiecd_flags_what_the_released_code_does_but_for_the_tail(golden: Golden) -> None:
    decision, combined = golden.run(methods.build("coiecd"))
    flagged = (decision.context_weight - 1).numpy() > 0.5
    assert np.array_equal(flagged[golden.finite], ~golden["coiecd__inside_mask"][golden.finite])
    junk = np.array([regime == "onehot_mem" for regime in golden.regime])
    assert_tokens(combined, golden.context.argmax(-1).numpy(), junk)


def ck_plug(golden: Golden, index: int, **params: object) -> Rule:
    adaptive = bool(golden["ck__adaptive"][index])
    alpha = 0.5 if adaptive else float(golden["ck__alpha"][index])
    top = int(golden["ck__select_top"][index])
    return methods.build("ck-plug", alpha=alpha, adaptive=adaptive, select_top=top, **params)


def test_released_ck_plug(golden: Golden) -> None:
    for index in range(len(golden["ck__alpha"])):
        decision, combined = golden.run(ck_plug(golden, index, variant="released"))
        masked = golden["ck__masked"][:, index]
        clear = golden["ck__H_ctx"][:, index] > 1e-6
        assert decision.support is not None
        support = decision.support.numpy()
        assert np.array_equal(support[golden.finite], ~masked[golden.finite])
        flagged = decision.scores["flagged"].numpy() > 0.5
        assert np.array_equal(flagged[clear], golden["ck__adjust"][clear, index])
        gain = decision.scores["confidence_gain"].numpy()
        assert np.abs(gain - golden["ck__conf_gain"][:, index])[golden.finite].max() <= 1e-4
        comparable = golden["ck__comparable"][:, index] & clear
        if golden.has("ck__final"):
            final = np.where(masked, -np.inf, golden["ck__final"][:, index])
            assert_scores(golden, combined, final, comparable & golden.finite, 1e-4)
        margin = golden["ck__top_margin"][:, index] > 1e-3
        assert_tokens(combined, golden["ck__token"][:, index], comparable & margin)


def test_mended_ck_plug_at_epsilon_1_scores_flagged_rows_like_the_released_code(
    golden: Golden,
) -> None:
    for index in range(len(golden["ck__alpha"])):
        decision, combined = golden.run(ck_plug(golden, index, epsilon=1.0))
        rows = golden["ck__comparable"][:, index] & golden.finite
        rows &= golden["ck__H_ctx"][:, index] > 1e-6
        flagged = decision.scores["flagged"].numpy() > 0.5
        idle = golden["ck__adjust"][:, index] & ~flagged & rows
        tied = golden.context.argmax(-1) == golden.memory.argmax(-1)
        assert tied.numpy()[idle].all()  # only the guard lets go of a row the official flags
        rows &= flagged & (golden["ck__top_margin"][:, index] > 1e-3)
        assert_tokens(combined, golden["ck__token"][:, index], rows)
