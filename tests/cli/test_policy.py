"""`ask` with gates and policies."""

import json

import pytest

from conflictkit.cli._app import main
from conflictkit.policy import Policy

QUESTION = ["ask", "What is the capital of Sweden?", "-c", "The capital of Sweden is Oslo."]


def test_what_is_asked_for_can_be_saved_and_asked_again(tmp_path, capsys):
    path = tmp_path / "policy.json"
    parts = ["-m", "cad", "-p", "alpha=2", "--when", "jsd > 0.01 until 0.005", "--strength", "0.5"]
    assert main([*QUESTION, *parts, "--save-policy", str(path), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert Policy.load(path) == Policy.of(
        "cad?alpha=2", when="jsd > 0.01 until 0.005", strength=0.5
    )
    assert main([*QUESTION, "--policy", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["params"]["when"] == "jsd > 0.01 until 0.005"
    assert {token["scores"]["active"] for token in first["tokens"]} <= {0.0, 1.0}


def test_a_detector_may_set_the_strength(capsys):
    assert main([*QUESTION, "-m", "cad", "--strength", "jsd", "--json"]) == 0
    scaled = json.loads(capsys.readouterr().out)
    assert main([*QUESTION, "-m", "adacad", "--json"]) == 0
    adacad = json.loads(capsys.readouterr().out)
    assert [token["id"] for token in scaled["tokens"]] == [t["id"] for t in adacad["tokens"]]
    assert [token["context_weight"] for token in scaled["tokens"]] == pytest.approx(
        [token["context_weight"] for token in adacad["tokens"]]
    )


@pytest.mark.parametrize("part", [["--when", "jsd > 0.7"], ["--start-after", "</think>"]])
def test_a_method_that_never_acted_says_so(part, capsys):
    assert main([*QUESTION, "-m", "memory", *part, "-q"]) == 0
    gated = capsys.readouterr()
    assert "never acted" in gated.err
    assert main([*QUESTION, "-m", "plain", "-q"]) == 0
    plain = capsys.readouterr()
    assert gated.out == plain.out
    assert not plain.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "absent.json"], "absent.json"),
        (["--when", "jsd is high"], "DETECTOR > NUMBER"),
        (["--strength", "very"], "unknown detector 'very'"),
        (["--strength", "-1"], "strength"),
        (["--start-after", ""], "start_after"),
        (["--save-policy", "/no/such/folder/p.json"], "/no/such/folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main([*QUESTION, *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_policy_and_a_method_exclude_each_other(tmp_path, capsys):
    Policy.of("cad").save(tmp_path / "p.json")
    assert main([*QUESTION, "--policy", str(tmp_path / "p.json"), "-m", "cad"]) == 2
    assert "a policy says everything" in capsys.readouterr().err
