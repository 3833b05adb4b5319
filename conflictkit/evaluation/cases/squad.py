"""The SQuAD pair of FaithfulRAG (Zhang et al., ACL 2025), and any pair of files built like it.

`squad_golden.json` and `squad_negative.json` hold the same questions under the same ids: once with
a passage that supports the true answer, once with the passage rewritten so that a false one is
right. Name either file, the other lies beside it under the same name with `golden` and `negative`
exchanged; a data set on the hub needs splits with those names.

Every id gives two cases, `golden` and `counterfactual`. By the benchmark's rule the right answer is
the context's, so that is what `gold_answers` holds; `memory_answers` is the golden half's, the true
one, which a memory is assumed to hold, and `meta["true_answer"]` repeats it. All are `unscreened`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conflictkit.errors import InvalidParameterError
from conflictkit.evaluation.cases.faitheval import choices_of
from conflictkit.evaluation.cases.records import Record, open_table
from conflictkit.states import UNSCREENED
from conflictkit.types import Case

HALVES = ("golden", "negative")


def load(where: str) -> list[Case]:
    """The cases of a pair.

    Raises:
        ConflictKitError: as `records.open_table`; InvalidParameterError if it cannot be told where
            the other half is, RowError for a row that is not as described, has no partner, or
            whose id is that of another row.
    """
    golden, partners = map(_by_id, _halves(where))
    cases: list[Case] = []
    for name, record in golden.items():
        partner = partners.pop(name, None)
        if partner is None:
            raise record.error("id", "has no row in the negative half")
        if record.text("question") != partner.text("question"):
            raise partner.error("question", "is not that of the golden half")
        cases += [_case(record, record), _case(record, partner)]
    for record in partners.values():
        raise record.error("id", "has no row in the golden half")
    return cases


def _halves(where: str) -> tuple[Sequence[Record], Sequence[Record]]:
    path = Path(where)
    mine = next((half for half in HALVES if half in path.name), None)
    if mine is not None:
        other = HALVES[1 - HALVES.index(mine)]
        beside = path.with_name(path.name.replace(mine, other))
        halves = {mine: open_table(where).records, other: open_table(str(beside)).records}
    else:
        records = open_table(where).records
        halves = {half: [r for r in records if half in r.split.lower()] for half in HALVES}
        if not all(halves.values()):
            raise InvalidParameterError(
                f"cannot tell the halves of '{where}' apart: name the file that has 'golden' or "
                "'negative' in its name, with the other one beside it"
            )
    return halves["golden"], halves["negative"]


def _by_id(half: Sequence[Record]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in half:
        first = found.setdefault(_name(record), record)
        if first is not record:
            raise record.error("id", f"is there already: {first.place}")
    return found


def _name(record: Record) -> str:
    name = record.values.get("id")
    return str(name) if isinstance(name, int) else record.text("id")


def _case(golden: Record, record: Record) -> Case:
    true, said = golden.text("answer"), record.text("answer")
    form = "golden" if record is golden else "counterfactual"
    return Case(
        id=f"{_name(record)}-{form}",
        split="test",
        relation="",
        # The benchmark names no subject: questions stand for themselves.
        subject=record.text("question"),
        question=record.text("question"),
        contexts=(record.text("context"),),
        context_kind=form,
        memory_answers=(true,),
        context_answers=(said,),
        gold_answers=(said,),
        state=UNSCREENED,
        source="squad",
        choices=choices_of(record),
        meta={"true_answer": true},
    )
