"""The processor in every mode of `generate`, against one that re-reads everything at each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, OPTConfig, OPTForCausalLM
from transformers.generation.streamers import BaseStreamer

import conflictkit as ck
from tests import tiny
from tests.engine.reference import greedy, pairs
from tests.processor.exact import Exact, padded

ROWS = pairs(6, 40, [(6, 5), (3, 4)])
GRD = "grd?gate=entropy"  # trusts memory in both rows
METHODS = ["cad", "adacad", "ck-plug?alpha=0.2", GRD]
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 20},
    "two beams": {"num_beams": 2},
    "three beams, all returned": {"num_beams": 3, "num_return_sequences": 3},
    "beams that sample": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
    "several samples": {"num_return_sequences": 2, "do_sample": True},
    "no cache": {"use_cache": False, "num_beams": 2},
    "static cache": {"cache_implementation": "static", "num_beams": 2},
    "built-in processors": {"num_beams": 2, "repetition_penalty": 1.4, "min_new_tokens": 6},
}


def opt() -> Any:
    """Learned positions that begin at 2 and are counted from the mask."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    config = OPTConfig(
        vocab_size=40, max_position_embeddings=64, word_embed_proj_dim=32, init_std=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, num_attention_heads=4, **sizes,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


def inputs(rows: list[dict[str, list[int]]] = ROWS) -> dict[str, torch.Tensor]:
    return padded([row["context"] for row in rows])


def memory(rows: list[dict[str, list[int]]] = ROWS) -> list[list[int]]:
    return [row["memory"] for row in rows]


def generate(model: Any, processor: Any, rows: Any = ROWS, n: int = 6, **mode: Any) -> Any:
    torch.manual_seed(5)
    return model.generate(
        **inputs(rows), logits_processor=[processor], max_new_tokens=n, pad_token_id=2, **mode
    )


def exact(model: Any, method: str, rows: Any = ROWS) -> Exact:
    return Exact(model, ck.methods.parse(method), rows, inputs(rows)["input_ids"].shape[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "method"),
    [*((mode, method) for mode in MODES for method in ("adacad", GRD))]
    + [(mode, method) for mode in ("greedy", "two beams") for method in METHODS[::2]],
)
def test_every_mode_writes_what_the_plain_definition_writes(mode: str, method: str) -> None:
    model = tiny.llama()
    processor = ck.ConflictProcessor(model, memory(), method)
    made = generate(model, processor, **MODES[mode])
    assert made.tolist() == generate(model, exact(model, method), **MODES[mode]).tolist()
    assert processor.stats.forwards <= 6


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_change_what_is_written(method: str) -> None:
    model = tiny.llama()
    made = generate(model, ck.ConflictProcessor(model, memory(), method))
    assert made.tolist() != generate(model, ck.ConflictProcessor(model, memory(), "plain")).tolist()


@pytest.mark.parametrize("make", [tiny.gpt2, opt, tiny.sliding], ids=["gpt2", "opt", "sliding"])
def test_rows_of_different_length_write_what_each_writes_alone(make: Any) -> None:
    """Positions that ignore padding would show here."""
    model, rule = make(), ck.methods.build("adacad")
    made = generate(model, ck.ConflictProcessor(model, memory(), rule))
    for row, ids in zip(ROWS, made[:, inputs()["input_ids"].shape[1] :].tolist(), strict=True):
        alone = greedy(model, rule, row["context"], row["memory"], 6, {1})
        assert ids[: len(alone)] == alone


# Text that repeats itself, so that prompt lookup finds something to propose.
ECHO = [{"context": [0, 5, 6, 7, 9, 5, 6, 7, 9, 5, 6], "memory": [0, 6, 7, 9]}]


class Counted(ck.ConflictProcessor):
    """Counts how often it was called, and how often on made-up logits."""

    calls = made_up = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.made_up += bool((scores == 1).all())
        return super().__call__(input_ids, scores)


@pytest.mark.parametrize("method", ["adacad", GRD])
def test_prompt_lookup_with_its_made_up_logits(method: str) -> None:
    model = tiny.llama()
    processor = Counted(model, memory(ECHO), method)
    made = generate(model, processor, ECHO, 10, prompt_lookup_num_tokens=4)
    assert made.tolist() == generate(model, exact(model, method, ECHO), ECHO, 10).tolist()
    assert processor.made_up > 0


@pytest.mark.parametrize("method", ["adacad", GRD])
@pytest.mark.parametrize("draft", [0, 1])
def test_assisted_decoding_with_a_good_and_a_bad_draft(method: str, draft: int) -> None:
    model = tiny.llama()
    processor = Counted(model, memory(ECHO), method)
    made = generate(model, processor, ECHO, 8, assistant_model=tiny.llama(seed=draft, layers=1))
    assert made.tolist() == generate(model, exact(model, method, ECHO), ECHO, 8).tolist()
    assert processor.calls > 8


@pytest.mark.parametrize("method", ["adacad", GRD])
def test_a_second_generation_on_the_same_and_on_another_prompt(method: str) -> None:
    model = tiny.llama()
    other = [{"context": [0, 30, *row["context"][1:]], "memory": row["memory"]} for row in ROWS]
    processor = ck.ConflictProcessor(model, memory(), method)
    for rows, mode in ((ROWS, {"num_beams": 2}), (other, {}), (ROWS, {})):
        made = generate(model, processor, rows, **mode)
        assert made.tolist() == generate(model, exact(model, method, rows), rows, **mode).tolist()


def test_rows_that_end_at_different_steps_even_at_the_first() -> None:
    model = tiny.llama()
    free = generate(model, exact(model, "adacad"), n=6)
    width = inputs()["input_ids"].shape[1]
    ends = [int(free[0, width]), int(free[1, width + 2])]
    mode: dict[str, Any] = {"eos_token_id": ends}
    made = generate(model, ck.ConflictProcessor(model, memory(), "adacad"), n=6, **mode)
    assert made.tolist() == generate(model, exact(model, "adacad"), n=6, **mode).tolist()
    assert made[0, width:].tolist()[:2] == [ends[0], 2]


def test_an_end_token_inside_the_context_ends_nothing() -> None:
    model = tiny.llama()
    rows = [{"context": [0, 5, 1, 6, 7], "memory": [0, 6, 7]}]
    made = generate(model, ck.ConflictProcessor(model, memory(rows), "adacad"), rows)
    assert made.tolist() == generate(model, exact(model, "adacad", rows), rows).tolist()


def test_a_cache_of_the_users_own_with_part_of_the_prompt() -> None:
    model, cache = tiny.llama(), DynamicCache()
    model(inputs(ECHO)["input_ids"][:, :-3], past_key_values=cache, use_cache=True)
    processor = ck.ConflictProcessor(model, memory(ECHO), "adacad")
    made = generate(model, processor, ECHO, past_key_values=cache)
    assert made.tolist() == generate(model, exact(model, "adacad", ECHO), ECHO).tolist()


def test_a_memory_prompt_longer_than_the_context_prompt() -> None:
    model = tiny.gpt2()
    rows = [{"context": [0, 5], "memory": [0, *range(3, 20)]}]
    made = generate(model, ck.ConflictProcessor(model, memory(rows), "adacad"), rows)
    assert made.tolist() == generate(model, exact(model, "adacad", rows), rows).tolist()


def test_one_token_and_none() -> None:
    model = tiny.llama()
    made = generate(model, ck.ConflictProcessor(model, memory(), "adacad"), n=1)
    assert made.tolist() == generate(model, exact(model, "adacad"), n=1).tolist()
    with pytest.raises(ValueError, match="max_(new_tokens|length)"):
        generate(model, ck.ConflictProcessor(model, memory(), "adacad"), n=0)


def test_scores_and_logits_of_the_dictionary_output() -> None:
    model = tiny.llama()
    mode = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    mine = generate(model, ck.ConflictProcessor(model, memory(), "adacad"), **mode)
    plain = generate(model, exact(model, "adacad"), **mode)
    assert torch.equal(mine.sequences, plain.sequences)
    for name in ("scores", "logits"):
        torch.testing.assert_close(mine[name], plain[name], atol=1e-4, rtol=1e-4)


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_hears_what_is_written() -> None:
    model, heard = tiny.llama(), Heard()
    made = generate(model, ck.ConflictProcessor(model, memory(ECHO), "grd"), ECHO, streamer=heard)
    assert (heard.ids, heard.ended) == (made[0].tolist(), 1)
