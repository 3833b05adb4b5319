"""Gates: the text they are written in, and when they open, step by step."""

import math
import random

import pytest
import torch

from conflictkit.errors import InvalidParameterError, UnknownNameError
from conflictkit.gates import Gate
from conflictkit.types import Step


def steps(rows, length, seed=0):
    """Random steps of two streams, some of them nearly equal."""
    draw = torch.Generator().manual_seed(seed)
    for index in range(length):
        context = torch.randn(rows, 5, generator=draw) * 2
        memory = context + torch.randn(rows, 5, generator=draw) * torch.rand(
            rows, 1, generator=draw
        )
        yield Step.from_logits({"context": context, "memory": memory}, index)


def jsd64(step, row):
    """The divergence from its definition, in double precision."""
    p = torch.tensor(step.context[row].tolist(), dtype=torch.float64).exp()
    q = torch.tensor(step.memory[row].tolist(), dtype=torch.float64).exp()
    m = (p + q) / 2
    return float(0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum())


@pytest.mark.parametrize("release", [None, 0.02])
def test_a_gate_opens_above_and_closes_below_as_a_loop_over_rows_says(release):
    gate = Gate("jsd", ">", 0.1, release)
    state, is_open = gate.initial(6), [False] * 6
    seen = set()
    for step in steps(6, 30):
        opened, score, state = gate(step, state)
        for row in range(6):
            value = jsd64(step, row)
            assert float(score[row]) == pytest.approx(value, abs=1e-6)
            if value > 0.1:
                is_open[row] = True
            elif release is None or value < release:
                is_open[row] = False
            elif is_open[row]:
                seen.add("held")
        assert opened.tolist() == is_open
        seen |= set(is_open)
    assert seen == ({True, False} if release is None else {True, False, "held"})


def test_below_is_the_mirror_image_of_above():
    below = Gate("confidence-gain", "<", -0.1, 0.3)
    state, is_open = below.initial(6), [False] * 6
    held = 0
    for step in steps(6, 40, seed=3):
        opened, score, state = below(step, state)
        for row, value in enumerate(score.tolist()):
            if value < -0.1:
                is_open[row] = True
            elif value > 0.3:
                is_open[row] = False
            else:
                held += is_open[row]
        assert opened.tolist() == is_open
    assert held


def test_a_gate_at_the_prompt_is_decided_once():
    gate = Gate("jsd", ">", 0.1, at="prompt")
    state, first = gate.initial(8), []
    later = []
    for step in steps(8, 20, seed=1):
        opened, score, state = gate(step, state)
        first = first if first else [value > 0.1 for value in score.tolist()]
        assert opened.tolist() == first
        later.append([value > 0.1 for value in score.tolist()])
    assert len(set(first)) == 2
    assert any(row != first for row in later)


def test_a_score_within_the_tolerance_of_the_threshold_counts_as_equal():
    for sign, far in ((">", 1.2e-5), ("<", -1.2e-5)):
        gate = Gate("jsd", sign, 0.3)
        near = torch.tensor([0.3, 0.3 + far * 0.7, 0.3 + far, 0.3 - far])
        assert gate.fires(near).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("jsd>0.3", Gate("jsd", ">", 0.3)),
        (" jsd > 0.3 until 0.2 ", Gate("jsd", ">", 0.3, 0.2)),
        ("confidence-gain < -1e-2 at prompt", Gate("confidence-gain", "<", -0.01, at="prompt")),
        ("memory-entropy<2 until 2.5 at step", Gate("memory-entropy", "<", 2.0, 2.5)),
    ],
)
def test_text_is_read_and_written(text, gate):
    assert Gate.parse(text) == gate
    assert Gate.parse(str(gate)) == gate


def test_any_gate_survives_its_text():
    draw = random.Random(5)
    for _ in range(300):
        sign, threshold = draw.choice("<>"), draw.uniform(-10, 10)
        release = None
        if draw.random() < 0.5:
            release = threshold + draw.random() * (1 if sign == "<" else -1)
        gate = Gate("jsd", sign, round(threshold, 6), release and round(release, 6))
        assert Gate.parse(str(gate)) == gate


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", InvalidParameterError, "DETECTOR > NUMBER"),
        ("jsd", InvalidParameterError, "DETECTOR > NUMBER"),
        ("jsd >= 0.3", InvalidParameterError, "DETECTOR > NUMBER"),
        ("jsd > much", InvalidParameterError, "'much' is no number"),
        ("jsd > nan", InvalidParameterError, "threshold"),
        ("jsd > inf", InvalidParameterError, "threshold"),
        ("jsd > 0.3 until 0.4", InvalidParameterError, "must lie below"),
        ("jsd < 0.3 until 0.2", InvalidParameterError, "must lie above"),
        ("jsd > 0.3 until 0.2 at prompt", InvalidParameterError, "no release"),
        ("jsd > 0.3 at once", InvalidParameterError, "'step' or 'prompt'"),
        ("jds > 0.3", UnknownNameError, "did you mean 'jsd'"),
    ],
)
def test_what_is_no_gate_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        Gate.parse(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.3", None, 10**400])
def test_a_threshold_must_be_a_finite_number(value):
    with pytest.raises(InvalidParameterError, match="threshold"):
        Gate("jsd", ">", value)
