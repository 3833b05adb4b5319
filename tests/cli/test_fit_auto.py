"""`conflictkit fit-auto`: cases in, a policy out, what it says, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conflictkit.evaluation import shared
from conflictkit.evaluation.cases.io import write_cases
from conflictkit.policy import Policy
from tests.cli.conftest import Run
from tests.evaluation.runner.conftest import case

STATES = ("correction", "resistance")


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Sixty conflicts about as many subjects."""
    path = tmp_path / "cases.jsonl"
    write_cases(path, [case(n, state=STATES[n % 2], subject=f"s{n}") for n in range(60)])
    return path


@pytest.fixture
def fit(run: Run, cases: Path, folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Fit the tiny model into `policy.json`."""

    def call(*arguments: Any) -> Any:
        files = ("--cases", cases, "--model", folder, "--out", tmp_path / "policy.json")
        return run("fit-auto", *files, "--max-new-tokens", 2, *arguments)

    return call


@pytest.mark.slow
def test_a_policy_comes_out(
    fit: Callable[..., Any], run: Run, folder: Path, tmp_path: Path
) -> None:
    code, out, err = fit("--reach", 1.5, "--answers", tmp_path / "answers")
    assert (code, err) == (0, "")
    assert "30 correction (" in out
    assert "judgement: AUROC " in out
    assert "memory_confidence" in out
    assert "reach 1" in out
    policy = Policy.load(tmp_path / "policy.json")
    assert policy.controller.name == "auto"
    assert policy.model is not None

    asked = ("ask", "Who?", "--context", "Nobody.", "--max-new-tokens", 2, "--json")
    code, out, _ = run(*asked, "--policy", tmp_path / "policy.json", "--model", folder)
    assert (code, json.loads(out)["method"]) == (0, "auto")
    assert "made for the model" in run(*asked, "--policy", tmp_path / "policy.json").err

    again = ("--reach", 1.5, "--answers", tmp_path / "answers", "--overwrite")
    code, out, _ = fit(*again, "--json")
    assert code == 0
    assert Policy.from_dict(json.loads(out)["policy"]) == policy
    assert fit(*again, "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cases", "none.jsonl"), "none.jsonl"),
        (("--out", "/nowhere/policy.json"), "no folder '/nowhere'"),
        (("--overwrite", "--out", "."), "cannot write '.': it is not a regular file"),
        (("--match", "exakt"), "did you mean 'exact'"),
        (("--reach", "-1"), "--reach"),
        (("--reach", "nan"), "reach"),
        (("--limit", "30"), "at least 20 cases of correction, and there are 15"),
        (("--json", "--quiet"), "exclude each other"),
        (("--model", "no/such-model"), "no/such-model"),
    ],
)
def test_what_is_wrong_is_said(
    refused: Callable[..., str], cases: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given: dict[str, Any] = {"--cases": cases, "--out": tmp_path / "p.json", "--model": "no/model"}
    given = {name: value for name, value in given.items() if name not in arguments}
    rest = [part for pair in given.items() for part in pair]
    assert said in refused("fit-auto", *rest, *arguments)
    assert not (tmp_path / "p.json").exists()


def test_a_policy_is_not_replaced_unasked(
    refused: Callable[..., str], cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "policy.json"
    out.write_text("mine")
    files = ("--cases", cases, "--out", out, "--model", "no/such-model")
    assert "--overwrite" in refused("fit-auto", *files)
    assert out.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_an_interruption(
    fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    where = ("--answers", tmp_path / "answers") if kept else ()
    with monkeypatch.context() as patched:
        patched.setattr(shared.Batch, "read", stop)
        code, out, err = fit(*where)
    assert (code, out) == (130, "")
    assert ("goes on from here" if kept else "nothing was kept") in err
    assert not (tmp_path / "policy.json").exists()
    if kept:
        assert fit(*where, "--quiet")[0] == 0
