"""ParaConflict (Li, Chen & Tong, "Taming Knowledge Conflicts in Language Models", ICML 2025).

Every row gives two cases whose prompts are verbatim: `substitution` ("X is C. X is") and `coherent`
(a paragraph for C, then "Question: ... Answer: X is"). The memory prompt is the clean prompt of the
row. A coherent prompt asks a question that the clean one lacks, so those cases are not `aligned`.

The context is wrong in all of them and `gold_answers` are the true ones; `memory_answers` repeats
them, for it is the true answer that a memory is assumed to hold. Files called `filtered_...` hold
what the model named by the folder (`..._gemma`: Gemma-2-2b) answers right without a context: their
cases are `resistance`, for that model, which `meta["screened_for"]` names. All others are
`unscreened`. `head_finding_set...` is the split from which heads were chosen: `train`.

A folder is believed if it is called as the released ones are: `RELATION_MODEL` above a folder
`head_size_N`, or `RELATION_gemma`. Elsewhere the relation is the row's `Category`.
"""

from __future__ import annotations

import re

from conflictkit.evaluation.cases.records import Record, Table, open_table, split_of, unique
from conflictkit.states import UNSCREENED
from conflictkit.types import Case

_QUESTION, _ANSWER = " Question: ", " Answer: "
_SIZE = re.compile(r"head_size_\d+")
_MODELS = ("gemma",)
"""Models whose folders were released."""


def load(where: str) -> list[Case]:
    """The cases of one file of one relation, or of the hub's data set.

    Raises:
        ConflictKitError: as `records.open_table`, and RowError for a row that is not as described.
    """
    table = open_table(where)
    return [case for record in table.records for case in _cases(table, record)]


def _cases(table: Table, record: Record) -> list[Case]:
    relation, model = _folder(table)
    screened = model if table.stem.startswith("filtered") else ""
    clean, coherent = record.verbatim("Clean Prompt"), record.verbatim("Coherent Conflict")
    passage, _, asked = coherent.rpartition(_QUESTION)
    question, _, _ = asked.partition(_ANSWER)
    if not passage or _ANSWER not in asked:
        raise record.error("Coherent Conflict", "has no '... Question: ... Answer: ...'")
    substitution = record.verbatim("Substitution Conflict")
    if not substitution.endswith(" " + clean):
        raise record.error("Substitution Conflict", "does not end with the clean prompt")
    right = unique([*record.texts("Answer"), *record.texts("Answer_ns", needed=False)])
    name = table.name_row(record)
    prompts = {
        "substitution": (substitution.removesuffix(clean).strip(), substitution),
        "coherent": (passage.strip(), coherent),
    }
    return [
        Case(
            id=f"{relation}-{name}-{form}" if relation else f"{name}-{form}",
            split=_split(table, record),
            relation=relation or record.text("Category", ""),
            subject=record.text("Subject"),
            question=question,
            contexts=(context,),
            context_kind=form,
            memory_answers=right,
            context_answers=record.texts("Distracted Token"),
            gold_answers=right,
            state="resistance" if screened else UNSCREENED,
            source="paraconflict",
            prompt=prompt,
            memory_prompt=clean,
            aligned=prompt == f"{context} {clean}",
            meta={"screened_for": screened} if screened else {},
        )
        for form, (context, prompt) in prompts.items()
    ]


def _folder(table: Table) -> tuple[str, str]:
    """Relation and model of a folder such as `athlete_sport_gemma/head_size_4`."""
    inner, outer = (*table.folders[:2], "", "")[:2]
    sized = _SIZE.fullmatch(inner) is not None
    relation, _, model = (outer if sized else inner).rpartition("_")
    if relation and model and (sized or model in _MODELS):
        return relation, model
    return "", "the model it was filtered for"


def _split(table: Table, record: Record) -> str:
    return (
        "train" if table.stem.startswith("head_finding") else split_of(record.split or table.stem)
    )
