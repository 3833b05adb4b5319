"""Methods that edit activations, by every road: ask, generate, attach, policies, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit.errors import InvalidParameterError, RankingError, UnsupportedError
from conflictkit.evaluation import evaluate
from conflictkit.interventions.edited import EditRule
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.policy import Policy
from tests.tiny import byte_tokenizer, llama

QUESTION, CONTEXT = "What is the capital of Sweden?", "The capital of Sweden is Oslo."
EDITS = ck.methods.names(edits=True)
RANKED = [name for name in EDITS if getattr(ck.methods.describe(name).rule, "ranked_by", "")]


@pytest.fixture(scope="module")
def atlas() -> Any:
    return ck.load("atlas")


@pytest.fixture(scope="module")
def other() -> Any:
    return ck.load(llama(300), tokenizer=byte_tokenizer())


@pytest.mark.parametrize("name", RANKED)
def test_atlas_ships_the_heads_of_every_method(atlas: Any, name: str) -> None:
    rule = ck.methods.describe(name).rule
    assert issubclass(rule, EditRule)
    file = ck.atlas.heads(rule.ranked_by)
    assert file is not None
    ranking = HeadRanking.read(file)
    ranking.check("atlas", atlas.fingerprint)  # else: python experiments/heads/rank.py
    answer = atlas.ask(QUESTION, CONTEXT, name)
    assert answer.method == name
    named = [answer.params[one] for one in rule.lists]
    assert any(named)
    assert answer.stats.edits > 0
    assert answer.stats.forwards == len(answer.trace.tokens) * ck.methods.describe(name).forwards
    again = atlas.ask(QUESTION, CONTEXT, rule(**{k: answer.params[k] for k in rule.lists}))
    assert again.text == answer.text


def test_a_ranking_or_its_file_names_the_heads(atlas: Any, tmp_path: Path) -> None:
    file = ck.atlas.heads("path-patching")
    assert file is not None
    ranking = HeadRanking.read(file)
    wanted = "+".join(f"{layer}.{head}" for layer, head in ranking.top("memory", 2))
    for given in (ranking, file, str(file), [ranking], [str(file)]):
        answer = atlas.ask(QUESTION, CONTEXT, "ph3", k=2, heads=given, trace=False)
        assert answer.params["heads"] == wanted
    with pytest.raises(InvalidParameterError, match=r"takes its heads from a ranking by attribut"):
        atlas.ask(QUESTION, CONTEXT, "head-scale", heads=file)
    # Of several the one that fits is taken.
    both = [str(file), str(ck.atlas.heads("attribution"))]
    assert atlas.ask(QUESTION, CONTEXT, "head-scale", heads=both, trace=False).params["heads"]
    with pytest.raises(InvalidParameterError, match="heads must be a ranking or its file, not int"):
        atlas.ask(QUESTION, CONTEXT, "ph3", heads=3)


def test_another_model_is_refused_or_asked_which_heads(other: Any) -> None:
    with pytest.raises(
        InvalidParameterError, match="rank-heads --model MODEL --cases FILE --by at"
    ):
        other.ask(QUESTION, CONTEXT, "head-scale")
    with pytest.raises(RankingError, match="ranked in other weights .model 'atlas'"):
        other.ask(QUESTION, CONTEXT, "head-scale", heads=ck.atlas.heads("attribution"))
    assert other.ask(QUESTION, CONTEXT, "head-scale?heads=1.3", max_new_tokens=3).stats.edits > 0


@pytest.mark.parametrize("text", ["3", "3.", "3.x", "a.b", "-1.2", "1.2,3.4", "1" * 9 + ".1"])
def test_heads_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="write LAYER.HEAD"):
        ck.methods.build("ph3", heads=text)


def test_heads_are_said_once_and_in_one_way() -> None:
    rule: Any = ck.methods.build("ph3", heads="3.5 + 4.1+3.5")
    assert rule.heads == "3.5+4.1"
    with pytest.raises(InvalidParameterError, match="no head"):
        ck.load("atlas").ask(QUESTION, CONTEXT, "ph3?heads=3.5+9.9")


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_a_policy_holds_all_of_it(atlas: Any, name: str, tmp_path: Path) -> None:
    answer = atlas.ask(QUESTION, CONTEXT, name, when="jsd > 0.05 at prompt")
    rule = ck.methods.build(name, **{k: v for k, v in answer.params.items() if k != "when"})
    policy = Policy.of(rule, when="jsd > 0.05 at prompt")
    policy.save(tmp_path / "policy.json")
    again = Policy.load(tmp_path / "policy.json")
    assert again == policy
    assert atlas.ask(QUESTION, CONTEXT, policy=again).text == answer.text


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_generate_and_attach_say_what_ask_says(atlas: Any, name: str) -> None:
    questions = [QUESTION, "What is the currency of Poland?"]
    contexts = [CONTEXT, "It is officially confirmed that the currency of Poland is the euro."]
    asked = atlas.ask_batch(questions, contexts, name, max_new_tokens=6, trace=False)
    rule: Any = ck.methods.build(name, **asked[0].params)
    prompts = [atlas.prompts(q, c)["context"] for q, c in zip(questions, contexts, strict=True)]
    lengths, spans = [len(one.ids) for one in prompts], [one.context for one in prompts]
    inputs = atlas.tokenizer.pad({"input_ids": [list(p.ids) for p in prompts]}, return_tensors="pt")
    width = inputs["input_ids"].shape[1]

    def said(made: torch.Tensor) -> list[str]:
        rows = atlas.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
        return [row.strip() for row in rows]

    options = {"max_new_tokens": 6, "do_sample": False}
    made = atlas.model.generate(
        **inputs, **options, custom_generate=ck.decode, method=rule, context_spans=spans
    )
    assert said(made) == [one.text for one in asked]
    if rule.needs == ("edited",):
        with rule.attach(atlas.model, prompt_lengths=lengths, spans=spans) as handle:
            assert said(atlas.model.generate(**inputs, **options)) == [one.text for one in asked]
        assert handle.edits > 0
    else:
        with pytest.raises(UnsupportedError, match="custom_generate=conflictkit.decode"):
            rule.attach(atlas.model)
    memory = atlas.prompts(QUESTION)["memory"].ids
    with pytest.raises(UnsupportedError, match="edits activations, which a processor cannot"):
        ck.ConflictProcessor(atlas.model, [list(memory)], method=rule)


def test_attention_steering_has_to_know_where_the_context_stands(atlas: Any) -> None:
    rule: Any = ck.methods.build("attention-steering", heads="4.5")
    with pytest.raises(InvalidParameterError, match="has to know where each prompt's context"):
        rule.attach(atlas.model, prompt_lengths=[9])


@pytest.mark.slow
def test_an_evaluation_edits_too(atlas: Any, tmp_path: Path) -> None:
    specs = ["plain", "ph3?heads=5.1+4.4", "juice?suppress_heads=5.1", "decore?heads=5.1+4.5",
             "attention-steering?heads=5.1&alpha=0.2"]  # fmt: skip
    cases = [c for s in ("correction", "agreement") for c in ck.atlas.cases("test", s)[:6]]
    cases += ck.atlas.guards("test", "recall")[:4]
    run = evaluate(atlas, cases, [*specs, "ph3?heads=5.1&k=1:3:2"], tmp_path / "run", batch_size=5)
    by_id = {case.id: case for case in cases}
    for result in run.results:
        case = by_id[result.case]
        if not case.contexts:
            continue
        asked = atlas.ask(case.question, case.contexts, result.method, max_new_tokens=48)
        assert result.answer == asked.text
        cost = result.cost
        assert (cost.forwards, cost.context_tokens) == (
            asked.stats.forwards,
            asked.stats.context_tokens,
        )
    # Closed book an edit acts as well: all heads off, and nothing is recalled.
    heads = "+".join(f"{layer}.{head}" for layer in range(6) for head in range(8))
    off = evaluate(atlas, cases, ["plain", f"ph3?heads={heads}"], tmp_path / "off")
    assert off.summary is not None
    recalled = {label: cell["recall"].value for label, cell in off.summary.cells.items()}
    assert recalled == {"plain": 1.0, f"ph3?heads={heads}": 0.0}


def test_the_command_takes_heads(capsys: pytest.CaptureFixture[str]) -> None:
    from conflictkit.cli import main

    file = str(ck.atlas.heads("path-patching"))
    arguments = [
        "ask",
        QUESTION,
        "--context",
        CONTEXT,
        "--method",
        "ph3",
        "--heads",
        file,
        "--json",
    ]
    assert not main(arguments)
    told = json.loads(capsys.readouterr().out)
    assert told["params"]["heads"]
    assert told["stats"]["edits"] > 0
