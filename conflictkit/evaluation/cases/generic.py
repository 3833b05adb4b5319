"""Any table of questions: CSV, JSON lines, JSON list or Parquet, one case per row.

`question` has to be there. The columns are those of the case format; in place of a list a column
may hold one text, or the text of a JSON list, under the singular name as well: `context`,
`gold_answer` or `answer`, `context_answer`, `memory_answer`. What is not given: `id` is the row's
number, `subject` the question, `split` `test`, `state` `unscreened`. Columns under other names go
into `meta`.
"""

from __future__ import annotations

import json
from typing import Any

from conflictkit.evaluation.cases.io import LISTS, ORDER, as_case
from conflictkit.evaluation.cases.records import Record, Table, open_table, split_of
from conflictkit.scoring.rows import Malformed
from conflictkit.states import UNSCREENED
from conflictkit.types import Case

_SINGULAR = {
    "context": "contexts",
    "gold_answer": "gold_answers",
    "answer": "gold_answers",
    "answers": "gold_answers",
    "context_answer": "context_answers",
    "memory_answer": "memory_answers",
}


def load(where: str) -> list[Case]:
    """The cases of one file, or of a data set on the hub.

    Raises:
        ConflictKitError: as `records.open_table`, and RowError for a row that is no case.
    """
    table = open_table(where)
    return [_case(table, record) for record in table.records]


def _case(table: Table, record: Record) -> Case:
    values: dict[str, Any] = {"source": table.stem}
    origin: dict[str, str] = {}
    more: dict[str, Any] = {}
    for column, value in record.values.items():
        name = _SINGULAR.get(column, column)
        if value is None or value == "":
            continue
        if name in origin:
            raise record.error(column, f"says the same as '{origin[name]}': keep one of them")
        if name not in ORDER:
            more[column] = value
            continue
        origin[name] = column
        values[name] = list(record.texts(column)) if name in LISTS else _plain(name, value)
    if more:
        given = values.get("meta", {})
        if not isinstance(given, dict):
            raise record.error("meta", "must be an object")
        values["meta"] = {**more, **given}
    values.setdefault("id", table.name_row(record))
    values.setdefault("split", split_of(record.split))
    values.setdefault("state", UNSCREENED)
    if "question" in values:
        values.setdefault("subject", values["question"])
    try:
        return as_case(values)
    except Malformed as fault:
        raise record.error(
            origin.get(fault.field or "", fault.field or ""), fault.reason
        ) from fault


def _plain(name: str, value: Any) -> Any:
    """What a cell of a CSV file says: there everything is text."""
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name == "aligned" and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if name == "meta" and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
