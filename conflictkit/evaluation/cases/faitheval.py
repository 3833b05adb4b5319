"""FaithEval, counterfactual part (Ming et al., "FaithEval", ICLR 2025): multiple choice.

The context was written so that a false answer follows from it, and that answer is the benchmark's
own right one: `gold_answers` and `context_answers` are the same. The true answer is one of the
other choices, but the release does not say which, so `memory_answers` is empty until a model has
been screened. All cases are `unscreened`. Choices may be a list, the text of a list, or the hub's
`{"text": [...], "label": [...]}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from conflictkit.evaluation.cases.records import Record, Table, open_table, split_of
from conflictkit.states import UNSCREENED
from conflictkit.types import Case


def load(where: str) -> list[Case]:
    """The cases of one file, or of the hub's data set.

    Raises:
        ConflictKitError: as `records.open_table`, and RowError for a row that is not as described.
    """
    table = open_table(where)
    return [_case(table, record) for record in table.records]


def choices_of(record: Record) -> tuple[str, ...]:
    """The answers to choose from, among them the one of the column `answer`.

    Raises:
        RowError: fewer than two, or without the answer.
    """
    given = record.values.get("choices")
    if isinstance(given, Mapping):
        record = replace(record, values={**record.values, "choices": given.get("text")})
    choices = record.texts("choices")
    if len(choices) < 2:
        raise record.error("choices", "must be two or more different answers")
    if record.text("answer") not in choices:
        raise record.error("answer", "is not one of the choices")
    return choices


def _case(table: Table, record: Record) -> Case:
    answer = record.text("answer")
    name = record.values.get("id")
    return Case(
        id=table.name_row(record) if name in (None, "") else str(name),
        split=split_of(record.split),
        relation="",
        # The benchmark names no subject: questions stand for themselves.
        subject=record.text("question"),
        question=record.text("question"),
        contexts=(record.text("context"),),
        context_kind="counterfactual",
        memory_answers=(),
        context_answers=(answer,),
        gold_answers=(answer,),
        state=UNSCREENED,
        source="faitheval",
        choices=choices_of(record),
        meta=record.meta("answerKey", "justification"),
    )
