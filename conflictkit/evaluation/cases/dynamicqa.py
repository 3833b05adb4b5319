"""DynamicQA (Marjanović, Yu et al., "DynamicQA", Findings of EMNLP 2024): facts that change.

The files are `Static_final.csv`, `Temporal_final.csv` and `Disputable_final.csv`. Every row gives
two cases, as the official evaluation reads it: the passage with the original answer (`original`)
and with the one put in its place (`replaced`). In the first two files the place is marked
`[ENTITY]`; in the third the original answer stands in the passage and is replaced as a whole word,
everywhere.

`gold_answers` are the original answer and its aliases, `memory_answers` the same: the answer that a
memory is assumed to hold. A disputable fact has changed to and fro in its article, so that "true"
means no more there than "the article's older wording". All cases are `unscreened`.

Rows whose replacement is the original answer or one of its aliases are left out: they hold no
conflict. (The official code keeps them.) The official prompts are chat prompts that ask for one
word; the release does not fix their text, and neither do the cases.
"""

from __future__ import annotations

import re

from conflictkit.evaluation.cases.records import Record, Table, open_table, split_of, unique
from conflictkit.states import UNSCREENED
from conflictkit.types import Case

KINDS = ("static", "temporal", "disputable")
_HOLE = "[ENTITY]"


def load(where: str) -> list[Case]:
    """The cases of one file, or of the hub's data set.

    Raises:
        ConflictKitError: as `records.open_table`, and RowError for a row that is not as described.
    """
    table = open_table(where)
    return [case for record in table.records for case in _cases(table, record)]


def _cases(table: Table, record: Record) -> list[Case]:
    original, replacement = record.text("obj"), record.text("replace_name")
    right = unique([original, *record.texts("possible_answers", needed=False)])
    if replacement.casefold() in {answer.casefold() for answer in right}:
        return []
    passage = record.text("context")
    kind = _kind(table, record)
    name = record.values.get("id")
    said = {"original": (original, right), "replaced": (replacement, (replacement,))}
    return [
        Case(
            id=f"{kind}-{table.name_row(record) if name in (None, '') else name}-{form}",
            split=split_of(record.split),
            relation=record.text("prop", ""),
            subject=record.text("subj"),
            question=record.text("question"),
            contexts=(_put(record, passage, original, answer),),
            context_kind=form,
            memory_answers=right,
            context_answers=answers,
            gold_answers=right,
            state=UNSCREENED,
            source="dynamicqa",
            meta={"dynamics": kind, **record.meta("num_edits", "s_pop", "o_pop")},
        )
        for form, (answer, answers) in said.items()
    ]


def _kind(table: Table, record: Record) -> str:
    said = f"{table.stem} {record.split}".lower()
    return next((kind for kind in KINDS if kind in said), "dynamicqa")


def _put(record: Record, passage: str, original: str, answer: str) -> str:
    if _HOLE in passage:
        return passage.replace(_HOLE, answer)
    word = re.compile(rf"(?<!\w){re.escape(original)}(?!\w)")
    if not word.search(passage):
        raise record.error("context", f"holds neither {_HOLE} nor the answer '{original}'")
    return word.sub(lambda _: answer, passage)
