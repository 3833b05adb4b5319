"""Copies, pickles and folders made of a model while its attention is edited."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch

from conflictkit.interventions import AttentionBias
from tests.anatomy import families
from tests.interventions.attention_by_definition import logits

BIAS = AttentionBias([(1, 3)], 0.1)
ROWS = {"input_ids": families.tokens()}
LENGTHS = [9, 9]


@pytest.fixture
def model() -> Any:
    return families.model("llama")


def test_copies_of_an_attached_model_are_whole_and_not_edited(model: Any) -> None:
    plain = logits(model, ROWS)
    with BIAS.attach(model, prompt_lengths=LENGTHS) as handle:
        steered = logits(model, ROWS)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for one in copies:
            assert torch.equal(logits(one, ROWS), plain)
        assert handle.edits == 18
    for one in copies:
        with BIAS.attach(one, prompt_lengths=LENGTHS):
            assert torch.equal(logits(one, ROWS), steered)
        assert torch.equal(logits(one, ROWS), plain)
        assert one.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_a_pickle_of_an_attached_model_is_one_of_the_model_itself(
    model: Any, tmp_path: Any
) -> None:
    """Read where nobody has attached anything: in another process."""
    plain = logits(model, ROWS)
    with BIAS.attach(model, prompt_lengths=LENGTHS):
        torch.save(model, tmp_path / "model.pt")
        logits(model, ROWS)
    torch.save((ROWS, plain), tmp_path / "logits.pt")
    code = (
        "import sys, torch; model, (rows, plain) = (torch.load(p, weights_only=False) for p in "
        "sys.argv[1:]); logits = model(**rows).logits; "
        "assert torch.allclose(logits, plain, atol=1e-5), (logits - plain).abs().max()"
    )
    paths = [str(tmp_path / name) for name in ("model.pt", "logits.pt")]
    ran = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_saving_an_attached_model_saves_no_name_of_ours(model: Any, tmp_path: Any) -> None:
    with BIAS.attach(model, prompt_lengths=LENGTHS):
        model.save_pretrained(tmp_path)
        logits(model, ROWS)
    assert "conflictkit" not in (tmp_path / "config.json").read_text()
