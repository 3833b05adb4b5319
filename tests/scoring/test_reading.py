"""Rows of files: what is read, what is malformed and where, and where reading can go on."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from conflictkit.errors import InvalidParameterError
from conflictkit.scoring import Fields, Row, reading
from conflictkit.scoring.reading import Place, open_source
from conflictkit.scoring.rows import BadRow

GOOD = {"question": "Who?", "context": "She."}
Write = Callable[..., Path]


def read(path: Path, fields: Fields | None = None) -> list[Row | BadRow]:
    return [row for row, _ in open_source(path, fields or Fields()).rows(Place())]


def test_every_kind_of_file_says_the_same(jsonl: Write, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "Who?", "context": 'She\nsaid "so", really.', "answer": "She"},
        {"id": "b", "question": "Où?", "context": "Là.", "answer": None},
    ]
    table, sheet = tmp_path / "rows.parquet", tmp_path / "rows.csv"
    parquet.write_table(pa.Table.from_pylist(rows), table)
    with sheet.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["context", "id", "answer", "question", "more"])
        writer.writeheader()
        writer.writerows(rows)
    wanted = [
        ("a", "Who?", ('She\nsaid "so", really.',), "She"),
        ("b", "Où?", ("Là.",), None),
    ]
    for path, lines in ((jsonl(rows), [1, 2]), (sheet, [2, 4]), (table, [1, 2])):
        found = read(path)
        assert [(r.id, r.question, r.contexts, r.answer) for r in found if isinstance(r, Row)] == (
            wanted
        )
        assert [row.line for row in found] == lines


def test_passages_may_be_a_list(jsonl: Write, tmp_path: Path) -> None:
    rows = [{"question": "Who?", "context": ["She.", "He."]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for path in (jsonl(rows), tmp_path / "rows.parquet"):
        assert read(path) == [Row("Who?", ("She.", "He."), line=1)]


def test_columns_have_the_names_that_are_given(jsonl: Write) -> None:
    path = jsonl([{"q": "Who?", "text": "She.", "gold": "She", "key": 7, "answer": "no"}])
    fields = Fields(question="q", context="text", answer="gold", id="key")
    assert read(path, fields) == [Row("Who?", ("She.",), "She", 7, 1)]
    with pytest.raises(InvalidParameterError, match="two fields .* column 'question'"):
        Fields(context="question")
    with pytest.raises(InvalidParameterError, match="not valid text"):
        Fields(context="\udcff")
    with pytest.raises(InvalidParameterError, match="name of a column"):
        Fields(id=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b'{"question": "Who?"', None, "not JSON"),
        (b"[1]", None, "not a JSON object"),
        (b"\xff\xfe", None, "byte 0xff at position 0"),
        (b"[" * 100_000, None, "too deep"),
        (b"9" * 5000, None, "JSON that can be read"),
        (b'{"question": NaN, "context": "c"}', None, "NaN is no number"),
        (b'{"question": "a", "question": "b", "context": "c"}', "question", "given twice"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "\\ud800", "given twice"),
        (b'{"context": "c"}', "question", "is missing"),
        (b'{"question": "q"}', "context", "is missing"),
        (b'{"question": 7, "context": "c"}', "question", "must be text, not a number"),
        (b'{"question": true, "context": "c"}', "question", "must be text, not true or false"),
        (b'{"question": " \\n", "context": "c"}', "question", "is empty"),
        (b'{"question": null, "context": "c"}', "question", "is empty"),
        (b'{"question": "a\\u0000b", "context": "c"}', "question", "NUL"),
        (b'{"question": "q", "context": "\\ud800"}', "context", "not valid text"),
        (b'{"question": "q", "context": ""}', "context", "nothing to compare"),
        (b'{"question": "q", "context": null}', "context", "nothing to compare"),
        (b'{"question": "q", "context": []}', "context", "nothing to compare"),
        (b'{"question": "q", "context": {}}', "context", "not an object"),
        (b'{"question": "q", "context": ["a", 1]}', "context", "must be text, not a number"),
        (b'{"question": "q", "context": ["a", " "]}', "context", "is empty"),
        (b'{"question": "q", "context": "c", "answer": ""}', "answer", "is empty"),
        (b'{"question": "q", "context": "c", "answer": ["a"]}', "answer", "not a list"),
        (b'{"question": "q", "context": "c", "id": 1.5}', "id", "whole number"),
        (b'{"question": "q", "context": "c", "id": true}', "id", "whole number"),
    ],
)
def test_a_malformed_line_is_named_and_spoils_no_other(
    jsonl: Write, line: bytes, field: str | None, reason: str
) -> None:
    first, bad, last = read(jsonl([GOOD, line, GOOD]))
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field) == (2, field)
    assert reason in bad.reason
    assert bad.raw == line.decode("utf-8", errors="backslashreplace")[: 64 * 1024]
    where = "rows.jsonl, line 2" + (f", field '{field}'" if field else "")
    assert str(bad.error("rows.jsonl")).startswith(where)


@pytest.mark.parametrize("what", ["answer", "id"])
def test_a_column_that_was_asked_for_must_be_there(jsonl: Write, what: str) -> None:
    (bad,) = read(jsonl([GOOD]), Fields(**{what: "given"}))
    assert isinstance(bad, BadRow)
    assert (bad.field, bad.reason) == ("given", "is missing")


def test_byte_order_mark_line_ends_and_empty_lines(jsonl: Write) -> None:
    line = json.dumps(GOOD).encode()
    path = jsonl([b"\xef\xbb\xbf" + line + b"\r", b"", b"  ", line])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [row.line for row in read(path) if isinstance(row, Row)] == [1, 4]


def test_a_line_without_an_end_is_passed_over(
    jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LONGEST", 200)
    monkeypatch.setattr(reading, "_BLOCK", 64)
    path = jsonl([GOOD, b"x" * 1000, GOOD])
    (_, _), (bad, middle), (last, end) = open_source(path, Fields()).rows(Place())
    assert isinstance(bad, BadRow)
    assert "longer than 200 bytes" in bad.reason
    assert isinstance(last, Row)
    assert end.offset == path.stat().st_size
    (only,) = open_source(path, Fields()).rows(middle)
    assert only == (last, end)


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b"Who?", None, "1 cells, the header 3"),
        (b"Who?,She.,,", None, "4 cells"),
        (b',"She.",', "question", "is empty"),
        (b"Who?, ,", "context", "nothing to compare"),
        (b"Who?,\xff,", "context", "not valid text"),
        (b"Who?,a\0b,", "context", "NUL"),
        (b'Who?,"She".,', None, "not CSV"),
    ],
)
def test_a_malformed_line_of_csv(jsonl: Write, line: bytes, field: str | None, reason: str) -> None:
    path = jsonl([b"question,context,answer", b"Who?,She.,", line, b"Who?,He.,He"], "rows.csv")
    first, bad, last = read(path)
    assert first == Row("Who?", ("She.",), line=2)
    assert last == Row("Who?", ("He.",), "He", line=4)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field) == (3, field)
    assert reason in bad.reason
    assert bad.raw == line.decode("utf-8", errors="backslashreplace")


def test_an_open_quote_is_never_set_aside(jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl([b"question,context", b"Who?,She.", b'Who?,"He.', b"Who?,She."], "rows.csv")
    with pytest.raises(InvalidParameterError, match="line 3: .* quote left open"):
        read(path)
    monkeypatch.setattr(reading, "LONGEST", 30)
    path = jsonl([b"question,context", b'Who?,"He.', *[b"Who?,She."] * 99], "rows.csv")
    with pytest.raises(InvalidParameterError, match="line 2: .* quote left open"):
        read(path)


OVERLONG = [
    (b"Who?," + b"x" * 100, True),
    (b'"Who?","' + b"x" * 100 + b'"', True),
    (b'Who?,"a ""b"", c' + b"x" * 100 + b'"', True),
    (b'5" pipe,' + b"x" * 100, True),  # a quote inside a bare cell opens nothing
    (b'Who?,"a"b' + b"x" * 100 + b'"', True),  # no CSV, but its end is sure
    (b'Who?,"' + b"x" * 100, False),
    (b'5" pipe,"' + b"x" * 100, False),
    (b'Who?,"a""' + b"x" * 100, False),
]


@pytest.mark.parametrize("block", [1, 2, 7, 64])
@pytest.mark.parametrize(("line", "ends"), OVERLONG)
def test_a_line_of_csv_that_is_too_long_is_set_aside_if_it_ends(
    jsonl: Write, monkeypatch: pytest.MonkeyPatch, line: bytes, ends: bool, block: int
) -> None:
    monkeypatch.setattr(reading, "LONGEST", 40)
    monkeypatch.setattr(reading, "_BLOCK", block)
    path = jsonl([b"question,context", b"Who?,She.", line, b"Who?,He."], "rows.csv")
    rows = open_source(path, Fields()).rows(Place())
    assert next(rows)[0] == Row("Who?", ("She.",), line=2)
    if not ends:
        with pytest.raises(InvalidParameterError, match="line 3: .* quote left open"):
            next(rows)
        return
    bad, place = next(rows)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field) == (3, None)
    assert "longer than 40 bytes" in bad.reason
    assert bad.raw == line[:41].decode()
    after = (Row("Who?", ("He.",), line=4), Place(4, path.stat().st_size))
    assert [*rows] == [*open_source(path, Fields()).rows(place)] == [after]


def test_a_header_of_csv_may_be_too_long(jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST", 20)
    with pytest.raises(InvalidParameterError, match="no header .*longer than 20 bytes"):
        open_source(jsonl([b"question,context," + b"x" * 99, b"a,b"], "rows.csv"), Fields())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "no column 'question' .*has none"),
        (b"question,text", "no column 'context' .*--context-field"),
        (b"question,context,context", "two columns 'context'"),
        (b'"question', "no header"),
    ],
)
def test_a_header_of_csv_must_name_the_columns(jsonl: Write, header: bytes, said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        open_source(jsonl([header, b"a,b"], "rows.csv"), Fields())


def test_long_passages_are_no_fault_of_csv(jsonl: Write) -> None:
    (row,) = read(jsonl([b"question,context", b"Who?," + b"x" * 500_000], "rows.csv"))
    assert isinstance(row, Row)
    assert len(row.contexts[0]) == 500_000


def test_files_that_cannot_be_read_at_all(jsonl: Write, tmp_path: Path) -> None:
    def refused(path: Any) -> str:
        with pytest.raises(InvalidParameterError) as caught:
            open_source(path, Fields())
        return str(caught.value)

    assert "there is no file" in refused(tmp_path / "none.jsonl")
    assert "not a regular file" in refused(tmp_path)
    assert "must end in .jsonl" in refused(jsonl([GOOD], "rows.txt"))
    assert "there is no file" in refused("a\0b.jsonl")
    utf16 = tmp_path / "wide.jsonl"
    utf16.write_text(json.dumps(GOOD), encoding="utf-16")
    assert "UTF-16" in refused(utf16)
    assert "as Parquet" in refused(jsonl([GOOD], "rows.parquet"))
    parquet.write_table(pa.table({"question": ["q"]}), tmp_path / "rows.parquet")
    assert "no column 'context'" in refused(tmp_path / "rows.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_reading_goes_on_from_any_row(jsonl: Write, tmp_path: Path, kind: str) -> None:
    rows = [{"question": f"Number {n}?", "context": "x\ny" * (n % 5 + 1)} for n in range(11)]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path = jsonl([*rows[:5], b"", b"broken", *rows[5:]])
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["question", "context"])
            writer.writeheader()
            writer.writerows(rows)
            file.write("broken\r\n")
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    source = open_source(path, Fields())
    every = list(source.rows(Place()))
    assert len(every) == 11 + (kind != "parquet")
    assert every[-1][1].offset == source.total
    for number, (_, place) in enumerate(every):
        assert list(source.rows(place)) == every[number + 1 :]


def test_the_hash_of_what_was_read_does_not_depend_on_where_it_was_cut(jsonl: Write) -> None:
    source = open_source(jsonl([GOOD] * 5), Fields())
    whole, parts = source.digest(), source.digest()
    source.absorb(whole, 0, source.total)
    for start in range(0, source.total, 7):
        source.absorb(parts, start, min(start + 7, source.total))
    assert whole.hexdigest() == parts.hexdigest() != source.digest().hexdigest()


def test_lines_are_counted_right_behind_a_last_line_without_an_end(jsonl: Write) -> None:
    path = jsonl([GOOD, GOOD])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    *_, (_, place) = open_source(path, Fields()).rows(Place())
    path.write_bytes(path.read_bytes() + b"\n" + json.dumps(GOOD).encode() + b"\n")
    ((row, _),) = open_source(path, Fields()).rows(place)
    assert isinstance(row, Row)
    assert row.line == 3


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_long_file_is_never_held(tmp_path: Path, kind: str) -> None:
    path, count = tmp_path / f"rows.{kind}", 3000
    text = "x" * 2000
    if kind == "parquet":
        table = pa.table({"question": ["Who?"] * count, "context": [text] * count})
        parquet.write_table(table, path, row_group_size=300, compression="none")
    else:
        line = f"Who?,{text}\n" if kind == "csv" else json.dumps({**GOOD, "context": text}) + "\n"
        path.write_text(("question,context\n" if kind == "csv" else "") + line * count)
        assert path.stat().st_size > 6_000_000
    source = open_source(path, Fields())
    before, held = pa.total_allocated_bytes(), []
    tracemalloc.start()
    try:
        found = 0
        for row, _ in source.rows(Place()):
            found += isinstance(row, Row)
            held.append(pa.total_allocated_bytes() - before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == count
    assert peak < 1_500_000
    assert max(held) < 3_000_000  # Arrow keeps its own account
