"""Scores of single rows and batches, against the engine's own steps and against each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import conflictkit as ck
from conflictkit import atlas, detectors
from conflictkit.errors import (
    ContextTooLongError,
    EmptyInputError,
    InvalidParameterError,
    UnknownNameError,
)
from conflictkit.prompts import Prompt, PromptTemplate, answer_ids
from conflictkit.scoring import Row, Scorer
from conflictkit.scoring.scorer import Ready, batches
from conflictkit.types import Case
from tests.tiny import CHAT, byte_tokenizer

QUESTION, CONTEXT = "Which colour?", "It is a green one."
MARKER = (92, 30)  # x:
ROWS = [
    Row(QUESTION, (CONTEXT,), "green"),
    Row("And?", ("x", "Another passage, a longer one this time."), None),
    Row("Why so?", ("because",), "for no reason at all"),
    Row(QUESTION, ("Short.",), None),
]


def test_a_row_scores_the_same_alone_and_in_a_batch(model: Any) -> None:
    scorer = Scorer(model, max_new_tokens=6)
    together = scorer.score(ROWS)
    assert [score.method for score in together] == [None, "plain", None, "plain"]
    for row, one in zip(ROWS, together, strict=True):
        (alone,) = scorer.score([row])
        assert alone.answer == one.answer
        assert [token.id for token in alone.tokens] == [token.id for token in one.tokens]
        assert alone.context_logprob == pytest.approx(one.context_logprob, abs=1e-5)
        assert alone.memory_logprob == pytest.approx(one.memory_logprob, abs=1e-5)
        for name in scorer.names:
            assert alone.scores[name] == pytest.approx(one.scores[name], abs=1e-5)


@pytest.mark.parametrize("method", [None, "cad?alpha=2", "memory"])
def test_what_the_model_writes_is_scored_as_decoding_saw_it(model: Any, method: Any) -> None:
    names = ["jsd", "confidence-gain", "context-entropy"]
    score = model.score(QUESTION, CONTEXT, method=method, scores=names, max_new_tokens=8)
    answer = model.ask(QUESTION, CONTEXT, method or "plain", scores=names, max_new_tokens=8)
    assert score.answer == answer.text
    assert score.method == answer.method
    assert score.finish_reason == answer.finish_reason
    told = [token for token in answer.trace.tokens if token.kind != "end"]
    assert [token.id for token in score.tokens] == [token.id for token in told]
    for ours, theirs in zip(score.tokens, told, strict=True):
        assert ours.text == theirs.text
        for name in ours.scores:
            assert ours.scores[name] == pytest.approx(theirs.scores[name], abs=1e-5)
    if method is None:  # the engine's own sum; no end token is in it
        assert answer.finish_reason == "length"
        assert score.context_logprob == pytest.approx(answer.score, abs=1e-4)


def test_the_summaries_are_of_the_tokens(model: Any) -> None:
    score = model.score(QUESTION, CONTEXT, "green", scores=["jsd", "confidence-gain"])
    assert "".join(token.text for token in score.tokens) == " green"
    for name in ("jsd", "confidence_gain"):
        values = [token.scores[name] for token in score.tokens]
        assert len(set(values)) > 1
        assert score.scores[name] == {
            "max": max(values),
            "min": min(values),
            "mean": pytest.approx(statistics.fmean(values)),
            "first": values[0],
        }
    assert score.context_logprob == pytest.approx(sum(t.context_logprob for t in score.tokens))
    data = score.to_dict()
    assert list(data["scores"]) == ["jsd", "confidence_gain"]
    assert len(data["tokens"]) == len(score.tokens)
    assert "tokens" not in score.to_dict(tokens=False)


def test_a_stop_text_is_no_part_of_the_answer(model: Any) -> None:
    whole = model.score(QUESTION, CONTEXT, max_new_tokens=6)
    texts = [token.text for token in whole.tokens]
    places = [n for n, text in enumerate(texts) if text.strip() and text not in texts[:n]]
    cut = places[1]
    score = model.score(QUESTION, CONTEXT, max_new_tokens=6, stop=[texts[cut]])
    assert score.finish_reason == "stop"
    assert [token.id for token in score.tokens] == [token.id for token in whole.tokens[:cut]]
    nothing = model.score(QUESTION, CONTEXT, max_new_tokens=6, stop=[texts[0]])
    assert (nothing.answer, nothing.tokens) == ("", ())
    assert nothing.context_logprob is nothing.memory_logprob is None
    assert nothing.scores["jsd"] == {"max": None, "min": None, "mean": None, "first": None}


def test_given_text_is_read_as_the_model_would_write_it(model: Any) -> None:
    tokenizer = model.tokenizer
    assert tokenizer.decode(answer_ids(tokenizer, QUESTION, " green ")) == " green"
    below = PromptTemplate(question="{question}\n")
    assert tokenizer.decode(answer_ids(tokenizer, QUESTION, "green", template=below)) == "green"
    # The end token's spelling in an answer is text.
    assert len(answer_ids(tokenizer, QUESTION, "a</s>b")) == len(" a</s>b")
    assert tokenizer.eos_token_id not in answer_ids(tokenizer, QUESTION, "a</s>b")
    with pytest.raises(EmptyInputError, match="answer is empty"):
        answer_ids(tokenizer, QUESTION, " ")


@pytest.mark.parametrize(
    ("before", "lead"), [("<|assistant|>", ""), ("<|assistant|> ", " "), ("<|assistant|>Sir: ", "")]
)
def test_the_chat_template_says_what_stands_before_an_answer(before: str, lead: str) -> None:
    tokenizer = byte_tokenizer(chat=True)
    turn = f"{{% if m['role'] == 'assistant' %}}{before}{{% else %}}<|user|>{{% endif %}}"
    tokenizer.chat_template = CHAT.replace("<|user|>", turn)
    assert tokenizer.decode(answer_ids(tokenizer, QUESTION, "green")) == f"{lead}green"


def test_atlas_reads_an_answer_as_it_writes_it() -> None:
    import conflictkit as ck

    atlas = ck.load("atlas")
    asked = ("What is the capital of Poland?", "The capital of Poland is London.")
    written = atlas.score(*asked, method="memory")
    given = atlas.score(*asked, written.answer)
    assert [token.id for token in given.tokens] == [token.id for token in written.tokens]
    assert given.memory_logprob == pytest.approx(written.memory_logprob, abs=1e-4)


def test_what_cannot_be_scored_is_refused(model: Any) -> None:
    with pytest.raises(EmptyInputError, match="nothing to compare"):
        model.score(QUESTION, None)
    with pytest.raises(EmptyInputError, match="answer is empty"):
        model.score(QUESTION, CONTEXT, "  ")
    with pytest.raises(ContextTooLongError, match="answer alone has 301 tokens"):
        model.score(QUESTION, CONTEXT, "x" * 300)
    with pytest.raises(ContextTooLongError, match="window leaves 56"):
        model.score(QUESTION, "x" * 100, "x" * 199)
    with pytest.raises(InvalidParameterError, match="leave method="):
        model.score(QUESTION, CONTEXT, "green", method="cad")
    with pytest.raises(InvalidParameterError, match="temperature="):
        model.score(QUESTION, CONTEXT, temperature=1.0)
    with pytest.raises(InvalidParameterError, match="list of at least one"):
        Scorer(model, scores=[])
    with pytest.raises(UnknownNameError, match="did you mean 'jsd'"):
        Scorer(model, scores=["jds"])
    with pytest.raises(UnknownNameError, match="option or parameter"):
        Scorer(model, alpha=1)


def test_an_answer_may_fill_the_window_to_its_end(model: Any) -> None:
    prompt = len(model.prompts(QUESTION, CONTEXT)["context"].ids)
    score = model.score(QUESTION, CONTEXT, "x" * (model.window - prompt - 1))
    assert len(score.tokens) == model.window - prompt


def test_a_context_is_cut_to_leave_room_for_the_answer(model: Any) -> None:
    score = model.score(QUESTION, "word " * 80, "green", truncate=True)
    assert score.truncated
    assert len(score.tokens) == len(" green")


def test_a_stream_of_rows_keeps_their_order_and_reads_no_further_than_it_must(model: Any) -> None:
    read = []

    def endless() -> Iterator[Row]:
        for number in range(10**6):
            read.append(number)
            yield Row(QUESTION, ("x" * (1 + number * 7 % 40),), f"n{number}")

    made = Scorer(model, scores=["jsd"]).stream(endless(), batch_size=2)
    answers = [next(made).answer for _ in range(40)]
    assert answers == [f"n{number}" for number in range(40)]
    assert len(read) <= 64


def _ready(length: int, answered: bool) -> Ready:
    prompts = {"context": Prompt((1,) * length, (0, length)), "memory": Prompt((1,), (0, 0))}
    return Ready(Row("q", ("c",)), prompts, (5,) if answered else None)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=30),
    st.integers(1, 5),
    st.integers(1, 120),
)
def test_batches_hold_every_row_once_within_their_limits(
    rows: list[tuple[int, bool]], size: int, tokens: int
) -> None:
    ready = [_ready(*row) for row in rows]
    made = list(batches([one.size for one in ready], size, tokens))
    assert sorted(place for batch in made for place in batch) == list(range(len(rows)))
    for batch in made:
        longest = max(ready[place].size[1] for place in batch)
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * longest <= tokens
        assert len({ready[place].answer for place in batch}) == 1


@pytest.mark.parametrize("when", ["jsd > 0.45", "confidence-gain < -0.5", "jsd > 0.45 at prompt"])
def test_a_gate_flags_an_answer_beside_its_numbers(model, when):
    gate = ck.Gate.parse(when)
    name = gate.detector.replace("-", "_")
    flags = []
    for answer in ("No.", "They said so.", "For no reason at all.", "x", "They said that."):
        score = model.score("Why so?", "They said so. For no reason.", answer, when=when)
        values = [token.scores[name] for token in score.tokens]
        asked = values[:1] if gate.at == "prompt" else values
        beyond = (max(asked) > 0.45) if gate.sign == ">" else (min(asked) < -0.5)
        assert score.flag is beyond
        assert score.to_dict()["flag"] is beyond
        flags.append(beyond)
    assert len(set(flags)) == 2 or gate.at == "prompt"


def test_without_a_gate_nothing_is_flagged_and_a_policy_may_only_flag_a_given_answer(model):
    asked = ("Why so?", "They said so.", "No.")
    assert model.score(*asked).flag is None
    gated = ck.Policy.of("memory", when="jsd > 0.01")
    assert model.score(*asked, policy=gated).flag is True
    assert model.score(*asked, policy=gated).scores == model.score(*asked).scores
    with pytest.raises(InvalidParameterError, match="the policy has no gate"):
        model.score(*asked, policy=ck.Policy.of("memory"))


@pytest.mark.parametrize("when", ["jsd > 0.3", "jsd > 0.3 at prompt"])
@pytest.mark.parametrize("marker", ["x:", MARKER])
def test_a_gate_is_asked_only_behind_the_marker(model: Any, when: str, marker: Any) -> None:
    assert model.tokenizer("x:", add_special_tokens=False)["input_ids"] == list(MARKER)
    passage, flags = "They said so. For no reason.", []
    for answer in ("Thus x:no", "x:so x:reason", "x:", "Thus: no marker", "They. x:a"):
        plain = model.score("Why so?", passage, answer, when=when)
        score = model.score("Why so?", passage, answer, when=when, start_after=marker)
        assert score.tokens == plain.tokens
        behind = len(score.tokens) - len(answer.partition("x:")[2])
        assert score.start == behind
        values = [token.scores["jsd"] for token in score.tokens[behind:]]
        values = values[:1] if "prompt" in when else values
        assert score.flag is any(value > 0.3 for value in values)
        assert plain.start == 0
        flags.append((plain.flag, score.flag))
    assert (True, False) in flags
    assert any(flag for _, flag in flags) or "prompt" in when


def test_an_answer_is_flagged_where_calibration_counts_an_alarm(model: Any) -> None:
    known: dict[str, Any] = {
        "memory_answers": ("x",),
        "context_answers": ("x",),
        "gold_answers": ("x",),
    }
    named: dict[str, Any] = {"split": "train", "relation": "r", "subject": "s"}
    cases = [
        Case(id=row.question + row.contexts[0], question=row.question, contexts=row.contexts,
             state="agreement", context_kind="bare", source="test", **named, **known)
        for row in ROWS
    ]  # fmt: skip
    options: dict[str, Any] = {"max_new_tokens": 20}
    written = [
        [token.id for token in model.score(c.question, c.contexts, **options).tokens] for c in cases
    ]
    # Most answers write it somewhere in their middle.
    marker = max(sorted({*written[0]}), key=lambda i: sum(i in ids[1:-1] for ids in written))
    starts = [ids.index(marker) + 1 if marker in ids else len(ids) for ids in written]
    tied = {"false_alarm": 0.5, "method": "plain", "start_after": (marker,), **options}
    policy = model.calibrate(cases, **tied)
    scores = [model.score(c.question, c.contexts, policy=policy, **options) for c in cases]
    assert [score.start for score in scores] == starts
    assert any(starts)
    flags = [score.flag for score in scores]
    assert sum(map(bool, flags)) / len(flags) == policy.calibration.false_alarm
    assert any(flags)


@pytest.mark.slow
def test_neighbours_move_a_number_by_rounding_alone() -> None:
    """What docs/scoring.md says about it, with some room."""
    bounded = {"jsd", "total_variation", "context_confidence", "memory_confidence"}
    scorer = Scorer(ck.load("atlas"), scores=detectors.names())
    cases = [case for case in atlas.cases() if case.contexts][:12]
    answers = ("London", "a longer one of many more words than that", "Paris, France")
    rows = [Row(c.question, c.contexts, answers[n % 3]) for n, c in enumerate(cases)]
    for row, together in zip(rows, scorer.score(rows), strict=True):
        (alone,) = scorer.score([row])
        for one, other in zip(alone.tokens, together.tokens, strict=True):
            assert one.context_logprob == pytest.approx(other.context_logprob, abs=3e-4)
            assert one.memory_logprob == pytest.approx(other.memory_logprob, abs=3e-4)
            for name in {*one.scores} - {"top_disagreement"}:
                near = 3e-5 if name in bounded else 3e-4
                assert one.scores[name] == pytest.approx(other.scores[name], abs=near)
