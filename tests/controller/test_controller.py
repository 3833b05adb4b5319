"""Controllers: strength, gate, marker, and several of them in one batch."""

import pytest
import torch
from transformers import AutoTokenizer

from conflictkit import atlas, methods
from conflictkit.controller import Controller
from conflictkit.errors import InvalidParameterError, UnknownNameError
from conflictkit.interventions.contrast import mix
from conflictkit.per_row import PerRow
from conflictkit.types import Step
from tests.controller.test_gates import steps
from tests.tiny import byte_tokenizer

NAMES = [name for name in methods.names(edits=False) if name not in ("plain", "memory")]


def one_step(rows=6, vocab=30, seed=0):
    draw = torch.Generator().manual_seed(seed)
    context, memory = (torch.randn(rows, vocab, generator=draw) * 3 for _ in range(2))
    return Step.from_logits({"context": context, "memory": memory})


@pytest.mark.parametrize("name", methods.names(edits=False))
def test_strength_zero_and_a_closed_gate_are_off_bit_for_bit(name):
    step = one_step()
    for control in (
        Controller(methods.build(name), strength=0.0),
        Controller(methods.build(name), when="jsd > 1"),
        Controller(methods.build(name), start_after=(3,)),
        Controller(methods.build(name), strength="top-disagreement", when="jsd > 1"),
    ):
        made = mix(step, control(step, control.initial(6)))
        assert torch.equal(made.logits, step.logits)


@pytest.mark.parametrize("name", methods.names(edits=False))
def test_strength_one_and_an_open_gate_are_the_rule_bit_for_bit(name):
    rule = methods.build(name)
    step = one_step()
    wanted = mix(step, rule(step, rule.initial(6)))
    for control in (Controller(rule), Controller(rule, when="jsd > -1")):
        made = mix(step, control(step, control.initial(6)))
        assert torch.equal(made.logits, wanted.logits)
        assert torch.equal(made.context_weight, wanted.context_weight)


def test_strength_one_is_exact_where_rounding_would_show():
    rule, step = methods.build("interpolate", weight=0.1), one_step()
    made = Controller(rule, when="jsd > -1")(step, Controller(rule, when="jsd > -1").initial(6))
    assert torch.equal(made.context_weight, rule(step, {}).context_weight)


def test_a_negative_score_is_no_strength():
    control = Controller(methods.build("cad"), strength="confidence-gain")
    signs = set()
    for step in steps(6, 10, seed=8):
        made = control(step, control.initial(6))
        gain = (step.context.exp() * step.context).sum(-1) - (step.memory.exp() * step.memory).sum(
            -1
        )
        off = (made.context_weight == 1).flatten().tolist()
        assert off == (gain <= 0).tolist()
        signs |= set(off)
    assert signs == {True, False}


def test_a_gated_memory_still_answers_from_the_context_where_the_gate_is_shut():
    control = Controller(methods.build("memory"), when="memory-entropy > 1")
    assert control.needs == ("context", "memory")
    assert Controller(methods.build("memory")).needs == ("memory",)


@pytest.mark.parametrize("strength", [0.3, 1.7])
@pytest.mark.parametrize("name", ["cad", "adacad", "interpolate", "coiecd", "arr"])
def test_strength_scales_what_the_rule_changes(name, strength):
    rule, step = methods.build(name), one_step(seed=2)
    own = rule(step, rule.initial(6))
    made = mix(step, Controller(rule, strength=strength)(step, {})).logits.double()
    w_c = 1 + strength * (own.context_weight.double() - 1)
    scores = w_c * step.context.double() + strength * own.memory_weight.double() * (
        step.memory.double()
    )
    if own.support is not None:
        scores = scores.masked_fill(~own.support, -torch.inf)
    torch.testing.assert_close(made.log_softmax(-1), scores.log_softmax(-1), rtol=0, atol=1e-5)


def test_adacad_is_cad_as_strong_as_the_streams_diverge():
    adacad = methods.build("adacad")
    control = Controller(methods.build("cad", alpha=1.0), strength="jsd")
    for step in steps(5, 10):
        made = mix(step, control(step, control.initial(5))).logits
        assert torch.equal(made, mix(step, adacad(step, {})).logits)


def test_ck_plug_acts_where_the_gate_on_its_own_detector_is_open():
    rule = methods.build("ck-plug", alpha=0.7)
    control = Controller(methods.build("memory"), when="confidence-gain-kept < 0")
    acted = set()
    for step in steps(8, 10, seed=4):
        active = control(step, control.initial(8)).scores["active"].tolist()
        assert active == rule(step, {}).scores["flagged"].tolist()
        acted |= set(active)
    assert acted == {0.0, 1.0}


def test_a_rule_with_memory_sees_only_the_steps_at_which_its_gate_is_open():
    rule = methods.build("grd", gate="confidence")
    control = Controller(rule, when="jsd > 0.05")
    state = control.initial(8)
    own = [rule.initial(1) for _ in range(8)]
    skipped = decided = 0
    for step in steps(8, 15, seed=6):
        made = control(step, state)
        state = made.state
        for row in range(8):
            alone = Step.from_logits(
                {"context": step.logits[row : row + 1], "memory": step.raw["memory"][row : row + 1]}
            )
            if made.scores["active"][row]:
                mine = rule(alone, own[row])
                own[row] = mine.state
                assert made.context_weight[row].tolist() == pytest.approx(
                    mine.context_weight[0].tolist(), abs=1e-6
                )
                decided += int(mine.state["decision"]) > 0
            else:
                skipped += 1
                assert made.context_weight[row].tolist() == [1.0]
            assert state["rule.decision"][row] == own[row]["decision"][0]
    assert skipped > 5
    assert decided > 5


def test_control_starts_behind_the_marker_and_the_prompt_gate_with_it():
    control = Controller(methods.build("memory"), when="jsd > 0.02 at prompt", start_after=(7, 8))
    written = [[7, 8, 1, 1, 1], [7, 7, 8, 1, 1], [8, 7, 1, 7, 8], [1, 1, 1, 1, 1]]
    state, score, active = control.initial(4), [], []
    draw = torch.Generator().manual_seed(3)
    for index in range(6):
        context = torch.randn(4, 9, generator=draw)
        memory = context + torch.randn(4, 9, generator=draw) * 0.6
        previous = torch.tensor([row[index - 1] for row in written]) if index else None
        step = Step.from_logits({"context": context, "memory": memory}, index, previous)
        made = control(step, state)
        state = made.state
        score.append(made.scores["jsd"].tolist())
        active.append(made.scores["active"].tolist())
    starts = [2, 3, 5, 99]
    for row, start in enumerate(starts):
        decision = start < 6 and score[start][row] > 0.02
        wanted = [float(decision and index >= start) for index in range(6)]
        assert [step[row] for step in active] == wanted
    assert any(any(row) for row in active)


def test_rows_with_their_own_controllers_are_as_if_alone():
    controls = [
        Controller(methods.build("grd")),
        Controller(methods.build("cad", alpha=2.0), when="jsd > 0.1 until 0.02"),
        Controller(methods.build("coiecd"), strength=0.5),
        Controller(methods.build("memory"), strength="jsd"),
        Controller(methods.build("grd")),
        Controller(methods.build("plain")),
        Controller(methods.build("ck-plug", alpha=0.8)),
        Controller(methods.build("cad", variant="released")),
    ]
    batch = PerRow.of(controls)
    assert isinstance(batch, PerRow)
    assert len(batch.controls) == 7
    state = batch.initial(8)
    alone = [control.initial(1) for control in controls]
    for step in steps(8, 12, seed=9):
        made = mix(step, batch(step, state))
        state = made.state
        for row, control in enumerate(controls):
            single = Step.from_logits(
                {"context": step.logits[row : row + 1], "memory": step.raw["memory"][row : row + 1]}
            )
            mine = mix(single, control(single, alone[row]))
            alone[row] = mine.state
            torch.testing.assert_close(made.logits[row], mine.logits[0], rtol=0, atol=1e-5)
            known = {name for name, values in made.scores.items() if not values[row].isnan()}
            assert known == set(mine.scores)


def test_rows_of_one_controller_share_it():
    control = Controller(methods.build("cad"))
    assert PerRow.of([control] * 3) is control


def test_a_batch_that_is_repeated_keeps_its_rows_together():
    batch = PerRow.of([Controller(methods.build("memory")), Controller(methods.build("plain"))])
    step = one_step(rows=6)
    made = batch(step, batch.initial(6))
    assert made.context_weight.flatten().tolist() == [0.0] * 3 + [1.0] * 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rule": "cad"}, InvalidParameterError, "conflictkit.methods.build"),
        ({"strength": -0.1}, InvalidParameterError, "strength"),
        ({"strength": 10**400}, InvalidParameterError, "strength"),
        ({"strength": float("nan")}, InvalidParameterError, "strength"),
        ({"strength": True}, InvalidParameterError, "strength"),
        ({"strength": "jds"}, UnknownNameError, "did you mean 'jsd'"),
        ({"when": 0.3}, InvalidParameterError, "when must be text or a Gate"),
        ({"when": "jsd"}, InvalidParameterError, "DETECTOR > NUMBER"),
        ({"start_after": ""}, InvalidParameterError, "start_after"),
        ({"start_after": ()}, InvalidParameterError, "start_after"),
        ({"start_after": (1, -2)}, InvalidParameterError, "start_after"),
        ({"start_after": (1, True)}, InvalidParameterError, "start_after"),
        ({"start_after": (2**70,)}, InvalidParameterError, "start_after"),
        ({"start_after": "\ud800"}, InvalidParameterError, "start_after"),
    ],
)
def test_bad_parts_are_refused_when_it_is_made(arguments, error, message):
    with pytest.raises(error, match=message):
        Controller(**{"rule": methods.build("cad"), **arguments})


def test_a_marker_as_text_must_be_bound_first():
    control = Controller(methods.build("cad"), start_after="</think>")
    with pytest.raises(InvalidParameterError, match="bind the controller to a tokenizer"):
        control.initial(1)


def test_extreme_strength_leaves_no_nan():
    draw = torch.Generator().manual_seed(0)
    context = torch.randn(4, 12, generator=draw) * 100
    context[:, 3] = -torch.inf
    memory = torch.randn(4, 12, generator=draw) * 100
    memory[:, 5] = -torch.inf
    step = Step.from_logits({"context": context, "memory": memory})
    rules = [
        *(methods.build(name) for name in methods.names(edits=False)),
        methods.build("cad", alpha=1e6),
    ]
    for rule in rules:
        control = Controller(rule, strength=1e6)
        logits = mix(step, control(step, control.initial(4))).logits
        assert not logits.isnan().any()
        assert (logits > -torch.inf).any(-1).all()


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "atlas"])
@pytest.mark.parametrize("marker", ["</think>", "Oslo", " is", "so:\n"])
def test_a_text_is_found_in_whatever_tokens_it_is_written(kind, marker):
    """Against the decoded text: control starts with the token that completes it."""
    if kind == "atlas":
        tokenizer = AutoTokenizer.from_pretrained(atlas.path())
    else:
        tokenizer = byte_tokenizer(metaspace=kind == "metaspace")
    if tokenizer.decode(tokenizer(marker, add_special_tokens=False)["input_ids"]) != marker:
        pytest.skip("this tokenizer cannot write the text")
    control = Controller(methods.build("cad"), start_after=marker).bound(tokenizer)
    # The end of a word may be joined with any letters that follow: no marker begins there.
    inside = () if marker[0].isalpha() else ("Because",)
    for before in ("", "Two.", "A line\n", "It ", *inside):
        for after in ("", "\n", "\n\nYes", " yes", "yes"):
            ids = tokenizer(before + marker + after, add_special_tokens=False)["input_ids"]
            wanted = next(
                end for end in range(len(ids) + 1) if marker in tokenizer.decode(ids[:end])
            )
            assert control.uncontrolled([*ids, ids[0]]) == wanted
            state = control.initial(1)
            for place, token in enumerate([*ids, ids[0]]):
                previous = torch.tensor([ids[place - 1]]) if place else None
                step = Step.from_logits(
                    {"context": torch.rand(1, 40), "memory": torch.rand(1, 40)}, place, previous
                )
                mixed = control(step, state)
                state = mixed.state
                assert bool(mixed.scores["active"]) == (place >= wanted), token
    assert control.uncontrolled(tokenizer("Nothing.", add_special_tokens=False)["input_ids"]) > 3
    assert Controller(methods.build("cad")).uncontrolled([5, 6]) == 0
