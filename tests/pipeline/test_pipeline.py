"""`transformers.pipeline("conflict-text-generation")` answers as the toolkit does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import conflictkit as ck
import conflictkit.pipeline
from conflictkit.errors import ConflictKitError, InvalidParameterError, UnsupportedError
from conflictkit.prompts import PromptTemplate
from tests import tiny

# Its overloads know only the tasks of transformers itself.
pipeline: Any = transformers.pipeline

ASKED = {"question": "Who?", "context": "It was Ann."}
OTHER = {"question": "Where is it?", "documents": ["In Rome.", "Near Pisa."]}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.byte_tokenizer(chat=True)


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny.llama(vocab=261)


@pytest.fixture(scope="module")
def pipe(network: Any, tokenizer: Any) -> Any:
    return pipeline(
        conflictkit.pipeline.TASK,
        model=network,
        tokenizer=tokenizer,
        device="cpu",
        max_new_tokens=4,
    )


@pytest.fixture(scope="module")
def model(network: Any, tokenizer: Any) -> Any:
    return ck.load(network, tokenizer=tokenizer)


def test_one_question(pipe: Any, model: Any) -> None:
    answer = model.ask("Who?", "It was Ann.", "cad", alpha=2.0, max_new_tokens=4)
    for said in (pipe(**ASKED, method="cad", alpha=2.0), pipe(ASKED, method="cad", alpha=2.0)):
        (one,) = said
        assert one["generated_text"] == answer.text
        assert (one["method"], one["finish_reason"]) == ("cad", answer.finish_reason)
        assert one["stats"]["forwards"] == answer.stats.forwards > 0
        assert "trace" not in one
    plain = model.ask("Who?", "It was Ann.", "plain", max_new_tokens=4)
    assert plain.text != answer.text


@pytest.mark.parametrize("size", [1, 2, 3])
def test_many_in_batches_write_what_each_writes_alone(pipe: Any, size: int) -> None:
    rows = [ASKED, OTHER, {"question": "When?"}]
    alone = [pipe(row, method="grd")[0]["generated_text"] for row in rows]
    many = pipe(rows, batch_size=size, method="grd")
    assert [row[0]["generated_text"] for row in many] == alone
    assert many[2][0]["method"] == "memory"
    lazy = pipe((row for row in rows), batch_size=size, method="grd")
    assert [row[0]["generated_text"] for row in lazy] == alone


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> dict[str, Any]:
        return [ASKED, OTHER][place]


def test_a_dataset_is_read_as_it_goes(pipe: Any) -> None:
    said = [row[0]["generated_text"] for row in pipe(Rows())]
    assert said == [pipe(row)[0]["generated_text"] for row in (ASKED, OTHER)]


def test_documents_are_a_name_for_the_context(pipe: Any, model: Any) -> None:
    (one,) = pipe(question="Where is it?", documents=OTHER["documents"])
    assert (
        one["generated_text"]
        == model.ask("Where is it?", OTHER["documents"], max_new_tokens=4).text
    )


@pytest.mark.parametrize("inside", [True, False])
def test_messages(pipe: Any, model: Any, inside: bool) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    passage = {"role": "document", "content": "It was Ann."}
    given: dict[str, Any] = {"messages": [turns[0], passage, turns[1]]} if inside else {
        "messages": turns, "documents": ["It was Ann."]
    }  # fmt: skip
    (one,) = pipe(**given)
    wording = {"chat": True, "template": PromptTemplate(system="Be brief.")}
    answer = model.ask("Who?", "It was Ann.", max_new_tokens=4, **wording)
    said = {"role": "assistant", "content": answer.text}
    assert one["generated_text"] == [*given["messages"], said]
    assert answer.text != model.ask("Who?", "It was Ann.", max_new_tokens=4).text


def test_several_answers_beams_and_a_trace(pipe: Any, model: Any) -> None:
    mode: dict[str, Any] = {"num_beams": 3, "n": 2, "max_new_tokens": 3}
    best, second = pipe(**ASKED, trace=True, compare=True, **mode)
    answer = model.ask("Who?", "It was Ann.", **mode)
    assert best["generated_text"] == answer.text
    assert second["generated_text"] == answer.alternatives[0].text
    assert len(best["trace"].tokens) >= 1
    assert best["memory_answer"] == model.ask("Who?", max_new_tokens=3, num_beams=3, n=2).text


def test_options_given_when_it_is_made_hold_until_others_are_given(
    network: Any, tokenizer: Any, pipe: Any
) -> None:
    made = pipeline(
        conflictkit.pipeline.TASK,
        model=network,
        tokenizer=tokenizer,
        device="cpu",
        max_new_tokens=4,
        method="memory",
    )
    assert made(**ASKED)[0]["method"] == "memory"
    assert made(**ASKED, method="cad")[0]["method"] == "cad"
    assert made(**ASKED) == pipe(**ASKED, method="memory")


def test_what_is_none_was_not_given(pipe: Any, model: Any) -> None:
    (one,) = pipe(question="Who?", context=None, documents=None, messages=None)
    assert one["generated_text"] == model.ask("Who?", max_new_tokens=4).text
    assert pipe(inputs=ASKED, context=None) == pipe(ASKED)


def test_a_saved_pipeline_is_loaded_without_running_code(
    pipe: Any, network: Any, tmp_path: Any
) -> None:
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
    again = pipeline(conflictkit.pipeline.TASK, model=str(tmp_path), device="cpu", max_new_tokens=4)
    assert again(ASKED) == pipe(ASKED)
    assert not hasattr(network.config, "custom_pipelines")


def test_without_a_model_it_is_made_around_atlas() -> None:
    made = pipeline(conflictkit.pipeline.TASK, device="cpu")
    answer = ck.load("atlas").ask("Who?", "It was Ann.", max_new_tokens=3)
    assert made(ASKED, max_new_tokens=3)[0]["generated_text"] == answer.text


USER = {"role": "user", "content": "Who?"}


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({}, InvalidParameterError, "nothing was asked"),
        ({"inputs": "Who?"}, InvalidParameterError, "dictionary"),
        ({"inputs": 3}, InvalidParameterError, "dictionary"),
        ({"inputs": ["Who?"]}, InvalidParameterError, "dictionary"),
        ({"inputs": ASKED, "question": "What?"}, InvalidParameterError, "beside an input"),
        ({"context": "It was Ann."}, InvalidParameterError, "question or messages"),
        ({"inputs": {**ASKED, "messages": [USER]}}, InvalidParameterError, "question or messages"),
        ({"inputs": {**ASKED, "documents": ["x"]}}, InvalidParameterError, "only one"),
        ({"inputs": {"qestion": "Who?"}}, ConflictKitError, "question"),
        ({**ASKED, "mehtod": "cad"}, ConflictKitError, "method"),
        ({**ASKED, "method": "cda"}, ConflictKitError, "cad"),
        ({**ASKED, "method": ["cad"]}, InvalidParameterError, "one method for all"),
        ({"messages": [USER]}, InvalidParameterError, "document"),
        ({"messages": "Who?", "context": "x"}, InvalidParameterError, "list"),
        ({"messages": [USER, USER], "context": "x"}, UnsupportedError, "one user message"),
        (
            {"messages": [USER, {"role": "assistant", "content": "Ann."}, USER], "context": "x"},
            UnsupportedError,
            "assistant",
        ),
        (
            {"messages": [{"role": "document", "content": "y"}, USER], "context": "x"},
            InvalidParameterError,
            "give them once",
        ),
        ({"messages": [USER], "context": "x", "chat": False}, InvalidParameterError, "template"),
        (
            {"inputs": [ASKED, {"messages": [USER], "context": "x"}], "batch_size": 2},
            UnsupportedError,
            "batch_size",
        ),
    ],
)
def test_what_is_refused(
    pipe: Any, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        pipe(**given)
