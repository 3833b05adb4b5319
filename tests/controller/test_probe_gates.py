"""Gates that hold a probe: equal, hashable, and the same after a policy's file."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conflictkit.controller import Controller
from conflictkit.detectors.probe import LayerProbe, coded, decoded
from conflictkit.errors import (
    InvalidParameterError,
    PolicyError,
    ProbeError,
    UnknownNameError,
)
from conflictkit.gates import Gate
from conflictkit.policy import Policy
from conflictkit.types import Step

DIGEST = "0123456789abcdef" * 4


def probe(**given: Any) -> LayerProbe:
    fields: dict[str, Any] = {
        "target": "conflict", "kind": "mlp", "layer": 3, "bias": 0.1 + 0.2, "model": "tiny",
        "weights": torch.tensor([0.5, -1.25, 1 / 3, 1e-30]), "fingerprint": DIGEST,
        "about": {"auroc": 0.9, "validation": {"n": 7, "note": None}},
    }  # fmt: skip
    return LayerProbe(**fields | given)


def gate(**given: Any) -> Gate:
    return Gate("probe", ">", 0.7, probe=probe(**given))


CHANGES: list[dict[str, Any]] = [
    {"target": "source"}, {"kind": "residual"}, {"layer": 2}, {"bias": 0.3}, {"model": "other"},
    {"weights": torch.tensor([0.5, -1.25, 1 / 3, 0.0])}, {"fingerprint": "f" * 64}, {"about": {}},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: next(iter(one)))
def test_probes_are_equal_if_everything_is(change: dict[str, Any]) -> None:
    assert probe() == probe()
    assert hash(probe()) == hash(probe())
    assert probe(**change) != probe()
    assert probe() != "probe"
    if {"kind", "layer", "bias", "weights", "target"} & change.keys():
        assert hash(probe(**change)) != hash(probe())
    assert gate() == gate()
    assert len({gate(), gate(), gate(**change), Gate("probe", ">", 0.7)}) == 3
    controls = [
        Controller(Policy.of("cad").controller.rule, one) for one in (gate(), gate(**change))
    ]
    assert controls[0] != controls[1]
    assert len({*controls, copy.deepcopy(controls[0])}) == 2


def test_a_digest_is_of_weights_and_bias() -> None:
    digests = [probe(**one).digest for one in [{}, *CHANGES]]
    changed = [one != digests[0] for one in digests[1:]]
    assert changed == [bool({"bias", "weights"} & one.keys()) for one in CHANGES]
    assert len(digests[0]) == 64
    assert (probe().place, probe().width) == ("mlp.3", 4)


@pytest.mark.parametrize("parts", [{}, {"release": 0.4}, {"at": "prompt"}], ids=str)
def test_a_policy_with_a_probe_survives_its_file(parts: dict[str, Any], tmp_path: Path) -> None:
    policy = Policy.of("cad?alpha=2", when=replace(gate(), **parts), strength=0.5)
    policy.save(tmp_path / "p.json")
    again = Policy.load(tmp_path / "p.json")
    assert again == policy
    assert hash(again) == hash(policy)
    assert again.to_dict() == policy.to_dict()
    held = again.controller.gate
    assert held is not None
    assert held.probe is not None
    assert torch.equal(held.probe.weights, probe().weights)
    assert held.probe.bias == probe().bias
    assert held.probe.about == probe().about
    before = (tmp_path / "p.json").read_bytes()
    again.save(tmp_path / "p.json")
    assert (tmp_path / "p.json").read_bytes() == before


def test_a_policy_without_a_probe_is_written_as_ever(tmp_path: Path) -> None:
    """Older releases read it, too."""
    for text in ("jsd > 0.3", "probe > 0.7"):
        Policy.of("cad", when=text).save(tmp_path / "p.json")
        told = json.loads((tmp_path / "p.json").read_text())
        assert sorted(told["when"]) == ["at", "detector", "release", "sign", "threshold"]
        assert Policy.load(tmp_path / "p.json") == Policy.of("cad", when=text)


def test_a_wide_probe_fits_into_a_policy(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    wide = Policy.of("cad", when=gate(weights=torch.randn(16_384, generator=draw)))
    wide.save(tmp_path / "p.json")
    assert Policy.load(tmp_path / "p.json") == wide


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "truth"}, "target must be one of conflict, source"),
        ({"kind": ["mlp"]}, "kind must be one of"),
        ({"layer": -1}, "layer must be"),
        ({"layer": True}, "layer must be"),
        ({"bias": "0"}, "bias must be"),
        ({"bias": 10**400}, "bias must be"),
        ({"model": 3}, "model must be text"),
        ({"about": []}, "about an object"),
        ({"fingerprint": "x"}, "fingerprint must be 64 hexadecimal"),
        ({"weights": [1.0]}, "weights must be"),
        ({"weights": ""}, "weights must be"),
        ({"weights": "!!!!"}, "weights must be"),
        ({"weights": "AAAAA"}, "weights must be"),
        ({"weights": "é"}, "weights must be"),
        ({"weights": coded(torch.tensor([torch.nan]))}, "weights must be"),
        ({"weights": coded(torch.tensor([torch.inf]))}, "weights must be"),
        ({"weights": ...}, "probe lacks the field 'weights'"),
        ({"about": ...}, "probe lacks the field 'about'"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_a_bad_field_of_a_probe_is_named(change: dict[str, Any], said: str) -> None:
    told = Policy.of("cad", when=gate()).to_dict()
    fields = told["when"]["probe"] | change
    fields = {name: value for name, value in fields.items() if value is not ...}
    with pytest.raises(ProbeError, match=said):
        LayerProbe.from_dict(fields)
    told["when"]["probe"] = fields
    with pytest.raises(PolicyError, match=said):
        Policy.from_dict(told)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probe": []}, "probe must be an object"),
        ({"probe": "file.safetensors"}, "probe must be an object"),
        ({"detector": "jsd"}, "probe= is a LayerProbe, for the detector 'probe'"),
        ({"surprise": 1}, "when has an unknown field 'surprise'"),
        ({"sign": ...}, "when lacks the field 'sign'"),
    ],
)
def test_a_bad_field_of_a_gate_is_named(change: dict[str, Any], said: str) -> None:
    told = Policy.of("cad", when=gate()).to_dict()
    told["when"] = {k: v for k, v in (told["when"] | change).items() if v is not ...}
    with pytest.raises(PolicyError, match=said):
        Policy.from_dict(told)


def test_what_is_no_probe_is_refused_by_a_gate() -> None:
    with pytest.raises(InvalidParameterError, match="probe= is a LayerProbe"):
        Gate("probe", ">", 0.7, probe="probe.safetensors")  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="for the detector 'probe'"):
        Gate("jsd", ">", 0.7, probe=probe())


def test_a_gate_takes_a_probe_only_where_it_wants_one() -> None:
    bare, other = Gate.parse("probe > 0.7 until 0.5"), probe(layer=0)
    assert bare.reading(probe()).probe == probe()
    assert bare.probe is None
    assert bare.reading(probe()).release == 0.5
    assert gate().reading(other) == gate()
    assert Gate.parse("jsd > 0.3").reading(other) == Gate.parse("jsd > 0.3")
    assert str(gate()) == "probe > 0.7"
    assert "tensor" not in repr(gate())
    assert bare.needs == ("context",)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("kurtosis@residual.3 > 20", ("residual", 3)),
        ("l2-norm@mlp.11 < 4.5 until 5", ("mlp", 11)),
        ("gini@attention.0 > 0.5 at prompt", ("attention", 0)),
    ],
)
def test_a_gate_on_a_statistic_is_text_too(
    text: str, place: tuple[str, int], tmp_path: Path
) -> None:
    made = Gate.parse(text)
    assert str(made) == text
    assert Gate.parse(str(made)) == made
    assert (made.place, made.needs, made.probe) == (place, ("context",), None)
    assert made.reads_activations
    assert made.reading(probe()) == made
    Policy.of("cad", when=text).save(tmp_path / "p.json")
    assert Policy.load(tmp_path / "p.json") == Policy.of("cad", when=made)
    with pytest.raises(InvalidParameterError, match="for the detector 'probe'"):
        replace(made, probe=probe())


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("kurtosi@residual.3 > 20", UnknownNameError, "did you mean 'kurtosis'"),
        ("kurtosis@heads.3 > 20", UnknownNameError, "unknown kind of a statistic 'heads'"),
        ("kurtosis@residual > 20", InvalidParameterError, "DETECTOR > NUMBER"),
        ("kurtosis@residual.-1 > 20", InvalidParameterError, "DETECTOR > NUMBER"),
        ("kurtosis > 20", UnknownNameError, "unknown detector 'kurtosis'"),
        ("jsd@residual.3 > 20", UnknownNameError, "unknown name of a statistic 'jsd'"),
        ("probe@residual.3 > 20", UnknownNameError, "unknown name of a statistic 'probe'"),
    ],
)
def test_what_is_no_statistic_is_refused(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Gate.parse(text)


def test_gates_know_what_they_read() -> None:
    assert gate().place == ("mlp", 3)
    assert Gate.parse("probe > 0.5").place is None
    assert Gate.parse("jsd > 0.5").place is None
    assert gate().reads_activations
    assert not Gate.parse("jsd > 0.5").reads_activations


def test_vectors_are_text_and_back() -> None:
    for size in range(1, 6):
        values = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 1e20
        text = coded(values)
        found = decoded(text)
        assert found is not None
        assert torch.equal(found, values)
        assert text.isascii()
        assert "=" not in text
        found += 1  # a tensor of its own
    assert coded([0.5, -1.0]) == "AAAAPwAAgL8"
    for text in ("", "AAAA", "AAA?", "é", coded([0.5, float("nan")]), coded([float("inf")])):
        assert decoded(text) is None


def test_a_gate_reads_its_own_place_and_nothing_else() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0]])
    step = Step.from_logits({"context": torch.zeros(3, 5)})
    held = Gate("probe", ">", 0.6, 0.55, probe=probe())
    wanted = 1 / (1 + (-torch.tensor([0.5 - 2.5 + 1.0 + 0.3, 0.3, 2.3])).exp())
    state = held.initial(3)
    for flipped in (False, True):
        seen = values.flip(0) if flipped else values
        with_it = replace(step, activations={"mlp.3": seen.bfloat16(), "mlp.2": torch.ones(3, 9)})
        opened, scores, state = held(with_it, state)
        torch.testing.assert_close(scores, wanted.flip(0) if flipped else wanted, atol=2e-3, rtol=0)
        # The middle row, at 0.574, would only stay open.
        assert opened.tolist() == ([True, False, False] if flipped else [False, False, True])
    with pytest.raises(InvalidParameterError, match="reads activations"):
        held(replace(step, activations={"mlp.2": values}), state)
