"""TriState-Bench (arXiv 2606.10298): screened cases, each with its two prompts.

A case is two lines with one `input_index`: `assigned_process` 0 is the prompt with the context, 1
the one without; both are kept verbatim. They differ in more than the context ("Using only the
references listed above, answer ..." against "Answer ..."), so no case is `aligned`.

The benchmark names three states, which become `correction` (`C_right_P_wrong`), `resistance`
(`C_wrong_P_right`) and `agreement` (`C_right_P_right`). They hold for the model that the file was
screened with, which the file does not name; `meta["screened_for"]` holds the folder's name instead.
What that model answered where it was wrong is not recorded: there `memory_answers` is empty.
Questions end in a stray " ?" in the files, which is taken off `question` but not off the prompts.
"""

from __future__ import annotations

import re

from conflictkit.evaluation.cases.records import Record, Table, open_table, split_of
from conflictkit.types import Case

STATES = {
    "C_right_P_wrong": "correction",
    "C_wrong_P_right": "resistance",
    "C_right_P_right": "agreement",
}
_PROMPT = re.compile(
    r"(?P<context>.*?)\s*^Using only the references listed above, answer the following question:"
    r"\s*^Question:(?P<question>.*)^Answer:\s*",
    re.DOTALL | re.MULTILINE,
)


def load(where: str) -> list[Case]:
    """The cases of one file, or of the hub's data set.

    Raises:
        ConflictKitError: as `records.open_table`, and RowError for a row that is not as described,
            or that lacks its other half.
    """
    table = open_table(where)
    waiting: dict[tuple[str, str, str], Record] = {}
    cases: list[Case] = []
    for record in table.records:
        key = (record.split, record.text("benchmark"), str(record.values.get("input_index")))
        other = waiting.pop(key, None)
        if other is None:
            waiting[key] = record
            continue
        halves = {half.values.get("assigned_process"): half for half in (other, record)}
        if set(halves) != {0, 1}:
            raise record.error(
                "assigned_process", "must be 0 in one line of a case, 1 in the other"
            )
        cases.append(_case(table, halves[0], halves[1]))
    for record in waiting.values():
        raise record.error("input_index", "the other line of this case is missing")
    return cases


def _case(table: Table, read: Record, closed: Record) -> Case:
    name = read.text("benchmark")
    if name not in STATES:
        raise read.error("benchmark", f"must be one of {', '.join(STATES)}, not '{name}'")
    state = STATES[name]
    found = _PROMPT.fullmatch(read.text("context_string"))
    if found is None:
        raise read.error("context_string", "is not context, instruction and question as released")
    right = read.texts("gold_answers")
    question = re.sub(r"\s*\?(\s*\?)*\s*$", "?", found["question"].strip())
    return Case(
        id=f"{state}-{read.text('fact_id')}-{read.number // 2:04d}",
        split=split_of(read.split),
        relation="",
        # The benchmark names no subject: questions stand for themselves.
        subject=question,
        question=question,
        contexts=(read.check("context_string", found["context"]),),
        context_kind=name.partition("_P_")[0],
        memory_answers=() if state == "correction" else right,
        context_answers=read.texts("wrong_answer") if state == "resistance" else right,
        gold_answers=right,
        state=state,
        source="tristate",
        prompt=read.verbatim("context_string"),
        memory_prompt=closed.verbatim("context_string"),
        aligned=False,
        meta={
            "screened_for": table.folders[0] if table.folders else table.stem,
            **read.meta("fact_id", "answer_type", "assigned_weight"),
        },
    )
