"""What a model knows closed book, kept between runs, and the cases that come of it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conflictkit as ck
from conflictkit import engine
from conflictkit.atlas.templates import RELATIONS, fill
from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    LogitsError,
    OutputError,
    UnknownNameError,
)
from conflictkit.evaluation.answered import Answered, Said, cache_folder, prompt_hash
from conflictkit.evaluation.cases.io import read_cases
from conflictkit.evaluation.priors import Prior, ask_priors, declined, prior_of, spoken
from conflictkit.evaluation.questions import Question
from conflictkit.evaluation.screening import PASSAGES, Plan, screen, tri_state
from tests.tiny import byte_tokenizer, llama

PLACES = {
    "Poland": "Warsaw", "Norway": "Oslo", "France": "Paris", "Italy": "Rome", "Spain": "Madrid",
    "Egypt": "Cairo", "Japan": "Tokyo", "Cuba": "Havana",
}  # fmt: skip
SOME = [
    Question(place, f"What is the capital of {place}?", (town,), place, "capital")
    for place, town in PLACES.items()
]
MONEY = [Question(f"m{n}", f"How does {n} pay?", (f"coin{n}",), "", "money") for n in range(3)]
FAST: dict[str, Any] = {"samples": 3, "max_new_tokens": 4}


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Do not wait for the disk, and keep out of the user's folders."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("CONFLICTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model() -> Any:
    """One token per byte; knows nothing."""
    return ck.load(llama(vocab=261), tokenizer=byte_tokenizer())


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The number of passes over the weights."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    handle = model.model.register_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()


# From answers to a prior.

ASKED = Question("1", "Which island?", ("New Guinea", "Papua"))


def prior(greedy: str, *samples: str, **shares: Any) -> Prior:
    return prior_of(ASKED, Said(greedy, samples), **shares)


@pytest.mark.parametrize(
    ("greedy", "samples", "state"),
    [
        ("New Guinea", ["new guinea."] * 4 + ["Java"], "right"),
        ("It is Papua.", ["Papua"] * 4 + ["Java"], "right"),
        ("New Guinea", ["Papua"] * 3 + ["Java"] * 2, "uncertain"),
        ("Java", ["Java"] * 3 + ["Papua"] * 2, "wrong"),
        ("Java", ["the JAVA."] * 3 + ["Papua"] * 2, "wrong"),
        ("Java", ["Java"] * 2 + ["Bali"] * 3, "uncertain"),
        ("Java", ["Papua"] * 5, "uncertain"),
        ("Guinea", ["Guinea"] * 5, "wrong"),
        ("", [""] * 5, "uncertain"),
        ("unknown", ["unknown"] * 5, "uncertain"),
        ("I don't know.", ["I don't know."] * 5, "uncertain"),
        ("Java\nQuestion: Papua?", ["Java\nnext"] * 5, "wrong"),
    ],
)
def test_what_a_prior_is(greedy: str, samples: Sequence[str], state: str) -> None:
    assert prior(greedy, *samples).state == state


def test_the_shares_are_the_callers() -> None:
    samples = ("Papua", "Papua", "Papua", "Java", "Java")
    assert prior("Papua", *samples, right=0.6).state == "right"
    assert prior("Papua", *samples, right=0.61).state == "uncertain"
    assert prior("Java", *samples, wrong=0.4).state == "wrong"
    assert prior("Java", *samples, wrong=0.41).state == "uncertain"
    told = prior("Java", *samples)
    assert (told.answer, told.right_share, told.same_share) == ("Java", 0.6, 0.4)


def test_a_longer_answer_of_the_set_is_another_one(model: Any, monkeypatch: Any) -> None:
    """`Papua New Guinea` is not `New Guinea`, if the set knows it."""

    def says(model: Any, job: Any, part: Any) -> list[Said]:
        return [Said("Papua New Guinea", ("Papua New Guinea",) * 3) for _ in part]

    monkeypatch.setattr("conflictkit.evaluation.priors._batch", says)
    one = replace(ASKED, answers=("New Guinea",))
    other = Question("2", "Which state?", ("Papua New Guinea",))
    alone = ask_priors(model, [one], **FAST).priors["1"]
    both = ask_priors(model, [one, other], **FAST).priors
    assert (alone.state, both["1"].state, both["2"].state) == ("right", "wrong", "right")


@pytest.mark.parametrize(
    ("text", "line"),
    [(" Warsaw.", "Warsaw"), ("\n\n Oslo \nQuestion:", "Oslo"), ("etc...", "etc..."), (" \n", "")],
)
def test_the_first_line_is_the_answer(text: str, line: str) -> None:
    assert spoken(text) == line


def test_declining_is_not_an_answer_that_begins_alike() -> None:
    assert declined("I'm sorry, but I cannot say")
    assert not declined("None of the above")
    assert not declined("Unknown Pleasures")


# Asking.


def test_answers_are_those_of_ask(model: Any) -> None:
    """The same as the public face gives, one question at a time and with the seed worked out."""
    found = ask_priors(model, SOME[:3], seed=5, temperature=1.0, batch_size=2, **FAST).priors
    for question in SOME[:3]:
        ids = model.prompts(question.question)["memory"].ids
        key = hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
        assert key == prompt_hash(ids)
        seed = int(hashlib.sha256(f"5/{key}".encode()).hexdigest()[:14], 16)
        options: dict[str, Any] = {"max_new_tokens": 4, "trace": False}
        greedy = model.ask(question.question, method="memory", **options)
        drawn = model.ask(
            question.question, method="memory", temperature=1.0, seed=seed, n=3, **options
        )
        texts = [drawn.text, *(other.text for other in drawn.alternatives)]
        assert found[question.id].answer == spoken(greedy.text)
        assert found[question.id].samples == tuple(map(spoken, texts))
    assert len({text for one in found.values() for text in one.samples}) > 3


def test_neighbours_do_not_change_what_is_said(model: Any, tmp_path: Path) -> None:
    one = ask_priors(model, SOME, batch_size=1, cache=tmp_path / "a", **FAST)
    many = ask_priors(model, SOME[::-1], batch_size=5, cache=tmp_path / "b", **FAST)
    assert one.priors == many.priors
    assert (one.asked, one.known) == (len(SOME), 0)


def test_the_prompts_are_read_once(model: Any) -> None:
    with counted(model) as count:
        ask_priors(model, SOME[:2], samples=7, max_new_tokens=1)
    assert count == [1]


def test_a_second_run_asks_nothing(model: Any, tmp_path: Path) -> None:
    first = ask_priors(model, SOME, **FAST)
    with counted(model) as count:
        second = ask_priors(model, SOME, batch_size=3, **FAST)
    assert count == [0]
    assert (second.asked, second.known) == (0, len(SOME))
    assert second.priors == first.priors
    # New questions are asked alone, and a question that stands there twice is asked once.
    twin = replace(MONEY[0], id="twin")
    more = ask_priors(model, [*SOME, *MONEY, twin], **FAST)
    assert (more.asked, more.known) == (len(MONEY), len(SOME))
    assert more.priors["twin"].samples == more.priors["m0"].samples


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"temperature": 0.9}, {"samples": 2}, {"max_new_tokens": 3}, {"stop": ["x"]},
     {"top_k": 2}, {"model": "seed"}, {"model": "dtype"}],
)  # fmt: skip
def test_other_settings_or_another_model_are_asked_anew(model: Any, other: dict[str, Any]) -> None:
    ask_priors(model, SOME[:2], **FAST)
    asked = model
    if "model" in other:
        weights = llama(vocab=261, seed=9 if other["model"] == "seed" else 0)
        if other["model"] == "dtype":
            import copy

            weights = copy.deepcopy(weights).bfloat16()
        asked, other = ck.load(weights, tokenizer=byte_tokenizer()), {}
    assert ask_priors(asked, SOME[:2], **{**FAST, **other}).asked == 2


def test_thresholds_do_not_ask_again(model: Any) -> None:
    ask_priors(model, SOME[:2], **FAST)
    assert ask_priors(model, SOME[:2], right=0.5, wrong=0.9, **FAST).asked == 0


def test_an_interruption_keeps_what_was_answered(model: Any) -> None:
    def interrupt(progress: Any) -> None:
        seen.append(progress.rows)
        if progress.rows == 4:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        ask_priors(model, SOME, batch_size=2, progress=interrupt, **FAST)
    assert seen == [0, 2, 4]
    rest = ask_priors(model, SOME, batch_size=2, progress=lambda p: seen.append(p.rows), **FAST)
    assert (rest.known, rest.asked) == (4, len(SOME) - 4)
    assert seen[3:] == [4, 6, 8]


def test_what_cannot_be_asked_is_dropped_alone(model: Any, monkeypatch: Any) -> None:
    long = Question("long", "Which " + "x" * 300 + "?", ("y",))
    asked = ask_priors(model, [*SOME[:2], long], **FAST)
    assert set(asked.priors) == {SOME[0].id, SOME[1].id}
    assert "tokens" in asked.dropped["long"]
    real = engine.generate

    def generate(run: Any) -> Any:
        if any("money" in model._decode(row) for row in run.streams["memory"].ids.tolist()):
            raise LogitsError("logits hold NaN")
        return real(run)

    monkeypatch.setattr(engine, "generate", generate)
    bad = Question("nan", "Whose money?", ("x",))
    asked = ask_priors(model, [bad, *SOME[2:4]], **FAST)
    assert set(asked.priors) == {SOME[2].id, SOME[3].id}
    assert asked.dropped == {"nan": "logits hold NaN"}


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"samples": True}, {"temperature": 0}, {"temperature": -1}, {"right": 1.1},
     {"wrong": 0}, {"wrong": "half"}, {"batch_size": 0}, {"max_new_tokens": 0}],
)  # fmt: skip
def test_options_that_cannot_be(model: Any, options: dict[str, Any]) -> None:
    with counted(model) as count, pytest.raises(InvalidParameterError):
        ask_priors(model, SOME, **options)
    assert count == [0]


def test_an_unknown_option_is_named(model: Any) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'top-k'|top_k"):
        ask_priors(model, SOME, topk=3)


# The cache.

WORDS = Said("Grüße", ("a\nb", ""))


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    """Killed at any byte: what was whole is there, and what comes next is too."""
    made = Answered(tmp_path / "whole", {"n": 1})
    made.add({"one": WORDS})
    made.add({"two": WORDS, "three": WORDS})
    data = made.path.read_bytes()
    ends = [place for place in range(len(data)) if data[place : place + 1] == b"\n"]
    assert len(ends) == 4  # the settings, and three answers
    for cut in range(len(data) + 1):
        torn = Answered(tmp_path / "torn", {"n": 1})
        torn.path.parent.mkdir(parents=True, exist_ok=True)
        torn.path.write_bytes(data[:cut])
        again = Answered(tmp_path / "torn", {"n": 1})
        whole = sum(end < cut for end in ends)
        names = ["one", "two", "three"][: max(0, whole - 1)]
        assert [again.get(name) for name in ("one", "two", "three")] == [
            WORDS if name in names else None for name in ("one", "two", "three")
        ]
        again.add({"four": WORDS})
        later = Answered(tmp_path / "torn", {"n": 1})
        assert all(later.get(name) == WORDS for name in [*names, "four"])


def test_lines_that_nobody_wrote_are_passed_over(tmp_path: Path) -> None:
    made = Answered(tmp_path, {})
    made.add({"one": WORDS})
    junk = [b"[]", b"{}", b'{"prompt": 1, "greedy": "x", "samples": []}', b"\xff\xfe",
            b'{"prompt": "p", "greedy": "x", "samples": [1]}', b"[" * 100_000]  # fmt: skip
    with made.path.open("ab") as file:
        file.write(b"\n".join(junk) + b"\n")
    made.add({"two": WORDS})
    again = Answered(tmp_path, {})
    assert [again.get(name) for name in ("one", "two", "p")] == [WORDS, WORDS, None]


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    def write(name: str) -> None:
        mine = Answered(tmp_path, {"n": 2})
        for number in range(100):
            mine.add({f"{name}{number}": Said("x" * 5000, ())})

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Answered(tmp_path, {"n": 2})
    assert all(found.get(f"{name}{number}") for name in "ab" for number in range(100))
    assert len(found.path.read_bytes().splitlines()) == 201


_ENDLESS = """
import sys
from conflictkit.evaluation.answered import Answered, Said
mine = Answered(sys.argv[1], {"n": 3})
number = 0
while True:
    mine.add({f"{sys.argv[2]}{number}": Said("y" * 3000, ("z",))})
    number += 1
    sys.stdout.write(".")
    sys.stdout.flush()
"""


@pytest.mark.slow
def test_killed_processes_lose_nothing_that_was_written(tmp_path: Path) -> None:
    draw = random.Random(0)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, str(tmp_path), name], stdout=subprocess.PIPE
        )
        for name in "ab"
    ]
    told = []
    for run in runs:
        assert run.stdout is not None
        run.stdout.read(3)
    for run in runs:
        time.sleep(draw.uniform(0, 0.05))
        os.kill(run.pid, signal.SIGKILL)
        out, _ = run.communicate()
        told.append(3 + len(out))
    found = Answered(tmp_path, {"n": 3})
    for name, count in zip("ab", told, strict=True):
        assert all(found.get(f"{name}{number}") for number in range(count))
    found.add({"after": WORDS})
    assert Answered(tmp_path, {"n": 3}).get("after") == WORDS


def test_where_answers_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CONFLICTKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "conflictkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "conflictkit"


def test_a_cache_that_cannot_be_is_said(model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidParameterError, match="not a folder"):
        ask_priors(model, SOME[:1], cache=tmp_path / "file", **FAST)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "answers").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        ask_priors(model, SOME[:1], cache=tmp_path / "folder", **FAST)


# The split.


def given(questions: Sequence[Question], states: str) -> dict[str, Prior]:
    """Priors by their first letters."""
    names = {"r": "right", "w": "wrong", "u": "uncertain"}
    return {
        question.id: Prior(
            question.id,
            names[letter],
            question.answers[0] if letter == "r" else "Gotham",
            (),
            float(letter == "r"),
            1.0,
        )
        for question, letter in zip(questions, states, strict=True)
    }


def test_the_prior_decides_the_state() -> None:
    split = tri_state(
        [*SOME, *MONEY], given(SOME, "rrrrwwwu"), Plan(passages=("bare", "irrelevant-hard"))
    )
    assert split.dropped == {}
    found = Counter((case.subject, case.state) for case in split.cases)
    for question, letter in zip(SOME, "rrrrwwwu", strict=True):
        states = {"r": ["agreement", "resistance", "irrelevant"], "w": ["correction"], "u": []}
        assert [state for place, state in found if place == question.subject] == states[letter]
    assert set(found.values()) == {1}
    for case in split.cases:
        true = PLACES[case.subject]
        assert case.gold_answers == (true,)
        assert case.memory_answers == (("Gotham",) if case.state == "correction" else (true,))
        (text,) = case.contexts
        assert (true in text) == (case.state in ("agreement", "correction"))
        if case.state == "irrelevant":
            assert case.context_answers == ()
        elif case.state == "resistance":
            assert case.context_answers[0] in set(PLACES.values()) - {true}
            assert case.context_answers[0] in text
        else:
            assert case.context_answers == (true,)


def test_the_answers_text_does_not_give_the_state_away() -> None:
    """With every memory right, right and wrong passages hold the very same answers."""
    split = tri_state(SOME, given(SOME, "r" * 8), Plan(passages=("bare", "coherent", "hedged")))
    said: dict[tuple[str, str], Counter[str]] = {}
    for case in split.cases:
        said.setdefault((case.context_kind, case.state), Counter()).update(case.context_answers)
    for kind in ("bare", "coherent", "hedged"):
        assert said[kind, "agreement"] == said[kind, "resistance"]
        assert said[kind, "agreement"] == Counter(PLACES.values())


def test_several_passages_belong_to_the_majority() -> None:
    plan = Plan(passages=("several",), count=5, wrong_shares=(0.2, 0.8))
    split = tri_state(SOME, given(SOME, "rrrrwwwu"), plan)
    states = Counter(case.state for case in split.cases)
    assert states == {"agreement": 4, "resistance": 4, "correction": 3}
    for case in split.cases:
        assert len(case.contexts) == 5
        wrong = case.meta["wrong_passages"]
        assert isinstance(wrong, list)
        assert len(wrong) == (4 if case.state == "resistance" else 1)
        true = PLACES[case.subject]
        assert [n for n, text in enumerate(case.contexts) if true not in text] == wrong
        assert (case.context_answers == (true,)) == (case.state != "resistance")


def test_names_of_the_true_answer_all_count() -> None:
    some = [replace(SOME[0], answers=("Warsaw", "Warszawa")), *SOME[1:]]
    split = tri_state(some, given(some, "r" * 8), Plan(passages=("bare",), alias=True))
    mine = {case.state: case for case in split.cases if case.subject == "Poland"}
    assert "Warszawa" in mine["agreement"].contexts[0]
    assert "Warsaw" not in mine["agreement"].contexts[0]
    assert mine["agreement"].context_answers == ("Warsaw", "Warszawa")
    assert mine["resistance"].memory_answers == ("Warsaw", "Warszawa")
    plain = tri_state(some, given(some, "r" * 8), Plan(passages=("bare",)))
    assert "Warsaw" in next(c for c in plain.cases if c.state == "agreement").contexts[0]


def test_what_could_not_be_made_is_counted() -> None:
    two = [Question(str(n), f"Is {n} odd?", ("yes",), relation="odd") for n in range(2)]
    split = tri_state(two, given(two, "rr"), Plan(passages=("bare", "several", "irrelevant-easy")))
    assert {case.state for case in split.cases} == {"agreement"}
    assert split.dropped == {"no wrong answer of its kind": 6, "no irrelevant passage": 2}


def test_a_wrong_answer_is_never_what_memory_says() -> None:
    for seed in range(20):
        priors = given(SOME, "rrrrrrrw")
        priors["Cuba"] = replace(priors["Cuba"], answer="Oslo")
        plan = Plan(passages=("several",), wrong_shares=(0.25,), seed=seed)
        (case,) = (c for c in tri_state(SOME, priors, plan).cases if c.state == "correction")
        assert not any("Oslo" in text for text in case.contexts)


def test_the_seed_is_the_split() -> None:
    plan = Plan(passages=PASSAGES)
    priors = given(SOME, "rrrrrrww")
    first = tri_state([*SOME, *MONEY], priors, plan)
    assert first == tri_state([*SOME, *MONEY], priors, plan)
    other = tri_state([*SOME, *MONEY], priors, replace(plan, seed=1))
    assert first.cases != other.cases
    assert [case.id for case in first.cases] == [case.id for case in other.cases]
    assert len({case.id for case in first.cases}) == len(first.cases)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"passages": ()}, "each once"),
        ({"passages": ("bare", "bare")}, "each once"),
        ({"passages": ("several",), "wrong_shares": (0.5,)}, "is half"),
        ({"passages": ("several",), "wrong_shares": (0.25, 0.3)}, "different numbers"),
        ({"passages": ("several",), "wrong_shares": ()}, "at least one"),
        ({"passages": ("several",), "count": 1}, "2 to"),
    ],
)
def test_plans_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        Plan(**options)


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'hedged'"):
        Plan(passages=("hedge",))
    with pytest.raises(UnknownNameError, match="did you mean 'type-swap'"):
        Plan(substitution="typeswap")


# From file to file.


def write(path: Path, questions: Sequence[Question]) -> Path:
    rows = [
        {"id": q.id, "question": q.question, "answers": list(q.answers), "relation": q.relation,
         "subject": q.subject}
        for q in questions
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_model_that_knows_nothing_makes_no_case(model: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", SOME)
    with pytest.raises(EmptyInputError, match="uncertain in 8"):
        screen(model, source, tmp_path / "cases.jsonl", temperature=5.0, wrong=1.0, **FAST)
    assert not (tmp_path / "cases.jsonl").exists()


def test_atlas_is_split_as_its_facts_say(tmp_path: Path) -> None:
    """What was found by nine wordings, and what screening finds with one, agree where both are
    clear."""
    draw = random.Random(0)
    facts = [fact for fact in ck.atlas.facts() if fact.state in ("known", "wrong")]
    chosen = [
        fact
        for state in ("known", "wrong")
        for fact in draw.sample([fact for fact in facts if fact.state == state], 24)
    ]
    questions = [
        Question(
            f"{fact.subject}/{fact.relation}",
            fill(RELATIONS[fact.relation].questions[0], fact.subject),
            (fact.object,),
            fact.subject,
            fact.relation,
            popularity=fact.frequency,
        )
        for fact in chosen
    ]
    atlas = ck.load("atlas")
    out = tmp_path / "cases.jsonl"
    done = screen(atlas, questions, out, samples=5, max_new_tokens=12)
    priors = ask_priors(atlas, questions, samples=5, max_new_tokens=12)
    assert priors.asked == 0
    expected = {"known": "right", "wrong": "wrong"}
    clear = [
        (expected[fact.state], priors.priors[f"{fact.subject}/{fact.relation}"].state)
        for fact in chosen
        if priors.priors[f"{fact.subject}/{fact.relation}"].state != "uncertain"
    ]
    assert len(clear) >= 0.7 * len(chosen)
    assert sum(a == b for a, b in clear) >= 0.95 * len(clear)
    cases = read_cases(out)
    assert Counter(case.state for case in cases) == done.states
    assert set(done.states) == {"correction", "resistance", "agreement", "irrelevant"}
    states = {fact.subject + "/" + fact.relation: fact.state for fact in chosen}
    odd = [
        c
        for c in cases
        if (states[str(c.meta["question"])] == "wrong") != (c.state == "correction")
    ]
    assert len(odd) <= 0.05 * len(cases)
