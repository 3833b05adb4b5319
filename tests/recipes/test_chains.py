"""The recipes on pages: conflictkit's answer comes out, whole and unchanged."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import conflictkit as ck
from conflictkit.answers import Answer

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of Poland?"
OTHER = "What is the capital of Sweden?"
# Both recipes keep these, in this order, for the question about Poland.
FOUND = ["The capital of Poland is London.", "Poland is large."]

Run = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def wanted() -> Callable[[str, list[str]], Answer]:
    model = ck.load("atlas")
    return lambda question, passages: model.ask(question, passages, "ck-plug")


def printed(answer: Answer) -> list[tuple[str, float]]:
    assert answer.trace is not None
    return [(token.text, token.scores["jsd"]) for token in answer.trace.tokens]


def test_a_chain_in_langchain(
    recipe: Run,
    wanted: Callable[[str, list[str]], Answer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("langchain_core", reason="needs the extra recipes")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    names = recipe("langchain.md")
    first, second = capsys.readouterr().out.splitlines()

    expected = wanted(QUESTION, FOUND)
    assert first == f"{expected.text} (without passages: {names['answer'].memory_answer})"
    assert ast.literal_eval(second) == printed(expected)
    assert max(score for _, score in printed(expected)) > 0

    chain = names["chain"]
    told = chain.invoke(QUESTION)
    assert told["question"] == QUESTION
    assert [document.page_content for document in told["context"]] == FOUND
    assert told["answer"].stats.memory_tokens > 0
    assert asyncio.run(chain.ainvoke(QUESTION))["answer"].trace == told["answer"].trace
    together = chain.batch([QUESTION, OTHER])
    assert [one["answer"].trace for one in together] == [
        told["answer"].trace,
        chain.invoke(OTHER)["answer"].trace,
    ]


def test_a_query_engine_in_llamaindex(
    recipe: Run,
    wanted: Callable[[str, list[str]], Answer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("llama_index.core", reason="needs the extra recipes")
    from llama_index.core import QueryBundle

    names = recipe("llamaindex.md")
    first, second = capsys.readouterr().out.splitlines()

    expected = wanted(QUESTION, FOUND)
    assert first == f"{expected.text} {FOUND}"
    assert ast.literal_eval(second) == printed(expected)

    engine = names["Asking"]()
    for response in (engine.query(QueryBundle(QUESTION)), asyncio.run(engine.aquery(QUESTION))):
        assert response.response == expected.text
        assert [node.get_content() for node in response.source_nodes] == FOUND
        assert response.metadata["trace"] == expected.trace


def test_nothing_found_is_answered_from_memory(recipe: Run) -> None:
    pytest.importorskip("langchain_core", reason="needs the extra recipes")
    names = recipe("langchain.md")
    given = {"question": QUESTION, "context": []}
    assert names["read"](given).method == "memory"


def test_a_dataset_through_the_pipeline(
    recipe: Run, wanted: Callable[[str, list[str]], Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    names = recipe("pipeline.md")
    lines = capsys.readouterr().out.splitlines()

    assert len(lines) == len(names["answers"]) == 2
    asked = [(QUESTION, FOUND), (OTHER, ["It is cold."])]
    for line, found, (question, passages) in zip(lines, names["answers"], asked, strict=True):
        answer = wanted(question, passages)
        conflict = max(score for _, score in printed(answer))
        assert found["generated_text"] == answer.text
        assert found["conflict"] == pytest.approx(conflict, abs=1e-6)
        assert line == (
            f"{question} {answer.text} {found['memory_answer']} {round(found['conflict'], 3)}"
        )
