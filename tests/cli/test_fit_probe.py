"""`conflictkit fit-probe`: cases in, a probe out; then `ask` and `evaluate` read it."""

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
from conflictkit.detectors.probe import LayerProbe
from conflictkit.evaluation.cases.io import write_cases
from conflictkit.gates import Gate
from conflictkit.policy import Policy
from tests.cli.conftest import Run
from tests.evaluation.runner.conftest import case
from tests.probed import probe_of, score

ASKED = ("What is the capital of Sweden?", "The capital of Sweden is Oslo.")
ASK = ["ask", ASKED[0], "-c", ASKED[1], "--max-new-tokens", "5"]
FIT = ["fit-probe", "--cases", "atlas:train", "--limit", "140", "--layers", "3"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a probe of Atlas and the activations that it was fitted on; what was printed
    as JSON."""
    folder, out = tmp_path_factory.mktemp("fitted"), io.StringIO()
    files = ["--out", str(folder / "probe.safetensors"), "--keep", str(folder / "kept")]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main([*FIT, *files, "--json"]) == 0
    return folder, json.loads(out.getvalue())


@pytest.mark.slow
def test_a_probe_comes_out(fitted: tuple[Path, dict[str, Any]]) -> None:
    folder, told = fitted
    made = LayerProbe.load(folder / "probe.safetensors")
    assert (made.target, made.place, made.model) == ("conflict", "residual.3", "atlas")
    made.check("atlas", ck.load("atlas").fingerprint)
    assert LayerProbe.from_dict(told["probe"]) == made
    assert (told["target"], told["dropped"]) == ("conflict", {})
    (only,) = told["scores"]
    assert made.about["validation"] == only
    assert (only["kind"], only["layer"]) == ("residual", 3)
    # In equal shares from the three states that tell a conflict from none.
    assert made.about["rows"] + only["positives"] + only["negatives"] == 140
    assert only["auroc_low"] <= only["auroc"] <= only["auroc_high"]
    assert sorted(path.name for path in folder.iterdir()) == ["kept", "probe.safetensors"]


@pytest.mark.slow
def test_it_says_how_every_layer_does(
    run: Run, fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """From activations that were kept: the model is not read again."""
    folder, told = fitted
    out = tmp_path / "again.safetensors"
    began = (folder / "kept" / "activations" / "capture.json").stat().st_mtime_ns
    code, said, err = run(*FIT, "-o", out, "--keep", folder / "kept")
    assert (code, err) == (0, "")
    assert out.read_bytes() == (folder / "probe.safetensors").read_bytes()
    assert (folder / "kept" / "activations" / "capture.json").stat().st_mtime_ns == began
    (only,) = told["scores"]
    lines = said.splitlines()
    head = "kind layer AUROC (95 % interval) AUPRC accuracy penalty"
    assert " ".join(lines[0].split()) == head
    assert lines[1].startswith("residual       3")
    assert f"{only['auroc']:.3f} ({only['auroc_low']:.3f} to" in lines[1]
    assert lines[1].endswith("<- kept")
    assert f"{only['positives']} yes, {only['negatives']} no" in said
    assert str(out) in said.replace("\n", "")
    assert run(*FIT, "-o", out, "--keep", folder / "kept", "--overwrite", "-q") == (0, "", "")


@pytest.mark.slow
def test_ask_gates_by_it(run: Run, fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    file = fitted[0] / "probe.safetensors"
    made, atlas = LayerProbe.load(file), ck.load("atlas")
    first = score(atlas.model, made, atlas.prompts(*ASKED)["context"].ids)[0]
    told = {}
    for sign in "<>":
        when = f"probe {sign} {first + (0.01 if sign == '<' else -0.01):.6f} at prompt"
        code, out, _ = run(*ASK, "-m", "memory", "--probe", file, "--when", when, "--json")
        assert code == 0
        told[sign] = json.loads(out)
        tokens = told[sign]["tokens"]
        assert tokens[0]["scores"]["probe"] == pytest.approx(first, abs=1e-5)
        assert {one["scores"]["active"] for one in tokens} == {1.0}
        assert told[sign]["params"]["when"] == str(Gate.parse(when))
    assert told["<"]["answer"] == atlas.ask(*ASKED, "memory", max_new_tokens=5).text
    code, out, err = run(*ASK, "-m", "memory", "--probe", file, "--when", "probe > 2", "-q")
    assert (code, out) == (0, atlas.ask(*ASKED, "plain", max_new_tokens=5).text + "\n")
    assert "never acted" in err
    code, out, _ = run(*ASK, "-m", "cad", "--probe", file, "--when", "probe > 0.5")
    assert code == 0
    assert "probe" in out
    page, policy = tmp_path / "page.html", tmp_path / "policy.json"
    more = ("--html", page, "--save-policy", policy, "-q")
    assert run(*ASK, "--probe", file, "--when", "probe > 0.5", *more).code == 0
    assert "probe" in page.read_text()
    gate = Policy.load(policy).controller.gate
    assert gate is not None
    assert gate.probe == made  # what was asked with is what was saved


@pytest.mark.slow
def test_evaluate_gates_by_it(
    run: Run, fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    file = fitted[0] / "probe.safetensors"
    Policy.of("memory", when="probe > 0.5").save(tmp_path / "gated.json")
    write_cases(tmp_path / "cases.jsonl", [case(n) for n in range(3)])
    command = ["evaluate", "--cases", tmp_path / "cases.jsonl", "--out", tmp_path / "run",
               "--policy", tmp_path / "gated.json", "--max-new-tokens", 2, "-q"]  # fmt: skip
    assert run(*command, "--probe", file).code == 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    held = Policy.from_dict(info["policies"]["gated"]).controller.gate
    assert held is not None
    assert held.probe == LayerProbe.load(file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "conflicts"), "unknown target of a probe 'conflicts'"),
        (("--penalty", "l3"), "unknown penalty of a probe 'l3'"),
        (("--optimiser", "adam"), "unknown optimiser of a probe 'adam'"),
        (("--kinds", "residual,attn"), "unknown kind of a probe 'attn'"),
        (("--target", "source", "--kinds", "heads"), "heads tell of a conflict, not of the source"),
        (("--layers", "three"), "--layers takes whole numbers, as in 3,4,8, not 'three'"),
        (("--layers", "3,,4"), "--layers takes whole numbers"),
        (("--layers", "-1"), "--layers takes whole numbers"),
        (("--layers", "99"), "no layer 99"),
        (("--split", "tests"), "no case is of split 'tests'"),
        (("--cases", "none.jsonl"), "none.jsonl"),
        (("--out", "/nowhere/p.safetensors"), "no folder '/nowhere'"),
        (("--limit", "0"), "--limit"),
        (("--limit", "20"), "too few cases to"),
        (("--json", "--quiet"), "exclude each other"),
        (("--model", "no/such-model"), "no/such-model"),
    ],
)
def test_what_is_wrong_is_said(
    refused: Callable[..., str], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given: dict[str, Any] = {"--cases": "atlas:train", "--out": tmp_path / "p.st", "--limit": 140}
    if "--layers" not in arguments:
        given["--layers"] = "3"
    rest = [part for pair in given.items() if pair[0] not in arguments for part in pair]
    assert said in refused("fit-probe", *rest, *arguments)
    assert not (tmp_path / "p.st").exists()


def test_a_probe_is_not_replaced_unasked(refused: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    out.write_text("mine")
    assert "--overwrite" in refused(*FIT, "--out", out, "--model", "no/such-model")
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--when", "probe > 0.5", "--probe", "none.safetensors"), "none.safetensors"),
        (("--when", "probe > high"), "'high' is no number"),
        (("--strength", "probe"), "unknown detector 'probe'"),
    ],
)
def test_what_is_wrong_with_a_gate_is_said(
    refused: Callable[..., str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(*ASK, *arguments)


def test_a_gate_needs_a_probe_of_the_model(
    refused: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    asked = ["ask", "Which?", "-c", "This.", "--model", folder, "--when", "probe > 0.5"]
    assert "conflictkit fit-probe" in refused(*asked)
    probe_of(ck.load("atlas").model, "residual", 3).save(tmp_path / "p.safetensors")
    assert "fitted on the model 'tiny'" in refused(*asked, "--probe", tmp_path / "p.safetensors")


def test_score_refuses_a_probe(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "Which?", "context": "This."}\n')
    files = [tmp_path / "rows.jsonl", "--out", tmp_path / "scores.jsonl"]
    assert "reads activations" in refused("score", *files, "--when", "probe > 0.5")
    assert not (tmp_path / "scores.jsonl").exists()
