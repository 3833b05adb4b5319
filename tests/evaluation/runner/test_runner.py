"""What a run writes is what `ask` says, whatever the batches, and every prompt is read once."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit import detectors, methods
from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    PolicyError,
    UnknownNameError,
)
from conflictkit.evaluation import Result, evaluate, load_run
from conflictkit.policy import ModelTie, Policy
from conflictkit.types import Case
from tests.engine import reference
from tests.evaluation.runner.conftest import NINE, case, closed, rows
from tests.tiny import byte_tokenizer, llama

SWEEP = "ck-plug?alpha=0:1:0.25"
MOST = 7


def answers(model: Any, cases: list[Case], spec: Any, **options: Any) -> list[Any]:
    """What `ask_batch` says to cases without fixed prompts, everything recorded."""
    return model.ask_batch(
        [one.question for one in cases],
        [one.contexts or None for one in cases],
        spec,
        max_new_tokens=MOST,
        scores=detectors.names(),
        top=3,
        **options,
    )


def short(value: float) -> float:
    return float(f"{value:.4g}")


def close(value: float) -> Any:
    """Four digits were kept, and batches may differ by rounding."""
    return pytest.approx(value, rel=6e-4, abs=2e-5)


@pytest.mark.slow
def test_every_method_says_what_ask_says_token_for_token(
    model: Any, mixed: list[Case], tmp_path: Path
) -> None:
    gated = Policy.of("cad?alpha=2", when="jsd > 0.4", strength=0.5)
    run = evaluate(
        model, mixed, f"{NINE},{SWEEP}", tmp_path, policies={"gated": gated},
        max_new_tokens=MOST, batch_size=4,
    )  # fmt: skip
    labels = [*NINE.split(","), *(f"ck-plug?alpha={a}" for a in ("0", "0.25", "0.5", "0.75", "1"))]
    assert sorted(run.info["methods"]) == sorted([*labels, "gated"])
    found = {(one.case, one.method): one for one in run.results}
    assert len(found) == len(run.results) == len(mixed) * (len(labels) + 1)
    built = [one for one in mixed if one.prompt is None]
    for label in run.info["methods"]:
        spec = {"policy": gated, "spec": None} if label == "gated" else {"spec": label}
        for one, wanted in zip(built, answers(model, built, **spec), strict=True):
            result = found[one.id, label]
            tokens = [token for token in wanted.trace.tokens if token.kind != "end"]
            assert result.ids == tuple(token.id for token in tokens)
            assert (result.answer, result.finish_reason) == (wanted.text, wanted.finish_reason)
            for told, token in zip(result.tokens, tokens, strict=True):
                assert told["text"] == token.text
                assert told["context_weight"] == close(token.context_weight)
                assert told["memory_weight"] == close(token.memory_weight)
                if not one.contexts:
                    continue
                assert told["scores"] == {name: close(v) for name, v in token.scores.items()}
                for stream in ("context_top", "memory_top"):
                    tops = getattr(token, stream)
                    assert told[stream] == [[c.text, close(c.probability)] for c in tops]


@pytest.mark.slow
def test_costs_are_those_of_asking_alone(model: Any, mixed: list[Case], tmp_path: Path) -> None:
    mixed = [*mixed[:3], mixed[-2]]
    spec = f"{NINE},ck-plug?alpha=0:1:0.5"
    run = evaluate(model, mixed, spec, tmp_path, max_new_tokens=MOST, batch_size=5)
    config = model.model.config
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * width * 4  # keys and values in float32
    for one in mixed:
        for result in run.results:
            if result.case != one.id:
                continue
            said = model.ask(
                one.question, one.contexts or None, result.method, max_new_tokens=MOST, trace=False
            )
            cost = result.cost
            assert cost.forwards == said.stats.forwards
            assert cost.context_tokens == said.stats.context_tokens
            assert cost.memory_tokens == said.stats.memory_tokens
            assert cost.cache_bytes == position * cost.memory_tokens
            assert cost.seconds > 0


@contextmanager
def read(model: Any) -> Iterator[list[int]]:
    """Tokens, padding left out, of every pass that begins a stream."""
    begun: list[int] = []

    def watch(module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["past_key_values"] is None or not given["past_key_values"].get_seq_length():
            begun.append(int(given["attention_mask"].sum()))

    hook = model.model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield begun
    finally:
        hook.remove()


def test_prompts_are_read_once_however_many_methods(model: Any, tmp_path: Path) -> None:
    cases = [case(number) for number in range(6)]
    prompts = [model.prompts(one.question, one.contexts) for one in cases]
    total = sum(len(prompt.ids) for row in prompts for prompt in row.values())
    for name, spec in {"one": "plain", "nine": NINE, "sweep": "ck-plug?alpha=0:1:0.1"}.items():
        with read(model) as begun:
            evaluate(model, cases, spec, tmp_path / name, max_new_tokens=3, batch_size=6)
        # One batch, two streams; the same once more to warm up.
        assert len(begun) == 4
        assert sum(begun) == 2 * total


def test_the_context_streams_opinion_of_an_answer(model: Any, mixed: list[Case], tmp_path: Path):
    run = evaluate(model, mixed, "plain,memory,grd", tmp_path, max_new_tokens=MOST)
    prompts = {one.id: one for one in mixed}
    for result in run.results:
        one = prompts[result.case]
        if one.prompt is not None:
            start = model.tokenizer(one.prompt)["input_ids"]
        elif one.contexts:
            start = model.prompts(one.question, one.contexts)["context"].ids
        else:
            assert result.context_logprob is None
            assert all(not token["context_top"] for token in result.tokens)
            continue
        said = 0.0
        for index, token in enumerate(result.ids):
            logits = reference.next_logits(model.model, [*start, *result.ids[:index]])
            said += float(logits.double().log_softmax(-1)[0, token])
        assert result.context_logprob == pytest.approx(said, abs=1e-3)


def test_a_prompt_that_a_case_fixes_is_read_as_it_stands(tmp_path: Path) -> None:
    # This tokenizer puts an end token behind every text, which would end the prompt.
    model = ck.load(llama(vocab=261), tokenizer=byte_tokenizer(end=True))
    one = case(1, prompt="<s>Fixed. Which? It is", memory_prompt="Which? It is")
    run = evaluate(model, [one], NINE, tmp_path, max_new_tokens=MOST)
    letters = [token for token in model.tokenizer("Which? It is")["input_ids"][1:-1]]
    special = model.tokenizer("<s>")["input_ids"][1:-1]
    fixed = model.tokenizer("Fixed. Which? It is")["input_ids"][1:-1]
    for result in run.results:
        wanted = reference.greedy(
            model.model,
            methods.build(result.method),
            [0, *special, *fixed],
            [0, *letters],
            MOST,
            {1},
        )
        assert list(result.ids) == wanted
    assert special == [0]


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["plain", "memory", "coiecd", "grd", "ck-plug?alpha=0.2"])
def test_choices_are_weighed_as_the_method_would_have_said_them(
    model: Any, spec: str, tmp_path: Path
) -> None:
    cases = [
        case(number, choices=choices, **fixed)
        for number, choices, fixed in (
            (0, ("red", "a gr"), {}),
            (1, ("7", "no", "the"), {}),
            (2, ("A", "B"), {"prompt": "It is B. A or B? ", "memory_prompt": "A or B? "}),
            (3, (), {}),
        )
    ]
    run = evaluate(model, cases, spec, tmp_path, max_new_tokens=3, batch_size=3)
    rule = methods.parse(spec)
    for one in cases:
        (result,) = (result for result in run.results if result.case == one.id)
        assert list(result.choices) == list(one.choices)
        if one.prompt is not None:
            context, memory = (
                model.tokenizer(text)["input_ids"] for text in (one.prompt, one.memory_prompt)
            )
        else:
            built = model.prompts(one.question, one.contexts)
            context, memory = built["context"].ids, built["memory"].ids
        for choice, told in result.choices.items():
            text = choice if one.prompt is not None else f" {choice}"
            ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            wanted = sum(
                float(reference.scores(model.model, rule, context, memory, ids[:index])[token])
                for index, token in enumerate(ids)
            )
            if math.isinf(wanted):
                assert told == -math.inf
            else:
                assert told == pytest.approx(wanted, abs=2e-3)


def test_choices_are_weighed_with_what_a_method_remembers(model: Any, tmp_path: Path) -> None:
    one = case(0, choices=("red", "rot"))
    late = Policy.of("cad?alpha=3", start_after=" r")
    run = evaluate(model, [one], (), tmp_path, policies={"late": late}, max_new_tokens=1)
    built = model.prompts(one.question, one.contexts)
    prompts = (built["context"].ids, built["memory"].ids)
    for choice, told in run.results[0].choices.items():
        ids = model.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        wanted = sum(
            float(reference.scores(model.model, rule, *prompts, ids[:index])[token])
            for index, token in enumerate(ids)
            for rule in [methods.build("plain") if index < 2 else methods.build("cad", alpha=3.0)]
        )
        assert told == pytest.approx(wanted, abs=2e-3)


def test_a_case_that_cannot_be_asked_is_set_aside_and_counted(model: Any, tmp_path: Path) -> None:
    long = case(1, id="long", contexts=("x" * 300,))
    fixed = case(2, id="fixed", prompt="y" * 250, memory_prompt="y")
    many = case(3, id="many", choices=("a", "z" * 250))
    run = evaluate(model, [case(0), long, fixed, many], "plain,cad", tmp_path, max_new_tokens=9)
    assert {one.case: one.error for one in run.errors} == dict.fromkeys(
        ("long", "fixed", "many"), "ContextTooLongError"
    )
    assert "window" in run.errors[1].reason
    assert [(one.case, one.method) for one in run.results] == [("c0", "plain"), ("c0", "cad")]
    assert (run.finished, len(run.cases), run.info["cases"]["count"]) == (True, 4, 4)
    with pytest.raises(EmptyInputError, match="none of the 1 cases can be asked: question and"):
        evaluate(model, [long], "plain", tmp_path / "none", max_new_tokens=9)
    assert not (tmp_path / "none").exists()


def test_a_case_that_breaks_the_model_spoils_no_other(tmp_path: Path) -> None:
    broken = copy.deepcopy(llama(vocab=261))
    tokenizer = byte_tokenizer()
    (letter,) = tokenizer("~", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        broken.get_input_embeddings().weight[letter] = torch.nan
    model = ck.load(broken, tokenizer=tokenizer)
    bad = case(1, id="bad", question="Which ~?")
    run = evaluate(model, [case(1), bad, case(2)], "plain,grd", tmp_path, max_new_tokens=4)
    assert [(one.case, one.error) for one in run.errors] == [("bad", "LogitsError")]
    whole = evaluate(
        ck.load(llama(vocab=261), tokenizer=tokenizer),
        [case(1), case(2)], "plain,grd", tmp_path / "whole", max_new_tokens=4,
    )  # fmt: skip
    assert {(r.case, r.method): r.ids for r in run.results} == {
        (r.case, r.method): r.ids for r in whole.results
    }


@pytest.mark.slow
def test_sampling_depends_on_the_seed_and_on_nothing_else(
    model: Any, mixed: list[Case], tmp_path: Path
) -> None:
    def said(name: str, spec: str = f"plain,{SWEEP}", **options: Any) -> dict[Any, Any]:
        run = evaluate(
            model, mixed, spec, tmp_path / name, temperature=1.0, max_new_tokens=5, **options
        )
        return {(one.case, one.method): one.ids for one in run.results}

    first = said("a", seed=5, batch_size=11)
    assert said("b", seed=5, batch_size=2) == first
    other = said("c", seed=6)
    assert sum(other[key] == ids for key, ids in first.items()) < len(first) / 2
    # Each case draws its own numbers, and the same ones under every method.
    alone = said("d", "ck-plug?alpha=1", seed=5)
    assert alone == {key: ids for key, ids in first.items() if key[1] == "ck-plug?alpha=1"}
    asked = answers(model, [mixed[3]], "plain", temperature=1.0, seed=5 + 3)
    assert len(first["c3", "plain"]) <= 5
    tokens = [token.id for token in asked[0].trace.tokens if token.kind != "end"]
    assert tokens[: len(first["c3", "plain"])][:5] == list(first["c3", "plain"])


def test_run_json_says_what_was_run(model: Any, mixed: list[Case], tmp_path: Path) -> None:
    run = evaluate(
        model, mixed, "plain,cad?alpha=2", tmp_path, max_new_tokens=3, stop="\n", seed=3,
        batch_size=7, spec="my cases",
    )  # fmt: skip
    info = run.info
    assert info == json.loads((tmp_path / "run.json").read_text())
    assert (info["format"], info["version"]) == ("conflictkit-run", 1)
    parameters = sum(one.numel() for one in model.model.parameters())
    assert info["model"] == {
        "name": model.name, "fingerprint": model.fingerprint, "class": "LlamaForCausalLM",
        "parameters": parameters, "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    assert info["cases"]["spec"] == "my cases"
    assert info["cases"]["states"] == {
        "correction": 3, "resistance": 2, "agreement": 2, "irrelevant": 2, "recall": 2
    }  # fmt: skip
    assert len(info["cases"]["hash"]) == 64
    assert info["methods"] == ["plain", "cad?alpha=2"]
    assert info["policies"]["cad?alpha=2"] == Policy.of("cad?alpha=2").to_dict()
    wanted = {"max_new_tokens": 3, "stop": ["\n"], "temperature": 0.0, "seed": 3, "batch_size": 7}
    assert wanted.items() <= info["options"].items()
    assert info["versions"]["conflictkit"] == ck.__version__
    assert info["versions"]["torch"] == torch.__version__
    assert info["started"] <= info["finished"]
    assert tuple(mixed) == run.cases
    assert run.summary is not None
    assert run.summary.methods == ("plain", "cad?alpha=2")
    assert run.summary.seed == 3


def test_results_come_back_as_they_were_written(model: Any, tmp_path: Path) -> None:
    run = evaluate(model, [case(0), closed(1)], "plain", tmp_path, max_new_tokens=3)
    again = load_run(tmp_path)
    assert again.results == run.results
    assert [Result.from_dict(row) for row in rows(tmp_path, seconds=True)] == list(run.results)


def test_another_way_to_recognise_answers_makes_the_summary_again(
    model: Any, mixed: list[Case], tmp_path: Path
) -> None:
    evaluate(model, mixed, "plain", tmp_path, max_new_tokens=3)
    before = (tmp_path / "rows.jsonl").read_bytes()
    run = evaluate(model, mixed, "plain", tmp_path, max_new_tokens=3, match="exact")
    assert run.summary is not None
    assert run.summary.match == "exact"
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_a_limit_takes_equal_shares_of_the_states(model: Any, tmp_path: Path) -> None:
    cases = [
        case(n, state=STATE) for n, STATE in enumerate(["correction"] * 9 + ["resistance"] * 3)
    ]
    for limit, wanted in ((6, (3, 3)), (9, (6, 3)), (100, (9, 3))):
        run = evaluate(model, cases, "plain", tmp_path / str(limit), limit=limit, max_new_tokens=1)
        states = run.info["cases"]["states"]
        assert (states["correction"], states["resistance"]) == wanted
        numbers = [int(one.id[1:]) for one in run.cases]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"num_beams": 2}, UnknownNameError, "option of an evaluation 'num_beams'"),
        ({"max_new_token": 2}, UnknownNameError, "did you mean 'max_new_tokens'"),
        ({"batch_size": 0}, InvalidParameterError, "batch_size must be a whole number"),
        ({"limit": 0}, InvalidParameterError, "limit must be a whole number"),
        ({"split": "train"}, InvalidParameterError, "no case is of split 'train': there are test"),
        ({"match": "exat"}, UnknownNameError, "did you mean 'exact'"),
        ({"max_new_tokens": 999}, InvalidParameterError, "leaves no room"),
        ({"cases": []}, EmptyInputError, "no cases"),
        ({"cases": "atlsa"}, UnknownNameError, "did you mean 'atlas'"),
        ({"methods": "cda"}, UnknownNameError, "did you mean 'cad'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_folder_is_made(
    model: Any, tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    given = {"cases": [case(0)], "methods": "plain", **options}
    with pytest.raises(error, match=said):
        evaluate(model, given.pop("cases"), given.pop("methods"), tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_policy_for_another_model_is_refused(model: Any, tmp_path: Path) -> None:
    tied = Policy(Policy.of("cad").controller, ModelTie("other", "0" * 64))
    with pytest.raises(PolicyError, match="made for the model 'other'"):
        evaluate(model, [case(0)], (), tmp_path / "run", policies={"tied": tied})


def test_no_memory_left_says_what_to_do(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("conflictkit.evaluation.runner._Runner._results", full)
    with pytest.raises(InvalidParameterError, match="--batch-size"):
        evaluate(model, [case(0)], "plain", tmp_path)
    monkeypatch.undo()
    assert evaluate(model, [case(0)], "plain", tmp_path, batch_size=1).finished
