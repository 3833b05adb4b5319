"""What a model knows closed book: asked once, in batches, and judged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conflictkit as ck
from conflictkit import engine
from conflictkit.errors import (
    InvalidParameterError,
    LogitsError,
    OutputError,
    UnknownNameError,
)
from conflictkit.evaluation.answered import Said, prompt_hash
from conflictkit.evaluation.priors import Prior, ask_priors, declined, prior_of, spoken
from conflictkit.evaluation.questions import Question
from tests.evaluation.screening.sets import (
    MONEY,
    SOME,
)
from tests.tiny import byte_tokenizer, llama

FAST: dict[str, Any] = {"samples": 3, "max_new_tokens": 4}


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


def test_a_cache_that_cannot_be_is_said(model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidParameterError, match="not a folder"):
        ask_priors(model, SOME[:1], cache=tmp_path / "file", **FAST)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "answers").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        ask_priors(model, SOME[:1], cache=tmp_path / "folder", **FAST)
