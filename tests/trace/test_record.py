"""From ids to texts, and the forms of a trace that are data."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conflictkit.errors import ConflictKitError
from conflictkit.trace import Trace
from conflictkit.types import Generation, Stats, TokenRecord
from tests.tiny import byte_tokenizer
from tests.trace.samples import END, LONDON, hostile, poland, token

BYTES = byte_tokenizer()
SPACED = byte_tokenizer(metaspace=True)


def record(number: int, tops: dict[str, tuple[tuple[int, float], ...]] | None = None):
    return TokenRecord(number, {"jsd": 0.1}, 1.0, 0.0, tops or {})


def build(tokenizer: Any, ids: list[int], *, ended: bool = False, tops: Any = None) -> Trace:
    records = [record(number, tops) for number in ids]
    if ended:
        records.append(record(tokenizer.eos_token_id))
    made = Generation(tuple(ids), tuple(records), "eos" if ended else "length", 0.0, Stats())
    return Trace.from_generation(
        made, tokenizer, question="q", method="plain", answer=tokenizer.decode(ids)
    )


def joined(trace: Trace) -> str:
    return "".join(one.text for one in trace.tokens)


@pytest.mark.parametrize("text", ["Łódź", "日本 🙂!", "a\u0301e", "👩‍👩‍👧 ok", "plain words"])
def test_texts_join_to_the_answer_without_broken_characters(text: str) -> None:
    ids = BYTES.encode(text, add_special_tokens=False)
    trace = build(BYTES, ids, ended=True)
    assert joined(trace) == trace.answer == text
    assert not any("\ufffd" in one.text + one.label for one in trace.tokens)


def test_the_last_byte_of_a_character_carries_it() -> None:
    trace = build(BYTES, BYTES.encode("é!", add_special_tokens=False))
    assert [(one.text, one.kind) for one in trace.tokens] == [
        ("", "piece"),
        ("é", "text"),
        ("!", "text"),
    ]


@given(st.lists(st.integers(5, 260), max_size=12))
def test_any_bytes_join_to_the_decoded_answer(ids: list[int]) -> None:
    assert joined(build(BYTES, ids, ended=True)) == BYTES.decode(ids)


@given(st.text("ab \n", max_size=8))
def test_a_tokenizer_that_strips_spaces_loses_none(text: str) -> None:
    ids = SPACED.encode(text, add_special_tokens=False)
    assert joined(build(SPACED, ids)) == SPACED.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_that_takes_characters_back_is_followed() -> None:
    class Tidy:
        """Cleans up ` .` the way older checkpoints ask their tokenizers to."""

        eos_token_id = None

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join("a ."[number] for number in ids).replace(" .", ".")

    trace = build(Tidy(), [0, 1, 2, 0])
    assert [one.text for one in trace.tokens] == ["a", "", ".", "a"]


def test_special_tokens_and_the_end_are_named_but_add_no_text() -> None:
    user = BYTES.convert_tokens_to_ids("<|user|>")
    trace = build(BYTES, [user, *BYTES.encode("a", add_special_tokens=False)], ended=True)
    assert [one.kind for one in trace.tokens] == ["special", "text", "end"]
    assert [one.label for one in trace.tokens] == ["<|user|>", "a", "<end>"]
    assert joined(trace) == "a"


def test_candidates_are_named_even_if_they_are_no_whole_character() -> None:
    first, second = BYTES.encode("é", add_special_tokens=False)
    end = BYTES.eos_token_id
    tops = {"context": ((first, 0.5), (end, 0.25)), "memory": ((second, 0.5),)}
    (only,) = build(BYTES, BYTES.encode("a", add_special_tokens=False), tops=tops).tokens
    assert [one.text for one in only.context_top] == ["<0xC3>", "<end>"]
    assert only.memory_top[0].text == "<0xA9>"
    assert only.memory_top[0].probability == 0.5


def test_a_candidate_beyond_the_vocabulary_is_named_by_its_number() -> None:
    tops = {"context": ((5000, 0.5),)}
    (only,) = build(BYTES, [40], tops=tops).tokens
    assert only.context_top[0].text == "<5000>"


def test_a_lone_token_keeps_the_space_that_sentencepiece_hides() -> None:
    space = SPACED.convert_tokens_to_ids("▁")
    (only,) = build(SPACED, [6], tops={"memory": ((space, 0.5),)}).tokens
    assert only.memory_top[0].text.startswith(" ")


def test_json_is_strict() -> None:
    def refuse(word: str) -> None:
        raise ValueError(word)

    data = json.loads(hostile().to_json(), parse_constant=refuse)
    assert data["params"]["nan"] is None
    assert data["tokens"][0]["context_weight"] is None
    assert data["tokens"][3]["scores"]["jsd"] == 0.4
    hostile().to_json().encode("utf-8")


def test_json_says_what_the_trace_says() -> None:
    data = json.loads(poland().to_json())
    assert data == poland().to_dict()
    assert data["context"] == ["The capital of Poland is London."]
    assert data["plain_answer"] == "Lodz."
    first = data["tokens"][0]
    assert first["text"] == " London"
    assert first["scores"] == {"confidence_gain": -0.25, "jsd": 0.6123}
    assert first["memory_top"][0] == {"text": " Warsaw", "id": 6, "probability": 0.93}


def test_jsd_colours_the_tokens_and_nothing_else_does() -> None:
    assert poland().score_names == ("jsd", "confidence_gain")
    assert poland().conflict[0] == 0.6123
    bare = dataclasses.replace(token("a", 1, None), scores={"confidence_gain": 0.5})
    other = poland(tokens=(bare,))
    assert math.isnan(other.conflict[0])
    assert not other.scored
    assert "No conflict was scored." in str(other)
    assert "conflict (" not in other.to_html().replace("ck-", "").split("<body")[1]
    assert "confidence" in other.to_html()


def test_a_dataframe_has_one_row_per_token() -> None:
    frame = poland().to_dataframe()
    assert list(frame["text"]) == [" London", ".", ""]
    assert list(frame["memory_top"])[:2] == [" Warsaw", "."]
    assert frame["jsd"].tolist() == [0.6123, 0.0112, 0.0]
    assert frame["memory_p"].isna().tolist() == [False, False, True]


def test_an_empty_answer_is_an_empty_dataframe_with_its_columns() -> None:
    assert "context_top" in poland(tokens=()).to_dataframe().columns


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConflictKitError, match=r'pip install "conflictkit\[viz\]"'):
        poland().to_dataframe()


def test_a_label_is_never_empty() -> None:
    assert LONDON.label == "·London"
    assert END.label == "<end>"
    assert token("", 1, 0.0, kind="special").label == "<special>"
    assert all(one.label.strip() for one in hostile().tokens)
