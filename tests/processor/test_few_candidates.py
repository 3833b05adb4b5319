"""Beams of `ck.decode` where processors leave less to choose than there are beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import conflictkit as ck
from tests import tiny
from tests.engine.reference import pairs
from tests.processor.exact import Exact

MODEL = tiny.llama()
ROWS = pairs(6, 40, [(6, 5), (7, 4)])
PROMPTS = torch.tensor([row["context"] for row in ROWS])
MEMORY = [row["memory"] for row in ROWS]


def only(*tokens: int) -> Any:
    return lambda _batch, _ids: list(tokens)


@pytest.mark.parametrize(
    "mode",
    [
        {"prefix_allowed_tokens_fn": only(7), "max_new_tokens": 3},
        {"prefix_allowed_tokens_fn": only(7, 9), "max_new_tokens": 2, "num_beams": 3},
        {"prefix_allowed_tokens_fn": only(7, 1), "max_new_tokens": 4, "num_beams": 3},
        {"forced_eos_token_id": 1, "max_new_tokens": 1},
        {"forced_eos_token_id": 1, "max_new_tokens": 3, "length_penalty": 0.4},
    ],
    ids=["one token", "two tokens", "one token or the end", "only the end", "the end at last"],
)
@pytest.mark.parametrize("method", ["adacad", "plain"])
def test_it_returns_what_generate_returns(mode: dict[str, Any], method: str) -> None:
    mode = {"num_beams": 2, "pad_token_id": 2, "return_dict_in_generate": True} | mode
    mode |= {"output_scores": True, "output_logits": True, "num_return_sequences": 2}
    exact = Exact(MODEL, ck.methods.parse(method), ROWS, PROMPTS.shape[1])
    theirs = MODEL.generate(PROMPTS, logits_processor=[exact], **mode)
    mine = MODEL.generate(
        PROMPTS, custom_generate=ck.decode, memory_ids=MEMORY, method=method, **mode
    )
    assert mine.sequences.tolist() == theirs.sequences.tolist()
    assert len(mine.sequences) == 4
    assert mine.beam_indices.tolist() == theirs.beam_indices.tolist()
    torch.testing.assert_close(mine.sequences_scores, theirs.sequences_scores)
