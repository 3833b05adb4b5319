"""CounterFact-Hard (Chen et al., "Robust and Scalable Model Editing", EREN, COLING 2024).

A row is one edit: a false statement, questions that it answers (`edit_scope`), and questions it
does not answer, about neighbouring subjects and about the same one. The statement is the context of
all of them. A question asked twice under one edit gives one case.

In scope (`context_kind` `edit`) the benchmark counts the edit as right, so `gold_answers` is the
new answer; `memory_answers` is the one that was true before, which a memory is assumed to hold;
such cases are `unscreened`. Out of scope (`neighbour`, `same-subject`) the answer must stay what it
was without the statement: those are `irrelevant`, whatever the model. Their true answers are there
for the neighbours; the lists for the same subject were filtered in the questions but not in the
answers, so that it cannot be told which belongs to which, and the answers stay empty.

`subject` is the edit's, also for neighbours, whose own the file does not name: the questions of one
edit share its statement and are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from conflictkit.evaluation.cases.records import Record, Table, open_table, split_of
from conflictkit.states import UNSCREENED
from conflictkit.types import Case

_AWAY = {"neighbor_subj": "neighbour", "same_subj": "same-subject"}


def load(where: str) -> list[Case]:
    """The cases of one file, or of the hub's data set.

    Raises:
        ConflictKitError: as `records.open_table`, and RowError for a row that is not as described.
    """
    table = open_table(where)
    return [case for record in table.records for case in _cases(table, record)]


def _cases(table: Table, record: Record) -> Iterator[Case]:
    asked: set[tuple[str, str]] = set()
    for kind, number, question, before, after in _questions(record):
        if (kind, question) in asked:
            continue
        asked.add((kind, question))
        yield Case(
            id=f"{table.name_row(record)}-{kind}-{number}",
            split=split_of(record.split),
            relation="",
            subject=record.text("subject_name"),
            question=question,
            contexts=(record.text("edit_statement"),),
            context_kind=kind,
            memory_answers=before,
            context_answers=after,
            gold_answers=after or before,
            state=UNSCREENED if kind == "edit" else "irrelevant",
            source="counterfact",
        )


def _questions(
    record: Record,
) -> Iterator[tuple[str, int, str, tuple[str, ...], tuple[str, ...]]]:
    """Kind, number, question, answers before the edit, answers by the edit."""
    scope, true = _list(record, "edit_scope"), _list(record, "edit_scope_true_ans")
    if len(scope) != len(true):
        raise record.error("edit_scope_true_ans", "has not one answer for every question")
    for number, (pair, old) in enumerate(zip(scope, true, strict=True)):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise record.error("edit_scope", f"item {number + 1} is not [question, answer]")
        question, new = (record.check("edit_scope", part) for part in pair)
        yield "edit", number, question, (record.check("edit_scope_true_ans", old),), (new,)
    for column, kind in _AWAY.items():
        questions = _list(record, "unrelated", column)
        answers = _list(record, "unrelated_true_ans", column)
        known = len(questions) == len(answers)
        for number, text in enumerate(questions):
            question = record.check("unrelated", text)
            before = (record.check("unrelated_true_ans", answers[number]),) if known else ()
            yield kind, number, question, before, ()


def _list(record: Record, column: str, key: str | None = None) -> list[Any]:
    value = record.values.get(column)
    if key is not None:
        if not isinstance(value, Mapping):
            raise record.error(column, "is missing" if value is None else "must be an object")
        value = value.get(key)
    if not isinstance(value, list | tuple):
        fault = "is missing" if value is None else "must be a list"
        raise record.error(column, f"'{key}' in it {fault}" if key else fault)
    return list(value)
