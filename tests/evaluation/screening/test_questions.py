"""Questions read from files, and what kind of answer each has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conflictkit.errors import RowError
from conflictkit.evaluation.questions import Question, read_questions, shape


@pytest.mark.parametrize(
    ("answer", "looks"),
    [
        ("8", "number"), ("+48", "number"), ("1,000.5", "number"), ("30%", "number"),
        ("12 km", "number"), ("1985", "date"), ("3 May 1791", "date"), ("July 14, 1789", "date"),
        ("2020-01-31", "date"), ("19th century", "date"), ("Marie Curie", "person"),
        ("Ludwig van Beethoven", "person"), ("J.R.R. Tolkien", "person"), ("Warsaw", "other"),
        ("The Great Gatsby", "other"), ("zloty", "other"), ("the red one", "other"),
    ],
)  # fmt: skip
def test_the_shape_of_an_answer(answer: str, looks: str) -> None:
    assert shape(answer) == looks


def test_the_kind_is_the_type_then_the_relation_then_the_shape() -> None:
    one = Question("1", "When?", ("1985",))
    assert one.kind == "date"
    assert replace(one, relation="birth").kind == "birth"
    assert replace(one, relation="birth", type="year").kind == "year"


def test_questions_of_every_format_are_the_same(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "Who?", "answers": ["Ada", "Ada L."], "relation": "author",
         "popularity": 3, "passage": "Ada wrote it.", "split": "train"},
        {"question": "What?", "answers": ["tea"], "type": "drink", "subject": "Ada"},
    ]  # fmt: skip
    lines = tmp_path / "set.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sheet = tmp_path / "set.csv"
    sheet.write_text(
        "id,question,answers,subject,relation,type,popularity,passage,split\n"
        'a,Who?,"[""Ada"", ""Ada L.""]",,author,,3,Ada wrote it.,train\n'
        ",What?,tea,Ada,,drink,,,\n"
    )
    first, second = read_questions(lines)
    assert first == Question(
        "a", "Who?", ("Ada", "Ada L."), "", "author", "", 3.0, "Ada wrote it.", "train"
    )
    assert second == Question("q2", "What?", ("tea",), subject="Ada", type="drink")
    assert read_questions(sheet) == [first, second]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"answer": "x"}, "question", "is missing"),
        ({"question": "  ", "answer": "x"}, "question", "is empty"),
        ({"question": "Who?"}, "answers", "is missing"),
        ({"question": "Who?", "answer": []}, "answer", "is empty"),
        ({"question": "Who?", "answers": ["x", 3]}, "answers", "must be text"),
        ({"question": "Who?", "answer": "x", "answers": ["x"]}, "answer", "keep one"),
        ({"question": "Who?", "answer": "x", "popularity": "high"}, "popularity", "a number"),
        ({"question": "Who?", "answer": "x", "popularity": True}, "popularity", "a number"),
        ({"question": "Who?", "answer": "x", "split": "dev"}, "split", "must be one of"),
        ({"question": "Who?", "answer": "x", "id": "a"}, "id", "taken already"),
    ],
)
def test_a_malformed_row_names_file_line_and_field(
    tmp_path: Path, row: dict[str, object], field: str, reason: str
) -> None:
    path = tmp_path / "set.jsonl"
    good = {"id": "a", "question": "Who?", "answer": "Ada"}
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(RowError) as error:
        read_questions(path)
    assert f"set.jsonl, line 2, field '{field}': " in str(error.value)
    assert reason in str(error.value)
