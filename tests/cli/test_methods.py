"""`conflictkit methods`: nothing that is registered is missing from the list."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

import conflictkit
from conflictkit import methods
from tests.cli.conftest import Run


def test_the_list_has_every_method_with_paper_and_parameters(run: Run) -> None:
    code, out, err = run("methods")
    assert (code, err) == (0, "")
    for info in methods.all():
        assert f" {info.name} " in out
        if info.paper is not None:
            assert info.paper.arxiv in out
        for parameter in info.parameters:
            assert f"{parameter.name}=" in out
    assert "alpha=0.5 (float, 0 to 1)" in out
    assert max(map(len, out.splitlines())) <= 100


def test_json_is_the_registry(run: Run) -> None:
    listed = json.loads(run("methods", "--json").out)
    assert listed == [info.to_dict() for info in methods.all()]
    assert json.loads(run("methods", "cad", "--json").out) == methods.describe("cad").to_dict()


@pytest.mark.parametrize("name", methods.names())
def test_each_method_has_a_page_of_its_own(run: Run, name: str) -> None:
    info = methods.describe(name)
    code, out, _ = run("methods", name)
    flat = " ".join(out.split())
    assert code == 0
    assert info.summary in flat
    assert f"--method {name}" in flat or f'--method "{name}?' in flat
    for parameter in info.parameters:
        assert parameter.doc in flat
    if info.paper is not None:
        assert info.paper.url in flat


def test_an_unknown_name_gets_the_nearest(refused: Callable[..., str]) -> None:
    assert "did you mean 'ck-plug'" in refused("methods", "ckplug")


def test_the_version(run: Run) -> None:
    assert run("--version") == (0, f"conflictkit {conflictkit.__version__}\n", "")


def test_without_a_command_it_says_what_there_is(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert "ask" in out
    assert "methods" in out
