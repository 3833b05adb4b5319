"""`generate(custom_generate=ck.decode)`: what it writes, returns and refuses."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.stopping_criteria import MaxTimeCriteria, StoppingCriteria

import conflictkit as ck
from conflictkit import _hf
from conflictkit.errors import ConflictKitError, ContextTooLongError, UnsupportedError
from tests import tiny
from tests.engine.reference import greedy
from tests.processor.test_modes import ECHO, GRD, ROWS, Heard, exact, generate, inputs, memory

MODEL = tiny.llama()
WIDTH = inputs()["input_ids"].shape[1]


def decode(method: Any = "adacad", rows: Any = ROWS, n: int = 6, **options: Any) -> Any:
    given = {"memory_ids": memory(rows), "pad_token_id": 2, "max_new_tokens": n, **options}
    model = given.pop("model", MODEL)
    return model.generate(**inputs(rows), custom_generate=ck.decode, method=method, **given)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adacad", GRD])
@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.3},
        {"num_beams": 3, "repetition_penalty": 1.4, "min_new_tokens": 5},
        {"use_cache": False, "no_repeat_ngram_size": 1},
        {"num_beams": 2, "suppress_tokens": [5, 9], "eos_token_id": [1, 30]},
    ],
    ids=lambda mode: " ".join(mode) or "greedy",
)
def test_it_writes_what_the_plain_definition_writes(mode: dict[str, Any], method: str) -> None:
    assert decode(method, **mode).tolist() == generate(MODEL, exact(MODEL, method), **mode).tolist()


def test_rows_of_different_length_with_learned_positions() -> None:
    rule = ck.methods.build("adacad")
    made = decode(rule, model=tiny.gpt2())
    for row, ids in zip(ROWS, made[:, WIDTH:].tolist(), strict=True):
        alone = greedy(tiny.gpt2(), rule, row["context"], row["memory"], 6, {1})
        assert ids[: len(alone)] == alone


def test_rows_that_end_early_keep_their_place_beside_processors_with_a_value_per_row() -> None:
    free = decode(n=6)
    mode: dict[str, Any] = {"eos_token_id": int(free[0, WIDTH + 1]), "repetition_penalty": 1.01}
    made = decode(**mode)
    assert made.tolist() == generate(MODEL, exact(MODEL, "adacad"), **mode).tolist()
    assert made[0, WIDTH + 2 :].tolist() == [2] * (made.shape[1] - WIDTH - 2)


def test_rows_that_have_ended_read_padding_as_they_do_in_generate() -> None:
    free = decode(n=6)
    mode: dict[str, Any] = {"eos_token_id": int(free[0, WIDTH]), "output_logits": True}
    mode["return_dict_in_generate"] = True
    mine, theirs = decode(**mode), generate(MODEL, exact(MODEL, "adacad"), **mode)
    assert len(mine.logits) > 2
    for own, other in zip(mine.logits, theirs.logits, strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("token", range(3, 40, 4))
def test_beams_that_are_left_alone_add_what_generate_adds(token: int) -> None:
    """A ban takes probability away, and transformers does not normalise what is left."""
    mode: dict[str, Any] = {"num_beams": 3, "suppress_tokens": [token, (token * 7) % 40]}
    plain = MODEL.generate(**inputs(), max_new_tokens=6, pad_token_id=2, **mode)
    assert decode("plain", **mode).tolist() == plain.tolist()


def test_an_end_at_the_first_step() -> None:
    first = decode(n=1)[:, WIDTH:].flatten().tolist()
    assert decode(eos_token_id=first)[:, WIDTH:].tolist() == [[token] for token in first]


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_and_logits_of_the_dictionary_output(beams: int) -> None:
    mode: dict[str, Any] = {
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
        "num_beams": beams, "num_return_sequences": min(beams, 2),
    }  # fmt: skip
    mine, theirs = decode(**mode), generate(MODEL, exact(MODEL, "adacad"), **mode)
    assert type(mine) is type(theirs)
    assert set(mine.keys()) == set(theirs.keys()) - {"past_key_values"}
    assert torch.equal(mine.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        for own, other in zip(mine[name], theirs[name], strict=True):
            torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)
    if beams > 1:
        assert torch.equal(mine.beam_indices, theirs.beam_indices)
        torch.testing.assert_close(mine.sequences_scores, theirs.sequences_scores)


def test_warpers_act_after_the_method() -> None:
    """With one token kept there is nothing to draw: it has to be the method's best."""
    assert torch.equal(decode(do_sample=True, top_k=1, temperature=3.0), decode())


def test_sampling_repeats_under_torchs_seed_and_returns_several() -> None:
    def draw(seed: int) -> list:
        torch.manual_seed(seed)
        return decode(do_sample=True, num_return_sequences=3, temperature=2.0, top_k=0).tolist()

    assert draw(1) == draw(1) != draw(2)
    assert len({tuple(row) for row in draw(1)}) == 6


def test_parameters_arrive_by_name_in_the_text_and_in_a_rule() -> None:
    weak, strong = decode("cad", alpha=0.0), decode("cad", alpha=3.0)
    assert weak.tolist() == decode("plain").tolist() != strong.tolist()
    assert strong.tolist() == decode("cad?alpha=3").tolist()
    assert strong.tolist() == decode(ck.methods.build("cad", alpha=3.0)).tolist()
    assert decode("cad", alpha=3.0, strength=0.0).tolist() == weak.tolist()
    bound = functools.partial(ck.decode, memory_ids=memory(), method="cad", alpha=3.0)
    made = MODEL.generate(**inputs(), custom_generate=bound, max_new_tokens=6, pad_token_id=2)
    assert made.tolist() == strong.tolist()


def test_every_prompt_may_have_a_policy_of_its_own(tmp_path: Any) -> None:
    path = tmp_path / "gated.json"
    ck.Policy.of("cad?alpha=3", when="jsd > 0.01").save(path)
    each = [path, ck.Policy.of("memory"), ck.Policy.of("plain")]
    each = (each * len(ROWS))[: len(ROWS)]
    controllers = [(ck.Policy.load(p) if p == path else p).controller for p in each]
    by_method = decode(controllers)
    assert decode(None, policy=each).tolist() == by_method.tolist()
    processor = ck.ConflictProcessor(MODEL, memory(), policy=each)
    assert generate(MODEL, processor, n=6).tolist() == by_method.tolist()
    assert by_method.tolist() != decode("plain").tolist()
    with pytest.raises(ConflictKitError, match="entries in policy"):
        decode(None, policy=[*each, each[0]])


def test_no_parameter_is_one_that_generate_keeps_for_itself() -> None:
    written = set(inspect.signature(ck.decode).parameters)
    named = {parameter.name for info in ck.methods.all() for parameter in info.parameters}
    assert named <= written
    usual = {"model", "input_ids", "logits_processor", "stopping_criteria", "generation_config"}
    kept = set(inspect.signature(vars(GenerationMixin)["_sample"]).parameters) | set(
        vars(GenerationConfig())
    )
    assert (written - usual) & kept == set()


def test_methods_of_one_stream_need_no_memory_ids() -> None:
    plain = MODEL.generate(**inputs(), max_new_tokens=6, pad_token_id=2)
    assert decode("plain", memory_ids=None).tolist() == plain.tolist()
    with pytest.raises(ConflictKitError, match="memory_ids is missing"):
        decode("adacad", memory_ids=None)


def test_a_token_streamer_hears_the_prompt_each_token_and_the_end() -> None:
    heard = Heard()
    made = decode(rows=ECHO, token_streamer=heard)
    assert (heard.ids, heard.ended) == (made[0].tolist(), 1)


def test_a_token_streamer_hears_the_end_after_an_error() -> None:
    class Failing(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            raise RuntimeError("no more")

    heard = Heard()
    with pytest.raises(RuntimeError, match="no more"):
        decode(rows=ECHO, token_streamer=heard, stopping_criteria=[Failing()])
    assert heard.ended == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "adacat"}, "adacad"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"memory_ids": [99]}, "40 tokens"),
        ({"num_beams": 2}, "no beams"),
    ],
)
def test_a_token_streamer_hears_the_end_after_a_refusal(given: dict[str, Any], says: str) -> None:
    heard = Heard()
    with pytest.raises(ConflictKitError, match=says):
        decode(rows=ECHO, token_streamer=heard, **given)
    assert (heard.ids, heard.ended) == ([], 1)


class After(StoppingCriteria):
    """Ends a row behind a token; sees whole rows, prompt included."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        assert input_ids.shape[1] > WIDTH
        return input_ids[:, -1] == self.token


@pytest.mark.parametrize("beams", [1, 2])
def test_stopping_criteria_end_answers(beams: int) -> None:
    mode: dict[str, Any] = {"num_beams": beams}
    free = decode(**mode)
    mode["stopping_criteria"] = [After(int(free[0, WIDTH + 1]))]
    made = decode(**mode)
    assert made.tolist() == generate(MODEL, exact(MODEL, "adacad"), **mode).tolist()
    assert made.tolist() != free.tolist()


def test_a_time_limit_ends_every_answer() -> None:
    assert decode(stopping_criteria=[MaxTimeCriteria(0.0)]).shape[1] == WIDTH + 1


class Derived(ck.ConflictProcessor):
    """A processor of the user's own."""


REFUSED: dict[str, dict[str, Any]] = {
    "early_stopping": {"num_beams": 2, "early_stopping": True},
    "do_sample with num_beams": {"num_beams": 2, "do_sample": True},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "guidance_scale": {"guidance_scale": 1.5},
    "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "cache_implementation": {"cache_implementation": "static"},
    "use one of them": {"logits_processor": [ck.ConflictProcessor(MODEL, memory(), "cad")]},
    "ConflictProcessor are two": {"logits_processor": [Derived(MODEL, memory(), "cad")]},
    "position_ids": {"position_ids": torch.arange(WIDTH).repeat(2, 1) + 7},
    "token_streamer shows": {"token_streamer": Heard()},
    "token_streamer has": {"token_streamer": print},
    "inputs_embeds": {"rows": ECHO, "inputs_embeds": torch.rand(1, 11, 32)},
    "2 entries in method": {"method": ["cad", "cad"], "rows": ECHO},
    "1 rows of memory_ids": {"memory_ids": memory()[:1]},
    "token ids": {"start_after": "</think>"},
    "alpha": {"method": "adacad", "alpha": 1.0},
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_is_not_carried_out_is_refused_before_the_first_token(
    says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(type(MODEL).forward)
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a token was read")

    monkeypatch.setattr(type(MODEL), "forward", read)
    with pytest.raises(ConflictKitError, match=says):
        decode(**REFUSED[says])


def test_caches_and_padding_that_are_refused() -> None:
    cache = DynamicCache()
    MODEL(torch.tensor([[0, 5]]), past_key_values=cache, use_cache=True)
    rest: dict[str, Any] = {"custom_generate": ck.decode, "memory_ids": [5], "max_new_tokens": 2}
    with pytest.raises(UnsupportedError, match="past_key_values"):
        MODEL.generate(torch.tensor([[0, 5, 6]]), past_key_values=cache, **rest)
    ids, mask = torch.tensor([[5, 2], [5, 6]]), torch.tensor([[1, 0], [1, 1]])
    with pytest.raises(ConflictKitError, match="padding_side"):
        MODEL.generate(ids, attention_mask=mask, **rest)
    with pytest.raises(ContextTooLongError, match="memory stream"):
        decode(model=tiny.gpt2(), rows=ECHO, memory_ids=[5] * 126)


def test_models_and_inputs_that_cannot_work_are_refused() -> None:
    sizes: dict[str, Any] = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
    sizes |= {"vocab_size": 20, "decoder_start_token_id": 0}
    pair: Any = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    rest: dict[str, Any] = {"custom_generate": ck.decode, "memory_ids": [5], "max_new_tokens": 2}
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        pair.generate(torch.tensor([[3, 4]]), **rest)
    with pytest.raises(ConflictKitError, match="inputs_embeds|input_ids needs"):
        MODEL.generate(inputs_embeds=torch.rand(1, 3, 32), **rest)


# Options of generate() that are honoured by what it prepares for us (processors, criteria, lengths)
# or say nothing about the decoding.
_PREPARED = """
max_length max_new_tokens min_length min_new_tokens max_time stop_strings do_sample num_beams
use_cache temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff
repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size bad_words_ids
renormalize_logits forced_bos_token_id forced_eos_token_id remove_invalid_values
exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias token_healing
watermarking_config num_return_sequences output_scores output_logits return_dict_in_generate
pad_token_id bos_token_id eos_token_id encoder_no_repeat_ngram_size decoder_start_token_id
"""
# Details of things that are refused, or never reach a callable.
_MOOT = """
cache_config max_cache_len is_assistant num_assistant_tokens num_assistant_tokens_schedule
assistant_confidence_threshold max_matching_ngram_size assistant_lookbehind target_lookbehind
assistant_ensemble_weight compile_config disable_compile continuous_batching_config
transformers_version
"""


def test_every_option_of_generate_is_either_carried_out_or_refused() -> None:
    known = {*_PREPARED.split(), *_MOOT.split(), *_hf._REFUSED}
    options = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert options - known == set()
