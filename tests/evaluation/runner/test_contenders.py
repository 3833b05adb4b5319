"""What `--methods` and `--policy` may say, and what it becomes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from conflictkit import atlas
from conflictkit.errors import (
    InvalidParameterError,
    PolicyError,
    UnknownNameError,
    UnsupportedError,
)
from conflictkit.evaluation.contenders import contenders
from conflictkit.interventions.contrast import Rule
from conflictkit.policy import ModelTie, Policy


def labels(*arguments: object) -> list[list[str]]:
    return [[one.label for one in group] for group in contenders(*arguments)]  # type: ignore[arg-type]


def test_a_sweep_holds_its_end_and_no_rounding_dirt() -> None:
    (group,) = contenders("ck-plug?alpha=0:1:0.1")
    values = ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    assert [one.label for one in group] == [f"ck-plug?alpha={value}" for value in values]
    alphas = [one.policy.controller.params["alpha"] for one in group]
    assert alphas == [float(value) for value in values]
    assert labels("cad?alpha=1:2:0.4") == [["cad?alpha=1", "cad?alpha=1.4", "cad?alpha=1.8"]]


def test_parameters_stand_in_the_methods_order_in_their_shortest_form() -> None:
    (group,) = contenders("ck-plug?select_top=5&adaptive=False&alpha=2.50e-1")
    assert group[0].label == "ck-plug?alpha=0.25&adaptive=false&select_top=5"
    assert group[0].policy == Policy.of("ck-plug?alpha=0.25&adaptive=false&select_top=5")
    assert labels("plain, cad?alpha=1.0 ,grd") == [["plain"], ["cad?alpha=1"], ["grd"]]
    assert labels(["plain", "cad"]) == [["plain"], ["cad"]]


def test_two_sweeps_are_all_combinations() -> None:
    assert labels("coiecd?ratio=2:3:1&beta=0.25:0.5:0.25") == [
        [f"coiecd?beta={beta}&ratio={ratio}" for beta in ("0.25", "0.5") for ratio in (2, 3)]
    ]


def test_policies_are_called_as_their_files(tmp_path: Path) -> None:
    path = tmp_path / "gated.v2.json"
    Policy.of("cad", when="jsd > 0.3").save(path)
    assert labels(f"plain,policy:{path}") == [["plain"], ["gated.v2"]]
    ((one,),) = contenders((), [path])
    assert (one.label, str(one.policy.controller.gate)) == ("gated.v2", "jsd > 0.3")
    mine = Policy.of("adacad")
    assert contenders("plain", {"mine": mine})[1][0].policy is mine


def test_no_policy_passes_for_a_method_that_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "plain.json"
    Policy.of("cad", when="jsd > 0.3").save(path)
    for arguments in ((f"policy:{path}",), ((), [path]), ("cad", {"plain": Policy.load(path)})):
        with pytest.raises(InvalidParameterError, match="called 'plain' is not .* rename its file"):
            labels(*arguments)
    tie = ModelTie("mine", "0" * 64)
    for label, policy in {
        "cad": Policy.of("cad?alpha=3"),
        "cad?alpha=1": Policy.of("cad?alpha=3"),
        "auto": Policy.of("auto?bias=1"),
        "grd": replace(Policy.of("grd", when="jsd > 0.3"), model=tie),
    }.items():
        with pytest.raises(InvalidParameterError, match="is not the method of that name"):
            contenders((), {label: policy})
    # The method itself does no harm, and what was fitted of it to a model is called after it.
    Policy.of("plain").save(path)
    assert labels((), [path]) == [["plain"]]
    assert labels((), {"cad?alpha=3": Policy.of("cad?alpha=3")}) == [["cad?alpha=3"]]
    assert labels((), {"auto": replace(Policy.of("auto?bias=1"), model=tie)}) == [["auto"]]
    assert labels((), [atlas.auto()]) == [["auto"]]


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("addacad", UnknownNameError, "did you mean 'adacad'"),
        ("cad?alpa=1", UnknownNameError, "did you mean 'alpha'"),
        ("cad?alpha=1&alpha=2", InvalidParameterError, "given twice"),
        ("cad?alpha", InvalidParameterError, "name\\?key=value"),
        ("cad?alpha=x", InvalidParameterError, "expected a finite float"),
        ("cad?alpha=0:1:0", InvalidParameterError, "a step above 0"),
        ("cad?alpha=1:0:0.1", InvalidParameterError, "start at most stop"),
        ("cad?alpha=0:1:x", InvalidParameterError, "cannot read the sweep 'alpha=0:1:x'"),
        ("cad?alpha=0:inf:1", InvalidParameterError, "cannot read the sweep"),
        ("cad?alpha=0:1:0.000001", InvalidParameterError, "at most 1000 values"),
        ("cad?alpha=-1:1:1", InvalidParameterError, "'alpha' is -1"),
        ("plain?alpha=0:1:1", UnknownNameError, "takes no parameters"),
        ("plain,plain", InvalidParameterError, "two methods are called 'plain'"),
        ("cad?alpha=0.5,cad?alpha=0:1:0.5", InvalidParameterError, "'cad\\?alpha=0.5'"),
        ("", UnknownNameError, "unknown method ''"),
        ("plain,,cad", UnknownNameError, "unknown method ''"),
        ("policy:/no/such.json", PolicyError, "/no/such.json"),
        ((), InvalidParameterError, "nothing to evaluate"),
    ],
)
def test_what_cannot_be_read_is_refused(spec: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        contenders(spec)


def test_a_method_that_reads_another_stream_is_refused() -> None:
    @dataclass(frozen=True)
    class Early(Rule):
        name: ClassVar[str] = "early"
        needs: ClassVar[tuple[str, ...]] = ("context", "early layer")

    with pytest.raises(UnsupportedError, match="'mine' needs the stream 'early layer'"):
        contenders((), {"mine": Policy.of(Early())})
