"""Our own format: what is read back, what is refused and where, and the hash."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from conflictkit.cli import main
from conflictkit.errors import (
    ConflictKitError,
    EmptyInputError,
    InvalidParameterError,
    OutputError,
    RowError,
)
from conflictkit.evaluation.cases import cases_hash, load_cases, read_cases, write_cases
from conflictkit.evaluation.cases.io import ORDER
from conflictkit.types import Case

CASE = Case(
    id="a",
    split="validation",
    relation="capital",
    subject="Łódź\u2028",
    question='Who said "no"?\n',
    contexts=("She.", " He. "),
    context_kind="bare",
    memory_answers=("she",),
    context_answers=("he", "him"),
    gold_answers=("he",),
    state="correction",
    source="mine",
    choices=("he", "she"),
    prompt="She.\n\nWho?",
    memory_prompt="Who?",
    aligned=False,
    meta={"n": 1, "x": 0.1, "deep": [{"a": None}, True], "": "ü"},
)
PLAIN: dict[str, Any] = {
    "id": "a",
    "question": "Who?",
    "contexts": ["She."],
    "context_answers": ["She"],
    "gold_answers": ["She"],
    "state": "agreement",
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_field_of_a_case_is_kept(tmp_path: Path) -> None:
    assert set(ORDER) == {field.name for field in fields(Case)}
    bare = Case("b", "test", "", "", "Who?", (), "", (), (), (), "unscreened")
    write_cases(tmp_path / "cases.jsonl", [CASE, bare])
    assert read_cases(tmp_path / "cases.jsonl") == [CASE, bare]
    first = json.loads((tmp_path / "cases.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert list(first) == list(ORDER)


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    once, twice = tmp_path / "once.jsonl", tmp_path / "twice.jsonl"
    write_cases(once, load_cases("atlas:validation"))
    write_cases(twice, read_cases(once))
    assert once.read_bytes() == twice.read_bytes()


def test_what_is_not_given_has_a_plain_default(tmp_path: Path) -> None:
    row = {"id": "a", "question": "Who?", "state": "unscreened"}
    (case,) = read_cases(write(tmp_path / "cases.jsonl", row))
    assert case == Case("a", "test", "", "", "Who?", (), "", (), (), (), "unscreened")


def test_the_hash_is_that_of_canonical_json() -> None:
    def line(case: Case) -> bytes:
        data = {field.name: getattr(case, field.name) for field in fields(Case)}
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    other = replace(CASE, id="b", meta={})
    wanted = hashlib.sha256(line(CASE) + line(other)).hexdigest()
    assert cases_hash([CASE, other]) == wanted
    assert cases_hash([other, CASE]) != wanted
    # Changing it orphans every run that was made before.
    assert cases_hash([CASE]) == GOLDEN_HASH
    shuffled = replace(CASE, meta=dict(reversed(list(CASE.meta.items()))))
    assert cases_hash([shuffled]) == GOLDEN_HASH


GOLDEN_HASH = "431c6851e03e8c280db709957d6bf8c8e84e7f61eb79b7a7d2a262b4675a8a7f"


@pytest.mark.parametrize("field", [field.name for field in fields(Case)])
def test_the_hash_sees_every_field(field: str) -> None:
    value = getattr(CASE, field)
    changed: Any = {
        "split": "test", "state": "resistance", "aligned": True, "meta": {"n": 2},
    }.get(field)  # fmt: skip
    if changed is None:
        changed = (*value, "more") if isinstance(value, tuple) else f"{value}x"
    assert cases_hash([replace(CASE, **{field: changed})]) != GOLDEN_HASH


BAD: list[tuple[Any, str | None, str]] = [
    ([1], None, "not a JSON object"),
    ({**PLAIN, "id": None}, "id", "is empty"),
    ({**PLAIN, "id": 7}, "id", "must be text"),
    ({"id": "a", "state": "recall"}, "question", "is missing"),
    ({**PLAIN, "question": " "}, "question", "is empty"),
    ({**PLAIN, "state": "agrement"}, "state", "did you mean 'agreement'"),
    ({**PLAIN, "split": "dev"}, "split", "unknown split 'dev'"),
    ({**PLAIN, "gold_answer": ["She"]}, "gold_answer", "did you mean 'gold_answers'"),
    ({**PLAIN, "contexts": "She."}, "contexts", "must be a list of texts, not text"),
    ({**PLAIN, "contexts": ["She.", ""]}, "contexts", "is empty"),
    ({**PLAIN, "contexts": []}, "contexts", "'agreement' is about a context"),
    ({**PLAIN, "gold_answers": []}, "gold_answers", "needs to know what is true"),
    ({**PLAIN, "context_answers": []}, "context_answers", "the context gives an answer"),
    ({**PLAIN, "context_answers": [1]}, "context_answers", "must be text, not a number"),
    ({**PLAIN, "state": "irrelevant"}, "context_answers", "must be empty"),
    ({**PLAIN, "state": "recall"}, "contexts", "asked closed book"),
    ({**PLAIN, "choices": ["a"]}, "choices", "two or more different"),
    ({**PLAIN, "choices": ["a", "a"]}, "choices", "two or more different"),
    ({**PLAIN, "prompt": "Who?"}, "memory_prompt", "go together"),
    ({**PLAIN, "memory_prompt": "Who?"}, "prompt", "go together"),
    ({**PLAIN, "prompt": 1}, "prompt", "must be text"),
    ({**PLAIN, "aligned": "yes"}, "aligned", "must be true or false"),
    ({**PLAIN, "meta": []}, "meta", "must be an object"),
    ({**PLAIN, "relation": None}, "relation", "is empty"),
    ({**PLAIN, "subject": "\ud800"}, "subject", "not valid text"),
    ({**PLAIN, "meta": {"a": "\ud800"}}, "meta", "plain JSON"),
]


@pytest.mark.parametrize(("row", "field", "reason"), BAD, ids=[str(b[1:]) for b in BAD])
def test_a_bad_line_is_named_with_file_line_and_field(
    tmp_path: Path, row: Any, field: str | None, reason: str
) -> None:
    path = write(tmp_path / "cases.jsonl", {**PLAIN, "id": "first"})
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(row) + "\n")
    with pytest.raises(RowError, match=reason) as caught:
        read_cases(path)
    place = f"{path}, line 3" + (f", field '{field}': " if field else ": ")
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "a"', "line 1: the line is not JSON"),
        (b'{"id": "a", "id": "b"}', "line 1, field 'id': is given twice"),
        (b"\xff", "line 1: the line is not UTF-8 text"),
        (b'{"id": "a", "question": "q", "state": "recall", "meta": NaN}', "NaN is no number"),
        (b'{"id":"a","question":"q","state":"unscreened","meta":{"a":1e999}}', "field 'meta'"),
        (b"[" * 100_000, "too deep"),
    ],
)
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "cases.jsonl").write_bytes(line + b"\n")
    with pytest.raises(RowError, match=reason):
        read_cases(tmp_path / "cases.jsonl")


def test_ids_are_unique(tmp_path: Path) -> None:
    path = write(tmp_path / "cases.jsonl", PLAIN, {**PLAIN, "id": "b"}, PLAIN)
    with pytest.raises(RowError, match="line 3, field 'id': 'a' is the id of line 1 already"):
        read_cases(path)
    with pytest.raises(InvalidParameterError, match="two cases have the id 'a'"):
        write_cases(tmp_path / "out.jsonl", [CASE, CASE])
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "cases.jsonl").write_text(content)
    with pytest.raises(EmptyInputError, match="there are no cases in"):
        read_cases(tmp_path / "cases.jsonl")
    with pytest.raises(InvalidParameterError, match="no cases to write"):
        write_cases(tmp_path / "out.jsonl", [])


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="there is no file"):
        read_cases(tmp_path / "none.jsonl")
    with pytest.raises(InvalidParameterError, match="not a regular file"):
        read_cases(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        write_cases(tmp_path / "no" / "such" / "folder.jsonl", [CASE])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"contexts": ["She."]}, "contexts"),
        ({"meta": {"a": (1, 2)}}, "meta"),
        ({"meta": {1: "a"}}, "meta"),
        ({"meta": {"a": float("nan")}}, "meta"),
        ({"state": "conflict"}, "state"),
        ({"question": ""}, "question"),
    ],
)
def test_what_no_file_could_give_back_is_not_written(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    case = replace(CASE, **changes)
    with pytest.raises(InvalidParameterError, match=f"case 'a', field '{field}'"):
        write_cases(tmp_path / "cases.jsonl", [case])
    with pytest.raises(InvalidParameterError, match=f"field '{field}'"):
        cases_hash([case])
    assert not (tmp_path / "cases.jsonl").exists()


PIECES = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"\\ud800", b"\x00", b"\xff", b"\n",
    b"null", b"true", b"1e999", b"NaN", b"-", b'"id"', b'"a": 1,', b"[[[[", b"\xed\xa0\x80",
)  # fmt: skip


def mutated(rng: random.Random, line: bytes) -> bytes:
    """The line with one to four places cut, doubled, exchanged or overwritten."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(line) + 1)
        stop = min(len(line), start + rng.choice((0, 1, 1, 2, 8, 40)))
        middle = rng.choice(
            (b"", line[start:stop] * 2, rng.choice(PIECES), bytes([rng.randrange(256)]))
        )
        line = line[:start] + middle + line[stop:]
    return line


def test_a_mutated_line_is_read_whole_or_refused_by_name(tmp_path: Path) -> None:
    rng = random.Random(4)
    path, again = tmp_path / "cases.jsonl", tmp_path / "again.jsonl"
    write_cases(path, [CASE])
    line = path.read_bytes()
    read = refused = 0
    for _ in range(1000):
        path.write_bytes(mutated(rng, line))
        try:
            cases = read_cases(path)
        except ConflictKitError as error:
            refused += str(path) in str(error)
            continue
        read += 1
        assert all(isinstance(case, Case) for case in cases)
        write_cases(again, cases)
        assert read_cases(again) == cases
    assert read + refused == 1000
    assert read > 20


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever command reads cases: its errors are of the tree that becomes exit code 2."""
    from conflictkit.cli import _app

    path = write(tmp_path / "cases.jsonl", {**PLAIN, "state": "agrement"})

    def failing(*args: Any, **kwargs: Any) -> int:
        read_cases(path)
        return 0

    monkeypatch.setattr(
        _app.typer.main, "get_command", lambda _: type("C", (), {"main": failing})()
    )
    assert main(["evaluate"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{path}, line 1, field 'state'" in said
