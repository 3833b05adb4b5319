"""The registry of methods: names, descriptions, and rules built from keywords or text."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit.errors import InvalidParameterError, UnknownNameError
from conflictkit.interventions.contrast import CAD, GRD, CKPlug, Plain
from conflictkit.methods import _registry

PAPERS = {
    "cad": ("Shi et al.", 2023, "2305.14739"),
    "adacad": ("Wang et al.", 2024, "2409.07394"),
    "coiecd": ("Yuan et al.", 2024, "2402.11893"),
    "ck-plug": ("Bi et al.", 2025, "2503.15888"),
    "arr": ("Jiang et al.", 2026, "2606.10298"),
    "grd": ("Jiang et al.", 2026, "2606.10298"),
    "head-scale": ("Yu et al.", 2023, "2310.15910"),
    "ph3": ("Jin et al.", 2024, "2402.18154"),
    "juice": ("Li et al.", 2025, "2503.10996"),
    "juice-single": ("Li et al.", 2025, "2503.10996"),
    "decore": ("Gema et al.", 2024, "2410.18860"),
    "attention-steering": ("Zhang et al.", 2023, "2311.02262"),
    "focus": ("Zhu et al.", 2025, "2503.23306"),
    "spare": ("Zhao et al.", 2025, "2410.15999"),
    "caa": ("Rimsky et al.", 2024, "2312.06681"),
    "repe": ("Zou et al.", 2023, "2310.01405"),
    "iti": ("Li et al.", 2023, "2306.03341"),
    "refusal-region": ("Liu et al.", 2024, "2409.16913"),
}
STEERED = ("spare", "caa", "repe", "iti", "refusal-region")
EDITS = (
    "head-scale", "ph3", "juice", "juice-single", "decore", "attention-steering", "focus",
    *STEERED,
)  # fmt: skip
UNPUBLISHED = {"plain", "memory", "interpolate", "auto"}
FORWARDS: dict[str, int] = dict.fromkeys(
    ("plain", "memory", "head-scale", "ph3", "juice-single"), 1
)
FORWARDS |= dict.fromkeys(("attention-steering", "focus", *STEERED), 1)


def test_names() -> None:
    assert set(ck.methods.names()) == set(PAPERS) | UNPUBLISHED
    assert [info.name for info in ck.methods.all()] == list(ck.methods.names())
    assert ck.methods.names(edits=True) == EDITS
    assert {*EDITS, *ck.methods.names(edits=False)} == set(ck.methods.names())


@pytest.mark.parametrize("name", sorted(set(PAPERS) | UNPUBLISHED))
def test_description_and_rule_agree(name: str) -> None:
    info = ck.methods.describe(name)
    rule = ck.methods.build(name)
    assert type(rule) is info.rule
    assert rule.name == info.name == name
    assert info.forwards == FORWARDS.get(name, 2) == len(info.needs)
    assert info.summary
    if info.paper is None:
        assert name in UNPUBLISHED
    else:
        assert (info.paper.authors, info.paper.year, info.paper.arxiv) == PAPERS[name]
        assert info.paper.url == f"https://arxiv.org/abs/{PAPERS[name][2]}"
    for parameter in info.parameters:
        assert getattr(rule, parameter.name) == parameter.default
        assert parameter.doc
        assert parameter.kind in ("bool", "int", "float", "str")
    assert info.edits == (name in EDITS)
    if info.edits:
        return
    streams = {stream: torch.randn(2, 9) if stream in info.needs else None for stream in CONTEXT}
    assert rule.combine(streams["context"], streams["memory"]).logits.shape == (2, 9)


CONTEXT = ("context", "memory")


@pytest.mark.parametrize("name", sorted(set(PAPERS) | UNPUBLISHED))
def test_description_is_json(name: str) -> None:
    info = ck.methods.describe(name)
    data = json.loads(json.dumps(info.to_dict()))
    assert data["name"] == name
    assert data["needs"] == list(info.needs)
    assert [entry["name"] for entry in data["parameters"]] == [p.name for p in info.parameters]
    assert (data["paper"] is None) == (name in UNPUBLISHED)


def test_description_of_parameters() -> None:
    described = {p["name"]: p for p in ck.methods.describe("ck-plug").to_dict()["parameters"]}
    assert described["alpha"] | {"doc": ""} == {
        "name": "alpha",
        "type": "float",
        "default": 0.5,
        "low": 0,
        "high": 1,
        "choices": [],
        "doc": "",
    }
    assert described["adaptive"]["type"] == "bool"
    assert described["select_top"]["type"] == "int"
    assert described["variant"]["choices"] == ["mended", "released"]


def test_parse_reads_the_types_of_the_fields() -> None:
    assert ck.methods.parse("plain") == Plain()
    assert ck.methods.parse(" cad ") == CAD()
    assert ck.methods.parse("cad?alpha=1e-1") == CAD(alpha=0.1)
    assert ck.methods.parse("ck-plug?alpha=0.2&adaptive=false&select_top=5") == CKPlug(
        alpha=0.2, adaptive=False, select_top=5
    )
    assert ck.methods.parse("ck-plug?adaptive=True") == CKPlug()
    assert ck.methods.parse("cad?alpha=1&variant=released", alpha=3.0) == CAD(3.0, "released")
    assert ck.methods.parse("grd?gate=entropy") == GRD(gate="entropy")
    assert ck.methods.build("cad", alpha=2, variant="released") == CAD(2.0, "released")


def test_naming_alpha_of_ck_plug_makes_it_act() -> None:
    fixed = CKPlug(alpha=0.2, adaptive=False)
    assert ck.methods.build("ck-plug", alpha=0.2) == fixed
    assert ck.methods.parse("ck-plug?alpha=0.2") == fixed
    assert ck.methods.parse("ck-plug", alpha=0.2) == fixed
    assert ck.methods.build("ck-plug", alpha=0.2, adaptive=True).adaptive  # pyright: ignore
    assert ck.methods.build("ck-plug", select_top=5).adaptive  # pyright: ignore


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cad?alpha=lots", "cad: parameter 'alpha' is 'lots', expected a finite float"),
        ("cad?alpha=nan", "parameter 'alpha' is nan"),
        ("cad?alpha=1e999", "parameter 'alpha' is inf"),
        ("cad?alpha=-1", "from 0 up to"),
        ("ck-plug?adaptive=0", "'adaptive' is '0', expected true or false"),
        ("ck-plug?select_top=2.5", "'select_top' is '2.5', expected an int from 1"),
        ("cad?variant=best", "expected one of mended, released"),
        ("cad?", "write name[?]key=value"),
        ("cad?alpha", "cannot read 'alpha'"),
        ("cad?alpha=", "cannot read 'alpha='"),
        ("cad?=1", "cannot read '=1'"),
        ("cad?alpha=1&", "cannot read ''"),
        ("cad?alpha=1&alpha=1", "'alpha' is given twice"),
    ],
)
def test_values_that_cannot_be_read(spec: str, message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        ck.methods.parse(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adacd", "unknown method 'adacd': did you mean 'adacad'"),
        ("CK_PLUG", "did you mean 'ck-plug'"),
        ("zzzzz", "unknown method 'zzzzz': valid: .*cad"),
        ("", "unknown method ''"),
        ("cad?alhpa=1", "unknown parameter of method 'cad' 'alhpa': did you mean 'alpha'"),
        ("ck-plug?select-top=1", "did you mean 'select_top'"),
        ("plain?alpha=1", "method 'plain' takes no parameters, got 'alpha'"),
        ("cad?name=plain", "unknown parameter of method 'cad' 'name'"),
    ],
)
def test_names_that_do_not_exist(spec: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        ck.methods.parse(spec)


def test_build_and_describe_name_what_they_do_not_know() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'alpha'"):
        ck.methods.build("cad", alpa=1)
    with pytest.raises(UnknownNameError, match="did you mean 'cad'"):
        ck.methods.describe("cadd")
    with pytest.raises(InvalidParameterError, match="'alpha' is '1'"):
        ck.methods.build("cad", alpha="1")


def test_a_name_cannot_be_taken_twice() -> None:
    entry: Any = (CAD, "again", None)
    with pytest.raises(ValueError, match="two methods are called 'cad'"):
        _registry._table(entry, entry)
