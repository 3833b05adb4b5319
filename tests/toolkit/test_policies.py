"""Policies through the face: gates, markers and one policy per row, against re-read streams."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import conflictkit as ck
from conflictkit import calibration, methods
from conflictkit.calibration import threshold
from conflictkit.errors import InvalidParameterError, PolicyError
from conflictkit.interventions.contrast import mix
from conflictkit.types import Step
from tests.engine.reference import next_logits
from tests.tiny import byte_tokenizer, llama

VOCAB = 300
QUESTION, CONTEXT = "What is it that they said?", "Because. For no reason at all."


@pytest.fixture(scope="module")
def model():
    return ck.load(llama(VOCAB), tokenizer=byte_tokenizer())


def by_brute_force(model, controller, n, question=QUESTION, context=CONTEXT):
    """Greedy answer of a controller whose streams are read anew at every step."""
    prompts = model.prompts(question, context)
    said, state, active = [], controller.initial(1), []
    while len(said) < n:
        logits = {
            name: next_logits(model.model, [*prompts[name].ids, *said])
            for name in ("context", "memory")
        }
        previous = torch.tensor(said[-1:]) if said else None
        step = Step.from_logits(logits, len(said), previous)
        decision = controller(step, state)
        state = decision.state
        active.append(float(decision.scores.get("active", torch.ones(1))[0]))
        said.append(int(mix(step, decision).logits.argmax()))
        if said[-1] == 1:
            return said[:-1], active
    return said, active


def traced(answer):
    return answer.trace.tokens


def tokens(answer):
    return [token.id for token in traced(answer) if token.kind != "end"]


@pytest.mark.parametrize("when", ["jsd > 0.35", "jsd > 0.4 until 0.3", "jsd > 0.3 at prompt"])
def test_a_gated_method_is_the_brute_force_answer(model, when):
    controller = ck.Controller(methods.build("cad", alpha=3.0), when)
    wanted, active = by_brute_force(model, controller, 24)
    answer = model.ask(QUESTION, CONTEXT, "cad", alpha=3.0, when=when, max_new_tokens=24)
    assert tokens(answer) == wanted
    assert [token.scores["active"] for token in answer.trace.tokens] == active
    assert answer.params["when"] == str(ck.Gate.parse(when))
    if "prompt" not in when:
        assert set(active) == {0.0, 1.0}


def test_control_starts_after_the_marker(model):
    plain = model.ask(QUESTION, CONTEXT, "plain", max_new_tokens=24)
    ids = tokens(plain)
    marker = tuple(ids[4:6])
    place = next(i for i in range(1, len(ids)) if tuple(ids[i - 1 : i + 1]) == marker) + 1
    answer = model.ask(QUESTION, CONTEXT, "memory", start_after=marker, max_new_tokens=24)
    assert tokens(answer)[:place] == ids[:place]
    active = [token.scores["active"] for token in answer.trace.tokens]
    assert active == [0.0] * place + [1.0] * (len(active) - place)
    controller = ck.Controller(methods.build("memory"), start_after=marker)
    assert tokens(answer) == by_brute_force(model, controller, 24)[0]
    # The memory stream has read the part without control too.
    assert answer.stats.memory_tokens > len(ids)


def test_a_marker_given_as_text_is_found_in_the_answer(model):
    plain = tokens(model.ask(QUESTION, CONTEXT, "plain", max_new_tokens=12))
    place = next(i for i, t in enumerate(plain) if model.tokenizer.decode([t]).isprintable())
    marker = model.tokenizer.decode([plain[place]])
    options = {"max_new_tokens": 12, "method": "cad", "alpha": 3.0}
    said = model.ask(QUESTION, CONTEXT, start_after=marker, **options)
    assert said.params["start_after"] == marker
    first = plain.index(plain[place])
    active = [token.scores["active"] for token in traced(said)]
    assert active == [float(i > first) for i in range(len(active))]
    ids = model.ask(QUESTION, CONTEXT, start_after=(plain[place],), **options)
    assert tokens(said) == tokens(ids)


def test_every_row_has_its_own_policy(model, tmp_path):
    path = tmp_path / "gated.json"
    ck.Policy.of("cad?alpha=2", when="jsd > 0.35", strength=1.5).save(path)
    each = [path, ck.Policy.of("memory"), ck.Policy.of("grd"), str(path), ck.Policy.of("plain")]
    questions = [QUESTION, "Who?", QUESTION, "Why so?", "Who?"]
    contexts = [CONTEXT, "Nobody knows.", None, CONTEXT, ["A.", "B."]]
    batch = model.ask_batch(questions, contexts, policy=each, max_new_tokens=16)
    for question, context, policy, answer in zip(questions, contexts, each, batch, strict=True):
        alone = model.ask(question, context, policy=policy, max_new_tokens=16)
        assert tokens(answer) == tokens(alone)
        assert answer.params == alone.params
        assert answer.method == alone.method
        assert [set(t.scores) for t in answer.trace.tokens] == [
            set(t.scores) for t in alone.trace.tokens
        ]
        beams = {"num_beams": 3, "max_new_tokens": 6}
        assert tokens(model.ask(question, context, policy=policy, **beams)) == tokens(
            model.ask_batch(
                [question, "Who?"], [context, CONTEXT], policy=[policy, each[0]], **beams
            )[0]
        )


def test_a_batch_of_several_methods_names_no_row_s_scores_by_another_s_method(model):
    """CK-PLUG measures on the tokens it keeps; its names for that are its own row's alone."""
    each = [
        ck.Policy.of("coiecd", when="confidence-gain < 0"),
        ck.Policy.of("grd"),
        ck.Policy.of("ck-plug", when="confidence-gain < 0"),
    ]
    options = {"scores": ("confidence-gain-kept", "context-entropy"), "max_new_tokens": 6}
    batch = model.ask_batch([QUESTION] * 3, [CONTEXT] * 3, policy=each, **options)
    for policy, answer in zip(each, batch, strict=True):
        alone = model.ask(QUESTION, CONTEXT, policy=policy, **options)
        for ours, theirs in zip(traced(answer), traced(alone), strict=True):
            assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
    plug, detectors = batch[2], {"scores": ("confidence-gain",), "max_new_tokens": 6}
    plain = model.ask(QUESTION, CONTEXT, "plain", **detectors)
    assert traced(plug)[0].scores["confidence_gain"] == pytest.approx(
        traced(plain)[0].scores["confidence_gain"], abs=1e-4
    )


def test_processors_read_the_context_whatever_the_batch_mates_need(model):
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    processors = [RepetitionPenaltyLogitsProcessor(9.0)]
    options = {"processors": processors, "max_new_tokens": 10}
    alone = model.ask(QUESTION, CONTEXT, "memory", **options)
    batch = model.ask_batch([QUESTION] * 2, [CONTEXT] * 2, ["memory", "cad"], **options)
    assert tokens(batch[0]) == tokens(alone)
    prompts = model.prompts(QUESTION, CONTEXT)
    written = model.model.generate(
        torch.tensor([prompts["context"].ids]),
        custom_generate=ck.decode,
        memory_ids=prompts["memory"].ids,
        method="memory",
        logits_processor=LogitsProcessorList(processors),
        max_new_tokens=10,
        eos_token_id=1,
        pad_token_id=2,
    )
    said = written[0, len(prompts["context"].ids) :].tolist()
    assert [i for i in said if i not in (1, 2)] == tokens(alone)


def test_rows_with_methods_by_name_and_sampling_seeds(model):
    methods_ = ["cad?alpha=1", "interpolate?weight=0.5", "adacad"]
    options = {"temperature": 1.0, "seed": 7, "max_new_tokens": 8}
    batch = model.ask_batch([QUESTION] * 3, [CONTEXT] * 3, methods_, **options)
    for row, (method, answer) in enumerate(zip(methods_, batch, strict=True)):
        alone = model.ask(QUESTION, CONTEXT, method, **{**options, "seed": 7 + row})
        assert tokens(answer) == tokens(alone)


def test_a_policy_survives_its_file_and_answers_alike(model, tmp_path):
    policy = ck.Policy.of("cad?alpha=2", when="jsd > 0.35", start_after=(60,))
    policy.save(tmp_path / "p.json")
    first = model.ask(QUESTION, CONTEXT, policy=policy, max_new_tokens=12)
    again = model.ask(QUESTION, CONTEXT, policy=tmp_path / "p.json", max_new_tokens=12)
    assert first.to_dict() == again.to_dict()


def atlas_cases():
    quiet, loud = (ck.atlas.cases("validation", s) for s in ("agreement", "resistance"))
    return [case for case in quiet if len(case.contexts[0]) < 150][:20] + loud[:10]


@pytest.mark.slow
def test_calibrate_sets_the_threshold_from_the_quiet_cases(tmp_path):
    atlas, cases = ck.load("atlas"), atlas_cases()
    policy = atlas.calibrate(cases, false_alarm=0.1, method="memory", max_new_tokens=8)
    gate, found = policy.controller.gate, policy.calibration
    assert gate is not None and found is not None and found.detection is not None  # noqa: PT018
    quiet = cases[:20]
    answers = atlas.ask_batch(
        [case.question for case in quiet], [case.contexts for case in quiet], "plain",
        max_new_tokens=8,
    )  # fmt: skip
    highest = [max(t.scores["jsd"] for t in traced(answer)) for answer in answers]
    assert gate.detector == "jsd"
    assert gate.threshold == pytest.approx(sorted(highest)[-2], abs=1e-5)
    assert (found.asked, found.negatives, found.positives) == (0.1, 20, 10)
    assert found.false_alarm <= 0.1
    assert found.detection > found.false_alarm
    policy.save(tmp_path / "p.json")
    assert ck.Policy.load(tmp_path / "p.json") == policy
    assert policy.controller.rule == methods.build("memory")
    again = atlas.ask(cases[0].question, cases[0].contexts, policy=tmp_path / "p.json")
    assert again.params["when"] == str(gate)


def test_a_low_score_is_an_alarm_where_the_detector_says_so():
    atlas = ck.load("atlas")
    policy = atlas.calibrate(
        atlas_cases(), detector="confidence-gain", false_alarm=0.25, at="prompt", max_new_tokens=2
    )
    gate = policy.controller.gate
    assert gate is not None and policy.calibration is not None  # noqa: PT018
    assert (gate.sign, gate.at) == ("<", "prompt")
    assert policy.calibration.false_alarm <= 0.25
    assert threshold([3.0, 1.0, 2.0, 4.0], "<", 0.4) == 2.0


@pytest.mark.parametrize(("n", "share"), [(19, 0.05), (20, 0.05), (10, 0.1), (9, 0.3)])
def test_a_fresh_answer_is_no_false_alarm_more_often_than_asked(n, share):
    """On numbers that were not there when the threshold was set."""
    rng = np.random.default_rng(0)
    old, fresh = rng.normal(size=(4000, n)), rng.normal(size=4000)
    bounds = np.array([threshold(list(row), ">", share) for row in old])
    # 4,000 draws: three standard errors of the share.
    assert (fresh > bounds).mean() <= share + 3 * (share * (1 - share) / 4000) ** 0.5
    assert (fresh > bounds).mean() > share / 2


def test_calibration_looks_where_the_gate_is_asked():
    """Behind the marker, and not at the end token, as the gate itself does."""

    def answer(*scored) -> Any:
        kinds = ["text"] * (len(scored) - 1) + ["end"]
        rows = zip(scored, kinds, strict=True)
        found = [SimpleNamespace(id=i, scores={"jsd": v}, kind=kind) for (i, v), kind in rows]
        return SimpleNamespace(trace=SimpleNamespace(tokens=found))

    said = answer((5, 0.6), (7, 0.5), (8, 0.1), (9, 0.3), (1, 0.69))
    for at, marker, score in (
        ("step", None, 0.6), ("prompt", None, 0.6),
        ("step", (7,), 0.3), ("prompt", (7,), 0.1), ("step", (7, 8), 0.3),
        ("step", (8, 7), -math.inf), ("step", (9,), -math.inf),
    ):  # fmt: skip
        control = ck.Controller(methods.build("cad"), start_after=marker)
        assert calibration._score(said, "jsd", ">", at, control) == score
    control = ck.Controller(methods.build("cad"))
    assert calibration._score(answer((1, 0.4)), "jsd", "<", "step", control) == math.inf


def test_a_calibrated_policy_refuses_another_model(model):
    tied = dataclasses.replace(
        ck.Policy.of("cad"), model=ck.policy.ModelTie("atlas", ck.load("atlas").fingerprint)
    )
    with pytest.raises(PolicyError, match="made for the model 'atlas'"):
        model.ask(QUESTION, CONTEXT, policy=tied)


def test_the_fingerprint_tells_weights_apart_and_not_their_precision():
    from conflictkit.models import fingerprint

    first, second = llama(VOCAB), llama(VOCAB, seed=1)
    assert fingerprint(first) != fingerprint(second)
    import copy

    half = copy.deepcopy(first).bfloat16()
    assert fingerprint(half) == fingerprint(first) == fingerprint(half.float())
    nudged = copy.deepcopy(first)
    with torch.no_grad():
        nudged.lm_head.weight[0, 0] += 1
    assert fingerprint(nudged) != fingerprint(first)


@pytest.mark.parametrize("size", [2**24 + 2, 24_576_000])
def test_the_fingerprint_of_a_large_weight_stays_inside_it(size):
    from conflictkit.models import fingerprint

    one = torch.nn.Module()
    one.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.int8).expand(size), False)
    assert len(fingerprint(one)) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": ck.Policy.of("cad"), "method": "cad"}, "leave method= out"),
        ({"policy": ck.Policy.of("cad"), "alpha": 1.0}, "leave alpha= out"),
        ({"policy": ck.Policy.of("cad"), "when": "jsd > 1"}, "leave when= out"),
        ({"method": ["cad", "cad"]}, "2 entries in method for 1 rows"),
        ({"method": ["cad"], "alpha": 1.0}, "name\\?parameter=value"),
    ],
)
def test_two_ways_to_say_one_thing_are_refused(model, arguments, message):
    with pytest.raises(InvalidParameterError, match=message):
        model.ask(QUESTION, CONTEXT, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"false_alarm": 0.01}, "needs at least 99 cases of agreement, not 20"),
        ({"false_alarm": 0}, "between 0 and 1"),
        ({"at": "once"}, "'step' or 'prompt'"),
        ({"false_alarm": "0.1"}, "between 0 and 1"),
        ({"batch": 0}, "batch must be"),
        ({"temperature": 1.0}, "does not take temperature="),
        ({"when": "jsd > 3"}, "does not take when="),
        ({"start_after": "never written"}, "no token that the gate would be asked at"),
    ],
)
def test_calibration_refuses_what_it_cannot_do(arguments, message):
    with pytest.raises(InvalidParameterError, match=message):
        ck.load("atlas").calibrate(atlas_cases(), **arguments)
