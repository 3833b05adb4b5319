"""Each benchmark on rows written for the purpose: what becomes a case, and what is refused."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conflictkit.errors import ConflictKitError, InvalidParameterError, RowError
from conflictkit.evaluation.cases import load_cases, read_cases, write_cases
from conflictkit.evaluation.cases.sources import LOADERS
from tests.evaluation.cases import rows
from tests.evaluation.cases.rows import FILES, lay_down
from tests.evaluation.cases.test_io import mutated


def sheet(path: Path, row: dict[str, Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return path


def files(name: str, folder: Path) -> Path:
    if name == "dynamicqa":
        return sheet(folder / "Static_final.csv", rows.DYNAMICQA)
    return lay_down(folder, FILES[name])


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with its first row changed."""
    content = path.read_text(encoding="utf-8")
    if content.startswith("["):
        data = json.loads(content)
        change(data[0])
        path.write_text(json.dumps(data), encoding="utf-8")
    else:
        first, _, rest = content.partition("\n")
        data = json.loads(first)
        change(data)
        path.write_text(f"{json.dumps(data)}\n{rest}", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", LOADERS)
def test_cases_survive_our_own_format(name: str, tmp_path: Path) -> None:
    cases = load_cases(f"{name}:{files(name, tmp_path)}")
    write_cases(tmp_path / "out.jsonl", cases)
    assert read_cases(tmp_path / "out.jsonl") == cases
    assert all(case.subject and case.source for case in cases)


def test_paraconflict(tmp_path: Path) -> None:
    row = rows.PARACONFLICT
    substitution, coherent = load_cases(f"paraconflict:{files('paraconflict', tmp_path)}")
    for case in (substitution, coherent):
        assert case.gold_answers == case.memory_answers == ("chess", "board games")
        assert case.context_answers == ("golf",)
        assert case.question == "What does Ada Quill play?"
        assert (case.relation, case.subject) == ("person_game", "Ada Quill")
        assert case.memory_prompt == row["Clean Prompt"]
        assert (case.state, case.meta) == ("resistance", {"screened_for": "gemma"})
    assert substitution.prompt == row["Substitution Conflict"]
    assert substitution.contexts == ("Ada Quill plays the game of golf.",)
    assert substitution.aligned
    assert coherent.prompt == row["Coherent Conflict"]
    assert coherent.contexts == ("Ada Quill plays the game of golf. Her golf is praised.",)
    assert not coherent.aligned


@pytest.mark.parametrize(
    ("name", "split", "state"),
    [
        ("unfiltered_test", "test", "unscreened"),
        ("filtered_validation", "validation", "resistance"),
        ("head_finding_set_size_4", "train", "unscreened"),
    ],
)
def test_paraconflict_reads_split_and_screening_off_the_file(
    tmp_path: Path, name: str, split: str, state: str
) -> None:
    path = lay_down(tmp_path, {f"a_gemma/head_size_4/{name}.json": json.dumps([rows.PARACONFLICT])})
    for case in load_cases(f"paraconflict:{path}"):
        assert (case.split, case.state, case.relation) == (split, state, "a")


@pytest.mark.parametrize(
    ("folder", "relation", "model"),
    [
        ("world_capital_gemma/head_size_1", "world_capital", "gemma"),
        ("world_capital_gemma", "world_capital", "gemma"),
        ("city_mayor_olmo/head_size_10", "city_mayor", "olmo"),
        ("my_data", "game", "the model it was filtered for"),
        ("my_data/json", "game", "the model it was filtered for"),
        ("a_gemma/copies", "game", "the model it was filtered for"),
        ("head_size_4", "game", "the model it was filtered for"),
        ("_gemma", "game", "the model it was filtered for"),
    ],
)
def test_paraconflict_believes_only_folders_as_released(
    tmp_path: Path, folder: str, relation: str, model: str
) -> None:
    row = {**rows.PARACONFLICT, "Category": "game"}
    path = lay_down(tmp_path, {f"top/{folder}/filtered_test.json": json.dumps([row])})
    for case in load_cases(f"paraconflict:{path}"):
        assert (case.relation, case.meta) == (relation, {"screened_for": model})


def test_dynamicqa(tmp_path: Path) -> None:
    original, replaced = load_cases(f"dynamicqa:{files('dynamicqa', tmp_path)}")
    assert original.contexts == ("Ada Quill was a writer. The writer lived alone.",)
    assert replaced.contexts == ("Ada Quill was a baker. The baker lived alone.",)
    assert original.context_answers == ("writer", "author")
    assert replaced.context_answers == ("baker",)
    for case in (original, replaced):
        assert case.gold_answers == case.memory_answers == ("writer", "author")
        assert (case.relation, case.subject) == ("occupation", "Ada Quill")
        assert case.meta == {"dynamics": "static", "num_edits": "3.0", "s_pop": "12"}


def test_dynamicqa_puts_the_answer_in_for_whole_words_only(tmp_path: Path) -> None:
    path = sheet(tmp_path / "Disputable_final.csv", rows.DISPUTABLE)
    original, replaced = load_cases(f"dynamicqa:{path}")
    assert original.contexts == ("ada quill was a tart but no tartar; a tart.",)
    assert replaced.contexts == ("ada quill was a \\1 pie but no tartar; a \\1 pie.",)
    assert replaced.meta["dynamics"] == "disputable"
    sheet(path, {**rows.DISPUTABLE, "obj": "tar"})
    with pytest.raises(RowError, match="line 2, field 'context': holds neither"):
        load_cases(f"dynamicqa:{path}")


@pytest.mark.parametrize("same", ["writer", "Author"])
def test_dynamicqa_leaves_out_what_is_no_conflict(tmp_path: Path, same: str) -> None:
    path = sheet(tmp_path / "Static_final.csv", {**rows.DYNAMICQA, "replace_name": same})
    with pytest.raises(ConflictKitError, match="no cases"):
        load_cases(f"dynamicqa:{path}")


def test_conflictqa(tmp_path: Path) -> None:
    path = files("conflictqa", tmp_path)
    (case,) = load_cases(f"conflictqa:{path}")
    assert case.contexts == ("Some whales are short.",)
    assert case.memory_answers == ("A whale could not fit in a bus.",)
    assert case.context_answers == ("A whale could fit in a bus.",)
    assert case.gold_answers == ()
    assert case.choices == (*case.memory_answers, *case.context_answers, "uncertain")
    assert case.state == "unscreened"
    assert case.meta["screened_for"] == "tiny"
    assert case.meta["ground_truth"] == ["False"]
    changed(path, lambda row: row.update(ground_truth=["Oslo", "Christiania"]))
    (case,) = load_cases(f"conflictqa:{path}")
    assert case.gold_answers == ("Oslo", "Christiania")


def test_tristate(tmp_path: Path) -> None:
    path = files("tristate", tmp_path)
    (case,) = load_cases(f"tristate:{path}")
    assert case.prompt == rows.TRISTATE["context_string"]
    assert case.memory_prompt == rows.TRISTATE_CLOSED["context_string"]
    assert case.contexts == ("Bo Pen wrote it.\nIn 1900.",)
    assert case.question == "Who wrote the Quill?"
    assert not case.aligned
    assert case.meta["screened_for"] == tmp_path.name


@pytest.mark.parametrize(
    ("benchmark", "state", "memory", "context"),
    [
        ("C_wrong_P_right", "resistance", ("Ada Quill", "Quill"), ("Bo Pen",)),
        ("C_right_P_wrong", "correction", (), ("Ada Quill", "Quill")),
        ("C_right_P_right", "agreement", ("Ada Quill", "Quill"), ("Ada Quill", "Quill")),
    ],
)
def test_tristate_names_our_states(
    tmp_path: Path, benchmark: str, state: str, memory: tuple[str, ...], context: tuple[str, ...]
) -> None:
    lines = [{**row, "benchmark": benchmark} for row in (rows.TRISTATE_CLOSED, rows.TRISTATE)]
    path = lay_down(tmp_path, {"C.jsonl": "\n".join(map(json.dumps, lines))})
    (case,) = load_cases(f"tristate:{path}")
    assert (case.state, case.memory_answers, case.context_answers) == (state, memory, context)
    assert case.gold_answers == ("Ada Quill", "Quill")


def test_faitheval(tmp_path: Path) -> None:
    path = files("faitheval", tmp_path)
    (case,) = load_cases(f"faitheval:{path}")
    assert case.gold_answers == case.context_answers == ("moonlight",)
    assert case.memory_answers == ()
    assert case.choices == ("water", "moonlight", "stones")
    assert case.meta == {"answerKey": "B", "justification": "It says so."}
    for choices in (
        str(rows.FAITHEVAL["choices"]),
        json.dumps(rows.FAITHEVAL["choices"]),
        {"text": rows.FAITHEVAL["choices"], "label": ["A", "B", "C"]},
    ):
        changed(path, lambda row, choices=choices: row.update(choices=choices))
        assert load_cases(f"faitheval:{path}") == [case]


@pytest.mark.parametrize("half", ["golden", "negative"])
def test_squad_finds_the_other_half(tmp_path: Path, half: str) -> None:
    files("squad", tmp_path)
    golden, counterfactual = load_cases(f"squad:{tmp_path / f'squad_{half}.json'}")
    assert golden.contexts == ("Quillia is in Asia.",)
    assert golden.gold_answers == golden.context_answers == ("Asia",)
    assert counterfactual.contexts == ("Quillia is in Africa.",)
    assert counterfactual.gold_answers == counterfactual.context_answers == ("Africa",)
    for case in (golden, counterfactual):
        assert case.memory_answers == ("Asia",)
        assert case.meta == {"true_answer": "Asia"}
        assert case.choices == ("Africa", "Asia")
        assert case.question == "Where is Quillia?"


def test_squad_needs_both_halves(tmp_path: Path) -> None:
    path = files("squad", tmp_path)
    changed(path, lambda row: row.update(id="other"))
    with pytest.raises(RowError, match="field 'id': has no row in the negative half"):
        load_cases(f"squad:{path}")
    lay_down(tmp_path, {"squad_golden.json": json.dumps([{**rows.GOLDEN, "id": "made_0"}])})
    both = [{**rows.NEGATIVE, "id": "made_0"}, rows.NEGATIVE]
    lay_down(tmp_path, {"squad_negative.json": json.dumps(both)})
    with pytest.raises(RowError, match="field 'id': has no row in the golden half"):
        load_cases(f"squad:{path}")
    (tmp_path / "squad_negative.json").unlink()
    with pytest.raises(InvalidParameterError, match=r"there is no file '.*squad_negative.json'"):
        load_cases(f"squad:{path}")
    path.rename(tmp_path / "mine.json")
    with pytest.raises(InvalidParameterError, match="cannot tell the halves"):
        load_cases(f"squad:{tmp_path / 'mine.json'}")


@pytest.mark.parametrize(("half", "row"), [("golden", rows.GOLDEN), ("negative", rows.NEGATIVE)])
def test_squad_refuses_an_id_that_comes_twice(
    tmp_path: Path, half: str, row: dict[str, Any]
) -> None:
    path = files("squad", tmp_path)
    both = [row, {**row, "context": "Quillia is elsewhere."}]
    lay_down(tmp_path, {f"squad_{half}.json": json.dumps(both)})
    said = rf"squad_{half}\.json, line 1 \(item 2\), field 'id': is there already: .*\(item 1\)"
    with pytest.raises(RowError, match=said):
        load_cases(f"squad:{path}")


def test_counterfact(tmp_path: Path) -> None:
    cases = load_cases(f"counterfact:{files('counterfact', tmp_path)}")
    assert [(c.context_kind, c.question, c.state) for c in cases] == [
        ("edit", "What is Ada Quill's mother tongue?", "unscreened"),
        ("edit", "What does Ada Quill speak?", "unscreened"),
        ("neighbour", "What does Bo Pen speak?", "irrelevant"),
        ("same-subject", "Where did Ada Quill die?", "irrelevant"),
    ]
    assert [(c.memory_answers, c.context_answers, c.gold_answers) for c in cases[1:]] == [
        (("Greek",), ("Latin",), ("Latin",)),
        (("Greek",), (), ("Greek",)),
        ((), (), ()),
    ]
    assert {c.contexts for c in cases} == {("Ada Quill's mother tongue is Latin.",)}
    assert {c.subject for c in cases} == {"Ada Quill"}


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "question,context,answer,context_answer,memory_answer,note\n"
        'Who?,"[""She."", ""He.""]",She,"[\'He\', \'him\']",She,extra\n'
        "Where?,,Here,,,\n"
    )
    first, second = load_cases(str(path))
    assert first.contexts == ("She.", "He.")
    assert first.gold_answers == first.memory_answers == ("She",)
    assert first.context_answers == ("He", "him")
    assert (first.state, first.split, first.subject) == ("unscreened", "test", "Who?")
    assert first.meta == {"note": "extra"}
    assert (first.id, second.id) == ("mine-00000", "mine-00001")
    assert second.contexts == second.context_answers == ()
    assert second.meta == {}


def test_our_own_columns_in_a_table(tmp_path: Path) -> None:
    row = {
        "id": 7, "question": "Who?", "contexts": ["She."], "context_answers": ["She"],
        "gold_answers": "She", "state": "agreement", "aligned": "False", "split": "train",
        "meta": {"a": 1}, "b": 2, "choices": "['She', 'He']",
    }  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([row]))
    (case,) = load_cases(f"generic:{path}")
    assert (case.id, case.state, case.split, case.aligned) == ("7", "agreement", "train", False)
    assert case.meta == {"a": 1, "b": 2}
    assert case.choices == ("She", "He")
    sheet(tmp_path / "mine.csv", {**row, "meta": '{"a": 1, "b": 2}', "b": "", "contexts": "She."})
    (again,) = load_cases(str(tmp_path / "mine.csv"))
    assert again == case


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("paraconflict", {"Clean Prompt": ""}, "Clean Prompt", "is empty"),
    ("paraconflict", {"Clean Prompt": "Other"}, "Substitution Conflict", "end with the clean"),
    ("paraconflict", {"Coherent Conflict": "golf"}, "Coherent Conflict", "has no"),
    ("paraconflict", {"Answer": 3}, "Answer", "must be text"),
    ("conflictqa", {"counter_memory": None}, "counter_memory", "is empty"),
    ("conflictqa", {"ground_truth": "[1"}, "ground_truth", "cannot be read as one"),
    ("tristate", {"benchmark": "C_odd"}, "input_index", "the other line of this case is missing"),
    ("tristate", {"assigned_process": 1}, "assigned_process", "must be 0 in one line"),
    ("tristate", {"context_string": "She."}, "context_string", "as released"),
    ("tristate", {"wrong_answer": []}, "wrong_answer", "is empty"),
    ("faitheval", {"choices": ["a", "a"]}, "choices", "two or more different"),
    ("faitheval", {"answer": "sunlight"}, "answer", "is not one of the choices"),
    ("squad", {"question": "Who?"}, "question", "is not that of the golden half"),
    ("counterfact", {"edit_scope": [["q"]], "edit_scope_true_ans": ["a"]}, "edit_scope", "item 1"),
    ("counterfact", {"edit_scope_true_ans": []}, "edit_scope_true_ans", "one answer for every"),
    ("counterfact", {"unrelated": []}, "unrelated", "must be an object"),
    ("counterfact", {"unrelated": {}}, "unrelated", "'neighbor_subj' in it is missing"),
    ("generic", {"question": ""}, "question", "is missing"),
    ("generic", {"gold_answers": "She"}, "gold_answers", "says the same as 'answer'"),
    ("generic", {"state": "agrement"}, "state", "did you mean 'agreement'"),
    ("generic", {"meta": "x"}, "meta", "must be an object"),
    ("generic", {"context": "", "state": "reading"}, "contexts", "is about a context"),
]


@pytest.mark.parametrize(("name", "change", "field", "reason"), WRONG, ids=[str(w) for w in WRONG])
def test_a_row_that_is_not_as_described_is_named(
    tmp_path: Path, name: str, change: dict[str, Any], field: str, reason: str
) -> None:
    path = changed(files(name, tmp_path), lambda row: row.update(change))
    with pytest.raises(RowError, match=reason) as caught:
        load_cases(f"{name}:{path}")
    place, _, _ = str(caught.value).partition(f", field '{field}': ")
    # The squad pair is compared from its other half.
    assert place.startswith(f"{path.parent}/{path.name[:6]}")
    assert ", line " in place


@pytest.mark.parametrize("name", LOADERS)
def test_a_mutated_file_raises_nothing_else(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    path = files(name, tmp_path)
    data = path.read_bytes()
    for _ in range(100):
        path.write_bytes(mutated(rng, data))
        try:
            cases = load_cases(f"{name}:{path}")
        except ConflictKitError:
            continue
        write_cases(tmp_path / "out.jsonl", cases)
        assert read_cases(tmp_path / "out.jsonl") == cases
