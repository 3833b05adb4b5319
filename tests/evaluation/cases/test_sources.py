"""What a spec means, where files and data sets on the hub are found, and what is said if not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets.exceptions import DatasetNotFoundError

from conflictkit import atlas
from conflictkit.errors import (
    ConflictKitError,
    EmptyInputError,
    HubError,
    InvalidParameterError,
    RowError,
    UnknownNameError,
)
from conflictkit.evaluation.cases import SOURCES, load_cases, write_cases
from tests.evaluation.cases import rows
from tests.evaluation.cases.rows import lay_down


def test_atlas_comes_with_its_guards() -> None:
    assert load_cases("atlas") == [*atlas.cases("test"), *atlas.guards("test")]
    assert load_cases("atlas:validation") == [
        *atlas.cases("validation"),
        *atlas.guards("validation"),
    ]
    assert {case.source for case in load_cases("atlas")} == {"atlas"}
    with pytest.raises(InvalidParameterError, match="unknown split 'dev'"):
        load_cases("atlas:dev")


def test_a_bare_path_is_our_own_format(tmp_path: Path) -> None:
    cases = atlas.guards("validation", "recall")
    write_cases(tmp_path / "cases.jsonl", cases)
    assert load_cases(str(tmp_path / "cases.jsonl")) == cases


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("paraconfict:x.json", UnknownNameError, "did you mean 'paraconflict'"),
        ("atlass", UnknownNameError, "did you mean 'atlas'"),
        ("", UnknownNameError, "unknown source of cases"),
        ("squad", InvalidParameterError, "type squad:PATH"),
        ("squad:", InvalidParameterError, "type squad:PATH"),
        ("cases.jsonl", InvalidParameterError, "there is no file 'cases.jsonl'"),
        ("dynamicqa:none.csv", InvalidParameterError, "there is no file 'none.csv'"),
        ("dynamicqa:\0", InvalidParameterError, "there is no file"),
        ("x" * 5000, UnknownNameError, "unknown source"),
    ],
)
def test_specs_that_mean_nothing(spec: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        load_cases(spec)
    assert isinstance(caught.value, ConflictKitError)


def test_every_source_is_named_in_the_error() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_cases("nothing:x")
    assert all(name in str(caught.value) for name in SOURCES)


def test_a_file_whose_source_is_not_named(tmp_path: Path) -> None:
    path = lay_down(tmp_path, {"data.json": "[]"})
    with pytest.raises(InvalidParameterError, match=r"NAME:.*data.json, one of paraconflict"):
        load_cases(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "there are no rows"),
        (" [ ] ", "there are no rows"),
        ("", "there are no rows"),
        ("[1]", r"line 1 \(item 1\): must be an object, not a number"),
        ('[{"a": 1}\n{"a": 1}]', r"line 1 \(item 1\): the file is not JSON \(no ',' or ']'"),
        ('[{"a": 1},\n\n{"a": }]', r"line 3 \(item 2\): the file is not JSON"),
        ('[{"a": 1},\n{"a": 1, "a": 2}]', r"line 2 \(item 2\), field 'a': is given twice"),
        ('[{"a": NaN}]', "NaN is no number"),
        ('[{"a": 1},', "item 2"),
        ('[{"a": 1}]\n[]', "line 2: the file is not JSON"),
        ("[" + '{"a":' * 100_000, "nested too deep"),
        ('[{"question": ""}]', r"line 1 \(item 1\), field 'question'"),
        ('{"question": 1}\n', "line 1, field 'question': must be text"),
        ('{"question": "a"}\n{', "line 2: the line is not JSON"),
    ],
)
def test_a_broken_file_is_named_with_line_and_item(tmp_path: Path, content: str, said: str) -> None:
    path = lay_down(tmp_path, {"data.json": content})
    with pytest.raises((RowError, EmptyInputError), match=said) as caught:
        load_cases(f"generic:{path}")
    assert str(path) in str(caught.value)


def test_a_list_knows_the_line_of_each_item(tmp_path: Path) -> None:
    items = [{"question": f"{n}?", "id": str(n), "context": "a\nb"} for n in range(5)]
    path = lay_down(tmp_path, {"data.json": "\n" + json.dumps(items, indent=2)})
    assert [case.question for case in load_cases(f"generic:{path}")] == [
        "0?", "1?", "2?", "3?", "4?",
    ]  # fmt: skip
    items[3]["question"] = ""
    path.write_text("\n" + json.dumps(items, indent=2))
    # An empty line, the bracket, three items of five lines each.
    with pytest.raises(RowError, match=r"line 18 \(item 4\), field 'question'"):
        load_cases(f"generic:{path}")


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    items = [{"id": f"{n}", "question": "Who?", "context": "She.", "answer": "She"} for n in (1, 2)]
    parquet.write_table(pa.Table.from_pylist(items), tmp_path / "data.parquet")
    (tmp_path / "data.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(items).encode())
    lay_down(
        tmp_path,
        {
            "data.jsonl": "\n".join(map(json.dumps, items)),
            "data.csv": "id,question,context,answer\n1,Who?,She.,She\n2,Who?,She.,She\n",
        },
    )
    found = [load_cases(f"generic:{tmp_path}/data.{end}") for end in ("json", "jsonl", "csv")]
    assert found[0] == found[1] == found[2] == load_cases(f"generic:{tmp_path}/data.parquet")
    lay_down(tmp_path, {"twice.csv": "id,id\n1,2\n"})
    with pytest.raises(InvalidParameterError, match="two columns 'id'"):
        load_cases(f"generic:{tmp_path}/twice.csv")


def test_ids_have_to_be_unique(tmp_path: Path) -> None:
    path = lay_down(tmp_path, {"data.csv": "id,question\n1,Who?\n1,Where?\n"})
    with pytest.raises(RowError, match="two cases have the id '1'"):
        load_cases(str(path))


class Hub:
    """Stands in for `datasets.load_dataset`, and remembers what it was asked for."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, []

    def __call__(self, *args: Any) -> Any:
        self.asked.append(args)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def put(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Hub:
    hub = Hub(answer)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    return hub


def test_a_data_set_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([rows.CONFLICTQA])
    hub = put(monkeypatch, datasets.DatasetDict({"train": table, "dev": table}))
    train, dev = load_cases("conflictqa:someone/ConflictQA:conflictQA-strategyQA-tiny")
    assert hub.asked == [("someone/ConflictQA", "conflictQA-strategyQA-tiny")]
    assert (train.split, dev.split) == ("train", "validation")
    assert train.meta["screened_for"] == "tiny"
    assert train.contexts == dev.contexts == ("Some whales are short.",)


@pytest.mark.parametrize(
    ("name", "row", "count"),
    [
        ("paraconflict", {**rows.PARACONFLICT, "Category": "games"}, 2),
        ("dynamicqa", rows.DYNAMICQA, 2),
        ("faitheval", {**rows.FAITHEVAL, "choices": {"text": ["a", " moonlight"]}}, 1),
        ("counterfact", rows.COUNTERFACT, 4),
        ("generic", {"question": "Who?", "answers": ["She"]}, 1),
    ],
)
def test_every_source_reads_what_the_hub_hands_over(
    monkeypatch: pytest.MonkeyPatch, name: str, row: dict[str, Any], count: int
) -> None:
    hub = put(monkeypatch, datasets.Dataset.from_list([row]))
    cases = load_cases(f"{name}:someone/some.set")
    assert hub.asked == [("someone/some.set",)]
    assert len(cases) == count
    assert {case.state for case in cases} <= {"unscreened", "irrelevant"}
    if name == "paraconflict":
        assert {case.relation for case in cases} == {"games"}


def test_pairs_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = {"golden": [rows.GOLDEN], "negative": [rows.NEGATIVE]}
    data = datasets.DatasetDict()
    for half, table in halves.items():
        data[half] = datasets.Dataset.from_list(table)
    put(monkeypatch, data)
    assert [c.context_kind for c in load_cases("squad:someone/pair")] == [
        "golden",
        "counterfactual",
    ]
    put(monkeypatch, datasets.Dataset.from_list([rows.TRISTATE, rows.TRISTATE_CLOSED]))
    assert [c.state for c in load_cases("tristate:someone/tri")] == ["resistance"]


def test_a_bad_row_on_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([rows.DYNAMICQA, {**rows.DYNAMICQA, "subj": ""}])
    put(monkeypatch, datasets.DatasetDict({"test": table}))
    with pytest.raises(RowError, match="someone/set, split 'test', row 2, field 'subj': is empty"):
        load_cases("dynamicqa:someone/set")


@pytest.mark.parametrize(
    "fault",
    [
        ConnectionError("Couldn't reach\nthe Hub"),
        ValueError("Config name is missing"),
        RuntimeError("Dataset scripts are no longer supported"),
        DatasetNotFoundError("no such set"),
    ],
)
def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    put(monkeypatch, fault)
    with pytest.raises(
        HubError, match=r"cannot load 'someone/set'.*give the path.*:CONFIG"
    ) as seen:
        load_cases("faitheval:someone/set")
    assert "\n" not in str(seen.value)
    assert " ".join(str(fault).split()) in str(seen.value)


def test_the_library_itself_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(HubError, match="cannot load 'someone/no-such-set-anywhere'"):
        load_cases("faitheval:someone/no-such-set-anywhere")


def test_a_file_is_preferred_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = put(monkeypatch, ConnectionError())
    lay_down(tmp_path, {"someone/set.json": json.dumps([rows.FAITHEVAL])})
    monkeypatch.chdir(tmp_path)
    assert len(load_cases("faitheval:someone/set.json")) == 1
    with pytest.raises(InvalidParameterError, match="there is no file"):
        load_cases("faitheval:someone/other.json")
    assert hub.asked == []
