"""`conflictkit evaluate`: cases in, a folder and a table out, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conflictkit.evaluation.cases import write_cases
from conflictkit.policy import Policy
from tests.cli.conftest import Run
from tests.evaluation.runner.conftest import case, closed

Refused = Callable[..., str]


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.jsonl"
    write_cases(path, [*map(case, range(4)), closed(1)])
    return path


@pytest.fixture
def evaluate(run: Run, folder: Path, cases: Path, tmp_path: Path) -> Callable[..., Any]:
    """Evaluate the cases with the tiny model into `run`."""

    def call(*arguments: Any, methods: str = "plain,cad?alpha=0:1:0.5") -> Any:
        given = ("--cases", cases, "--out", tmp_path / "run", "--model", folder)
        return run("evaluate", *given, "--methods", methods, "--max-new-tokens", 3, *arguments)

    return call


def test_a_table_of_methods_and_where_the_run_is(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    code, out, err = evaluate()
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()[1:]
    for name in ("corr. %", "resist. %", "min. %", "harm. %", "agree. %", "irrel. %", "other %"):
        assert name in head
    labels = ["plain", "cad?alpha=0", "cad?alpha=0.5", "cad?alpha=1"]
    assert [line.split()[0] for line in lines if line[:1].strip()][:4] == labels
    assert "5 cases (1 correction, 1 resistance, 1 agreement, 1 irrelevant, 1 recall)" in out
    told = out.replace("\n", "")
    assert f"4 methods -> {tmp_path / 'run'}".replace(" ", "") in told.replace(" ", "")
    assert len((tmp_path / "run" / "rows.jsonl").read_text().splitlines()) == 20


def test_the_figures_of_the_table_are_those_of_the_summary(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    code, out, _ = evaluate()
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    cell = summary["cells"]["cad?alpha=1"]["other_rate"]
    (line,) = (line for line in out.splitlines() if line.startswith("cad?alpha=1 "))
    assert f"{cell['value'] * 100:.1f}" in line


def test_the_summary_as_data_and_nothing_else(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = evaluate("--json", "--limit", 4)
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["methods"] == ["plain", "cad?alpha=0", "cad?alpha=0.5", "cad?alpha=1"]
    assert summary["cases"] == 4


def test_quiet_says_nothing(evaluate: Callable[..., Any]) -> None:
    assert tuple(evaluate("--quiet")) == (0, "", "")


def test_policies_beside_methods_or_alone(
    run: Run, evaluate: Callable[..., Any], folder: Path, cases: Path, tmp_path: Path
) -> None:
    for name in ("early", "late"):
        Policy.of("cad", when="jsd > 0.1").save(tmp_path / f"{name}.json")
    two = ("--policy", tmp_path / "early.json", "--policy", tmp_path / "late.json")
    summary = json.loads(evaluate("--json", *two, methods="plain").out)
    assert summary["methods"] == ["plain", "early", "late"]
    given = ("--cases", cases, "--model", folder, "--out", tmp_path / "alone")
    assert run("evaluate", *given, *two, "--quiet").code == 0


def test_marks_are_explained_where_there_is_a_baseline(
    run: Run, folder: Path, cases: Path, tmp_path: Path
) -> None:
    given = ("evaluate", "--cases", cases, "--model", folder, "--max-new-tokens", 1)
    for methods in ("memory,cad", "plain,cad"):
        out = run(*given, "--methods", methods, "--out", tmp_path / methods).out
        assert "figure above its 95 % interval" in out
        assert ("differs from plain" in out) is methods.startswith("plain")


def test_cases_that_cannot_be_asked_are_told(evaluate: Callable[..., Any], cases: Path) -> None:
    write_cases(cases, [*map(case, range(4)), case(5, contexts=("x" * 300,))])
    code, out, err = evaluate()
    assert code == 0
    assert "1 of 5 cases could not be asked" in err
    assert "errors.jsonl" in err
    assert err.count("\n") == 1
    assert "plain" in out


GOOD = {"id": "a", "question": "Which?", "contexts": ["it is red"], "state": "irrelevant"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there are no cases in"),
        (json.dumps(GOOD) + "\n{", "cases.jsonl, line 2: the line is not JSON"),
        (json.dumps({**GOOD, "state": "corection"}), "line 1, field 'state': unknown"),
        (json.dumps({**GOOD, "contexts": "red"}), "line 1, field 'contexts': must be a list"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD), "line 2, field 'id': 'a' is the id of line 1"),
    ],
)
def test_a_bad_file_of_cases_is_one_line(
    refused: Refused, cases: Path, tmp_path: Path, text: str, said: str
) -> None:
    cases.write_text(text)
    given = ("--cases", cases, "--out", tmp_path / "run", "--methods", "plain")
    assert said in refused("evaluate", *given, "--model", "no/such-model")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "plain,addacad"), "did you mean 'adacad'"),
        (("--methods", "cad?alpha=0:1:-1"), "a step above 0"),
        (("--methods", "plain,plain"), "two methods are called 'plain'"),
        ((), "--methods LIST or --policy FILE"),
        (("--policy", "none.json"), "none.json"),
        (("--methods", "plain", "--cases", "paraconflit:x"), "did you mean 'paraconflict'"),
        (("--methods", "plain", "--cases", "none.jsonl"), "none.jsonl"),
        (("--methods", "plain", "--split", "train"), "no case is of split 'train'"),
        (("--methods", "plain", "--match", "exat"), "did you mean 'exact'"),
        (("--methods", "plain", "--limit", "0"), "--limit"),
        (("--methods", "plain", "--out", "CASES"), "not a folder"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    refused: Refused, cases: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = [str(cases) if argument == "CASES" else argument for argument in arguments]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "run")]
    if "--cases" not in given:
        given += ["--cases", str(cases)]
    assert said in refused("evaluate", *given, "--model", "no/such-model")


def test_two_runs_are_not_mixed_and_the_same_one_is_left_as_it_is(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    first = evaluate()
    rows = (tmp_path / "run" / "rows.jsonl").read_bytes()
    assert evaluate() == first
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == rows
    code, out, err = evaluate(methods="plain")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "holds a run that differs: methods was" in err
    assert "--overwrite" in err
    assert evaluate("--overwrite", methods="plain").code == 0


def test_an_interruption_says_how_to_go_on(
    evaluate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("conflictkit.evaluation.runner._Runner._results", interrupt)
        code, out, err = evaluate()
    assert (code, out) == (130, "")
    assert err == "conflictkit: interrupted: the same command goes on from here\n"
    assert evaluate().code == 0


def test_the_bar_is_for_terminals_that_are_not_quiet(
    evaluate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = evaluate("--json", "--batch-size", "2")
    assert code == 0
    assert json.loads(out)["cases"] == 5
    assert "evaluating" in err
    assert "20 answers" in err
    assert evaluate("--quiet", "--overwrite").err == ""
