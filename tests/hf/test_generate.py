"""What conflictkit takes for granted about transformers' `generate`, one test each."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForCausalLM,
    BioGptConfig,
    BioGptForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MptConfig,
    MptForCausalLM,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from conflictkit import ConflictProcessor, _hf
from tests import tiny

MODEL = tiny.llama()
ECHO = torch.tensor([[0, 5, 6, 7, 9, 5, 6, 7, 9, 5, 6]])


class Noted(LogitsProcessor):
    """Writes down every prefix it is shown."""

    def __init__(self) -> None:
        self.shown: list[list[list[int]]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.shown.append(input_ids.tolist())
        return scores


def test_a_processor_sees_the_prompt_first_and_never_skips_a_token() -> None:
    """In every mode: what a processor that finds out where the answer begins stands on."""
    modes: list[dict[str, Any]] = [
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 4},
        {"assistant_model": tiny.llama(seed=1, layers=1)},
    ]
    for mode in modes:
        noted = Noted()
        MODEL.generate(ECHO, logits_processor=[noted], max_new_tokens=8, **mode)
        assert noted.shown[0][0] == ECHO[0].tolist()
        seen: set[tuple[int, ...]] = set()
        for rows in noted.shown:
            assert all(len(row) == ECHO.shape[1] or tuple(row[:-1]) in seen for row in rows), mode
            seen |= {tuple(row) for row in rows}


def test_rows_of_one_prompt_lie_side_by_side() -> None:
    noted = Noted()
    ids = torch.tensor([[0, 5, 6], [0, 8, 9]])
    MODEL.generate(ids, logits_processor=[noted], max_new_tokens=1, num_beams=2)
    assert noted.shown[0] == [[0, 5, 6], [0, 5, 6], [0, 8, 9], [0, 8, 9]]


def handed_to_a_callable(**options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def noting(model: Any, input_ids: Tensor, extra: Any = None, **given: Any) -> Tensor:
        found.update(given, input_ids=input_ids, extra=extra)
        return input_ids

    MODEL.generate(ECHO, custom_generate=noting, max_new_tokens=4, **options)
    return found


def test_a_callable_gets_what_it_names_expanded_rows_and_no_streamer() -> None:
    class Streamer:
        put = end = print

    found = handed_to_a_callable(
        extra=3, streamer=Streamer(), synced_gpus=False, num_beams=3, num_return_sequences=2
    )
    assert found["extra"] == 3
    assert found.keys() & {"streamer", "synced_gpus"} == set()
    assert torch.equal(found["input_ids"], ECHO.repeat(3, 1))
    assert found["generation_config"].max_length == ECHO.shape[1] + 4
    assert _hf.cached_length(found["past_key_values"]) == 0


def test_the_road_to_continuous_batching_drops_processors_and_callables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which is why no error of ours can warn of it: the documentation has to."""

    class Taken(Exception):
        pass

    handed: dict[str, Any] = {}

    def batching(_self: Any, **given: Any) -> None:
        handed.update(given)
        raise Taken

    def unreachable(*_: Any, **__: Any) -> None:
        raise AssertionError("it was called")

    monkeypatch.setattr(type(MODEL), "generate_batch", batching)
    given: dict[str, Any] = {"logits_processor": [unreachable], "custom_generate": unreachable}
    with pytest.raises(Taken):
        MODEL.generate(ECHO, cache_implementation="paged", max_new_tokens=2, **given)
    assert handed.keys() & given.keys() == set()
    source = inspect.getsource(GenerationMixin.generate_batch)
    assert "logits_processor" not in source
    # In a generation config it takes no such road, and is seen.
    config = GenerationConfig(cache_implementation="paged", num_beams=1)
    assert _hf.refused_options(config) == ["cache_implementation"]


def test_a_row_behind_padding_is_read_as_if_alone_or_known_not_to_be() -> None:
    sizes: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 2}
    heads: dict[str, Any] = {"decoder_layers": 1, "decoder_attention_heads": 2}
    decoder: dict[str, Any] = {"d_model": 16, "decoder_ffn_dim": 16, "init_std": 0.3, **heads}
    small: dict[str, Any] = {"hidden_size": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}
    plain: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    models = [
        BartForCausalLM(BartConfig(**sizes, **decoder)),
        BloomForCausalLM(BloomConfig(**sizes, **small)),
        MptForCausalLM(MptConfig(vocab_size=40, d_model=16, n_heads=2, n_layers=1)),
        BioGptForCausalLM(BioGptConfig(**sizes, **plain)),
        tiny.gpt2(),
    ]
    ids = torch.tensor([[2, 2, 2, 5, 6, 7]])
    mask = (ids != 2).long()
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    found = []
    for model in models:
        read: dict[str, Any] = {"attention_mask": mask, "position_ids": places}
        padded = _hf.tail_logits(model.eval(), ids, **read)
        rest: dict[str, Any] = {name: values[:, 3:] for name, values in read.items()}
        alone = _hf.tail_logits(model, ids[:, 3:], **rest)
        found.append(not torch.allclose(padded, alone, atol=1e-4))
    assert found == [_hf.misplaces_padded_rows(model) for model in models]
    assert found == [True, False, False, False, False]


def test_attentions_are_handed_out_by_eager_attention_alone() -> None:
    mode: dict[str, Any] = {"output_attentions": True, "return_dict_in_generate": True}
    model = copy.deepcopy(MODEL)
    made = {}
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        processor = ConflictProcessor(model, [0, 6])
        out = model.generate(ECHO, logits_processor=[processor], max_new_tokens=2, **mode)
        made[kind] = [layer for step in out.attentions for layer in step if layer is not None]
    assert made["sdpa"] == []
    assert len(made["eager"]) == 2 * model.config.num_hidden_layers


def test_warpers_and_what_follows_them_stand_last() -> None:
    noted = Noted()
    found = handed_to_a_callable(
        logits_processor=[noted],
        do_sample=True,
        temperature=0.5,
        top_k=3,
        repetition_penalty=1.5,
        renormalize_logits=True,
    )
    before, after = _hf.split_processors(found["logits_processor"])
    assert [type(item).__name__ for item in before] == ["RepetitionPenaltyLogitsProcessor", "Noted"]
    assert [type(item).__name__ for item in after] == [
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "LogitNormalization",
    ]
    mine = [TemperatureLogitsWarper(2.0), noted, TopKLogitsWarper(3)]
    assert _hf.split_processors(mine) == (mine[:2], mine[2:])


def test_end_and_padding_tokens_as_generate_prepares_them() -> None:
    found = handed_to_a_callable(eos_token_id=[1, 7])
    assert _hf.special_tokens(found["generation_config"]) == ((1, 7), 2)


def test_tokens_that_a_model_declares() -> None:
    assert _hf.pad_token(MODEL) == 2
    assert _hf.text_bounds(MODEL) == (0, 1)
    assert _hf.pad_token(tiny.gpt2()) is None


def test_the_length_of_a_cache() -> None:
    cache = DynamicCache()
    MODEL(ECHO, past_key_values=cache, use_cache=True)
    assert _hf.cached_length(cache) == ECHO.shape[1]


def test_criteria_that_end_rows_apart() -> None:
    together = StoppingCriteriaList([MaxLengthCriteria(5), MaxTimeCriteria(1.0)])
    assert not _hf.ends_rows_apart(together)
    assert _hf.ends_rows_apart(StoppingCriteriaList([*together, EosTokenCriteria(1)]))


def test_options_at_their_defaults_are_not_refused() -> None:
    assert _hf.refused_options(handed_to_a_callable()["generation_config"]) == []
    config = GenerationConfig(num_beams=2, do_sample=True, early_stopping="never")
    assert _hf.refused_options(config) == ["early_stopping", "do_sample with num_beams"]


def test_an_output_is_that_of_beams_if_it_has_their_indices() -> None:
    plain = _hf.generation_output({"sequences": ECHO})
    beams = _hf.generation_output({"sequences": ECHO, "beam_indices": ECHO})
    assert [type(item).__name__ for item in (plain, beams)] == [
        "GenerateDecoderOnlyOutput",
        "GenerateBeamDecoderOnlyOutput",
    ]
