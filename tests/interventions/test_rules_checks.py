"""Parameters, inputs and decisions that a rule or `mix` must check."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from conflictkit.errors import InvalidParameterError
from conflictkit.interventions.contrast import (
    ARR,
    CAD,
    COIECD,
    GRD,
    AdaCAD,
    CKPlug,
    Interpolate,
    Memory,
    Plain,
    Rule,
    mix,
    param,
)
from conflictkit.types import Mix, Step

BAD: list[tuple[type[Rule], str, Any, str]] = [
    (CAD, "alpha", -0.1, "from 0 up to 1e"),
    (CAD, "alpha", 1e7, "from 0 up to 1e"),
    (CAD, "alpha", math.nan, "finite float"),
    (CAD, "alpha", math.inf, "finite float"),
    (CAD, "alpha", 10**400, "finite float"),
    (CAD, "alpha", True, "finite float"),
    (CAD, "alpha", "0.5", "finite float"),
    (CAD, "alpha", None, "finite float"),
    (CAD, "alpha", torch.tensor(1.0), "finite float"),
    (CAD, "variant", "official", "mended, released"),
    (CAD, "variant", ["mended"], "mended, released"),
    (AdaCAD, "threshold", -1, "from 0"),
    (COIECD, "beta", -1, "from 0"),
    (COIECD, "ratio", 0.5, "from 1"),
    (CKPlug, "alpha", 1.01, "from 0 up to 1"),
    (CKPlug, "adaptive", 1, "true or false"),
    (CKPlug, "adaptive", "false", "true or false"),
    (CKPlug, "select_top", 0, "an int from 1"),
    (CKPlug, "select_top", 2.0, "an int from 1"),
    (CKPlug, "select_top", True, "an int from 1"),
    (CKPlug, "relative_top", 2, "from 0 up to 1"),
    (CKPlug, "epsilon", math.nan, "finite float"),
    (Interpolate, "weight", 1.5, "from 0 up to 1"),
    (GRD, "depth", -0.5, "from 0 up to 1"),
    (GRD, "gate", "none", "full, confidence, entropy"),
]


@pytest.mark.parametrize(("rule", "name", "value", "expected"), BAD)
def test_bad_parameters_are_named(rule: type[Rule], name: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        rule(**{name: value})
    assert f"{rule.name}: parameter '{name}'" in str(caught.value)
    assert expected in str(caught.value)


def test_numbers_are_stored_as_what_they_are_declared() -> None:
    numbers: dict[str, Any] = {"alpha": np.float32(1), "select_top": np.int64(3)}
    rule = CKPlug(**numbers)
    assert (type(rule.alpha), type(rule.select_top)) == (float, int)
    assert type(CAD(alpha=1).alpha) is float
    assert eval(repr(rule), {"CKPlug": CKPlug}) == rule
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.alpha = 0.2  # pyright: ignore[reportAttributeAccessIssue]


def test_unbounded_numbers_must_be_finite() -> None:
    @dataclasses.dataclass(frozen=True)
    class Free(Rule):
        name: ClassVar[str] = "free"
        size: float = param(0.0)

    assert Free(-1e300).size == -1e300
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(InvalidParameterError, match="expected a finite float"):
            Free(value)


def test_released_ck_plug_has_one_epsilon() -> None:
    assert CKPlug(variant="released", epsilon=1.0).epsilon == 1.0
    with pytest.raises(InvalidParameterError, match="fixes epsilon at 1"):
        CKPlug(variant="released", epsilon=0.5)


@pytest.mark.parametrize(
    ("context", "memory", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"shape \[batch, vocab\], got \[3\]"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), r"got \[1, 2, 3\]"),
        (torch.zeros(2, 0), torch.zeros(2, 0), r"got \[2, 0\]"),
        (torch.zeros(2, 3), torch.zeros(2, 4), "must have the same shape"),
        (torch.zeros(2, 3), torch.zeros(1, 3), "must have the same shape"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), "device"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3), "floating tensor"),
        (torch.zeros(2, 3), [[0.0]], "got list"),
        (None, torch.zeros(2, 3), "cad: needs context_logits, got None"),
        (torch.zeros(2, 3), None, "cad: needs memory_logits, got None"),
    ],
)
def test_bad_logits_are_named(context: Any, memory: Any, message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        CAD().combine(context, memory)


def test_streams_that_a_rule_does_not_need() -> None:
    with pytest.raises(InvalidParameterError, match="plain: needs context_logits"):
        Plain().combine(None, torch.zeros(1, 2))
    with pytest.raises(InvalidParameterError, match="memory: needs memory_logits"):
        Memory().combine(torch.zeros(1, 2), None)


def test_a_state_of_other_rows_is_refused() -> None:
    logits = torch.zeros(2, 3)
    for state in ({}, {"decision": torch.zeros(3)}, {"other": torch.zeros(2)}):
        with pytest.raises(InvalidParameterError, match="grd: the state does not belong"):
            GRD().combine(logits, logits, state)
    with pytest.raises(InvalidParameterError, match="arr: the state does not belong"):
        ARR().combine(logits, logits, {"decision": torch.zeros(2)})


def test_empty_batch() -> None:
    assert CAD().combine(torch.zeros(0, 3), torch.zeros(0, 3)).logits.shape == (0, 3)


def two_rows() -> Step:
    context = torch.tensor([[2.0, 1.0, 0.0, -torch.inf], [0.0, 1.0, 2.0, 3.0]])
    return Step.from_logits({"context": context, "memory": context.flip(1).clamp(min=-9.0)})


def ones(step: Step) -> torch.Tensor:
    return torch.ones(len(step.logits), 1)


def test_mix_never_empties_a_row() -> None:
    step = two_rows()
    support = torch.tensor([[False, False, False, True], [True, False, False, False]])
    combined = mix(step, Mix(ones(step) * 2, -ones(step), support=support))
    free = mix(step, Mix(ones(step) * 2, -ones(step)))
    assert torch.equal(combined.logits[0], free.logits[0])
    assert combined.logits[1].tolist() == [0.0, -math.inf, -math.inf, -math.inf]


def test_mix_hands_rows_on_only_if_nothing_changes_them() -> None:
    step = two_rows()
    plain = Mix(ones(step), ones(step) * 0)
    assert torch.equal(mix(step, plain).logits, step.logits)
    full = dataclasses.replace(plain, support=torch.ones(2, 4, dtype=torch.bool))
    assert torch.equal(mix(step, full).logits, step.logits)
    part = torch.tensor([[True, True, True, False], [True, True, True, False]])
    cut = mix(step, dataclasses.replace(plain, support=part)).logits
    assert torch.equal(cut[0], step.logits[0])  # the token cut is not allowed anyway
    torch.testing.assert_close(cut[1, :3], step.logits[1, :3].log_softmax(-1))
    bias = torch.zeros(2, 4)
    bias[1, 0] = 1.0
    pushed = mix(step, dataclasses.replace(plain, bias=bias)).logits
    assert torch.equal(pushed[0], step.logits[0])
    torch.testing.assert_close(pushed[1], (step.logits[1] + bias[1]).log_softmax(-1))


def test_mix_weighs_per_token() -> None:
    step = two_rows()
    context_weight = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0]])
    combined = mix(step, Mix(context_weight, 1 - context_weight)).logits
    assert torch.equal(combined[0], step.logits[0])
    scores = step.context[1].clone()
    scores[0] = 2 * step.context[1, 0] - step.memory[1, 0]
    torch.testing.assert_close(combined[1], scores.log_softmax(-1))


def test_released_filter_reads_normalised_logits_where_raw_ones_are_unknown() -> None:
    context, memory = torch.randn(2, 2, 30) * 8
    step = Step.from_logits({"context": context.log_softmax(-1), "memory": memory.log_softmax(-1)})
    bare = dataclasses.replace(step, raw={})
    rule = CAD(variant="released")
    with_raw, without = mix(step, rule(step, {})), mix(bare, rule(bare, {}))
    torch.testing.assert_close(with_raw.logits, without.logits, rtol=1e-4, atol=1e-2)
