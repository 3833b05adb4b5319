"""`conflictkit fit-steering`: conflicts in, a policy out that `ask` steers by."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import conflictkit as ck
from conflictkit.cli import main
from conflictkit.evaluation.cases.io import write_cases
from conflictkit.policy import Policy
from tests.cli.conftest import Run
from tests.evaluation.runner.conftest import case

ASKED = ("What is the capital of Sweden?", "The capital of Sweden is Oslo.")
CAA = ["--method", "caa", "--limit", "24", "--layers", "3"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training cases of Atlas with short contexts: conflicts, and others that a fit leaves out."""
    found = [
        one
        for state in ("agreement", "correction", "irrelevant", "resistance")
        for one in ck.atlas.cases("train", state)
        if len(one.contexts) == 1 and len(one.contexts[0]) < 90
    ]
    path = tmp_path_factory.mktemp("cases") / "short.jsonl"
    write_cases(path, found)
    return path


@pytest.fixture(scope="module")
def fitted(short: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with `caa.json` and what it was fitted on; what was printed as JSON."""
    folder, out = tmp_path_factory.mktemp("fitted"), io.StringIO()
    files = ["--cases", str(short), "--keep", str(folder / "kept"), "--out",
             str(folder / "caa.json")]  # fmt: skip
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(["fit-steering", *CAA, *files, "--json"]) == 0
    return folder, json.loads(out.getvalue())


@pytest.mark.slow
def test_a_policy_comes_out(fitted: tuple[Path, dict[str, Any]]) -> None:
    folder, told = fitted
    made = Policy.load(folder / "caa.json")
    assert Policy.from_dict(told["policy"]) == made
    assert made.controller.name == "caa"
    assert made.model is not None
    made.check("atlas", ck.load("atlas").fingerprint)
    about = told["about"]
    assert (about["method"], about["layers"], about["budget"]) == ("caa", [3], 0.5)
    assert about["kl"] == pytest.approx(0.5, rel=0.011)
    # The limit is one of conflicts: nothing was drawn that a fit leaves out.
    assert sum(about["cases"].values()) + sum(about["dropped"].values()) == 24
    assert "no conflict" not in about["dropped"]
    assert min(about["cases"].values()) >= 8


@pytest.mark.slow
def test_ask_steers_by_it(run: Run, fitted: tuple[Path, dict[str, Any]]) -> None:
    file, atlas = fitted[0] / "caa.json", ck.load("atlas")
    ask = ["ask", ASKED[0], "-c", ASKED[1], "--max-new-tokens", "5"]
    code, out, _ = run(*ask, "--policy", file, "--json")
    assert code == 0
    told = json.loads(out)
    plain = atlas.ask(*ASKED, "plain", max_new_tokens=5)
    assert told["method"] == "caa"
    assert told["stats"]["edits"] > 0
    assert told["score"] != pytest.approx(plain.score, abs=1e-3)
    asked = atlas.ask(*ASKED, policy=file, max_new_tokens=5)
    assert (told["answer"], told["score"]) == (asked.text, pytest.approx(asked.score, abs=1e-5))
    assert run(*ask, "--policy", file, "-q") == (0, asked.text + "\n", "")


@pytest.mark.slow
def test_it_says_what_was_fitted(
    run: Run, short: Path, fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, told = fitted
    again = [*CAA, "--cases", short, "--keep", folder / "kept", "-o", tmp_path / "again.json"]
    code, out, err = run("fit-steering", *again)
    assert (code, err) == (0, "")
    assert (tmp_path / "again.json").read_bytes() == (folder / "caa.json").read_bytes()
    lines = out.splitlines()
    assert lines[0] == "caa for atlas"
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:] if line.split()[1:]}
    cases = told["about"]["cases"]
    assert said["cases"] == f"context {cases['context']}, memory {cases['memory']}"
    assert said["kl"] == f"{told['about']['kl']:.4g}"
    assert str(tmp_path / "again.json") in out.replace("\n", "")
    quiet = run("fit-steering", *again, "--overwrite", "--quiet", "--budget", "0.1")
    assert quiet == (0, "", "")
    weaker = Policy.load(tmp_path / "again.json").controller.params["directions"]
    assert weaker != told["policy"]["params"]["directions"]


@pytest.mark.slow
def test_a_refusal_region_is_fitted_from_two_kinds_of_cases(
    run: Run, refused: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    write_cases(tmp_path / "known.jsonl", [case(n) for n in range(9)])
    write_cases(tmp_path / "declined.jsonl", [case(n + 20, subject=f"x{n}") for n in range(8)])
    command = ["fit-steering", "--method", "refusal-region", "--model", folder,
               "--cases", tmp_path / "known.jsonl", "--out", tmp_path / "region.json"]  # fmt: skip
    code, out, _ = run(
        *command, "--refused", tmp_path / "declined.jsonl", "--share", "0.25", "--json"
    )
    assert code == 0
    about = json.loads(out)["about"]
    assert about == {"method": "refusal-region", "pairs": 8, "share": 0.25, "variant": "corrected"}
    made = Policy.load(tmp_path / "region.json")
    assert made.controller.name == "refusal-region"
    ask = ["ask", "Which?", "-c", "It.", "--model", folder, "--max-new-tokens", 2, "-q"]
    assert run(*ask, "--policy", tmp_path / "region.json").code == 0
    command.append("--overwrite")
    few = [*command, "--refused", tmp_path / "declined.jsonl", "--limit", "7"]
    assert "7 pairs of cases: 8 are needed" in refused(*few)
    assert Policy.load(tmp_path / "region.json") == made


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "cab"), "unknown method to fit 'cab'"),
        (("--method", "cad"), "unknown method to fit 'cad'"),
        (("--refused", "atlas:test"), "--refused is for refusal-region: leave it out"),
        (("--method", "refusal-region"), "--method refusal-region needs --refused"),
        (("--sae", "atlas"), "--sae is for spare: leave it out"),
        (("--share", "0.1"), "--share is for spare, refusal-region: leave it out"),
        (("--variant", "released"), "--variant is for spare, refusal-region: leave it out"),
        (("--method", "spare", "--budget", "1"), "--budget is for caa, repe, iti: leave it out"),
        (("--method", "refusal-region", "--refused", "x", "--layers", "3"), "--layers is for"),
        (("--method", "spare", "--variant", "x"), "unknown variant 'x'"),
        (("--layers", "three"), "--layers takes whole numbers, as in 3,4,8, not 'three'"),
        (("--layers", "3,"), "--layers takes whole numbers"),
        (("--split", "tests"), "no case is of split 'tests'"),
        (("--cases", "none.jsonl"), "none.jsonl"),
        (("--out", "/nowhere/caa.json"), "no folder '/nowhere'"),
        (("--limit", "0"), "--limit"),
        (("--limit", "9"), "8 of either are needed"),
        (("--json", "--quiet"), "exclude each other"),
        (("--model", "no/such-model"), "no/such-model"),
    ],
)
def test_what_is_wrong_is_said(
    refused: Callable[..., str], short: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given: dict[str, Any] = {"--cases": short, "--method": "caa", "--out": tmp_path / "p.json"}
    rest = [part for pair in given.items() if pair[0] not in arguments for part in pair]
    assert said in refused("fit-steering", *rest, *arguments)
    assert not (tmp_path / "p.json").exists()


def test_cases_without_a_conflict_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    write_cases(tmp_path / "cases.jsonl", [case(n, state="irrelevant") for n in range(3)])
    files = ["--cases", tmp_path / "cases.jsonl", "--out", tmp_path / "p.json"]
    assert "contradicts memory" in refused("fit-steering", "--method", "caa", *files)


def test_a_policy_is_not_replaced_unasked(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named or not: by default it is called as the method is."""
    monkeypatch.chdir(tmp_path)
    Path("iti.json").write_text("mine")
    command = ["fit-steering", "--cases", "atlas:train", "--method", "iti", "--model", "no/model"]
    assert "'iti.json' is there already" in refused(*command)
    assert "--overwrite" in refused(*command, "--out", tmp_path / "iti.json")
    assert Path("iti.json").read_text() == "mine"
