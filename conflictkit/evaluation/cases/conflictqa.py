"""ConflictQA (Xie et al., "Adaptive Chameleon or Stubborn Sloth", ICLR 2024).

A file belongs to one model, whose answer, passage in support of it, counter-answer and passage in
support of that it holds. Every row gives one case: the counter-passage is the context,
`context_answers` the counter-answer, `memory_answers` the model's own, both sentences. `choices`
are memory, counter and "uncertain", as in the official multiple choice; the passage that agrees
with the model, and the evidence found for either side, are in `meta`.

The half from StrategyQA says whether the *question* is to be answered True or False, not which of
the two *sentences* is true: there `gold_answers` is empty, and `meta["ground_truth"]` keeps what
the file says. (Telling the sentences apart by their negation contradicts the files' own evidence in
4 and 7 rows of a hundred for two of three models looked at, so it is not done.) The benchmark
measures the memorisation ratio, which needs no truth. The cases are `unscreened`;
`meta["screened_for"]` names the model whose memory the file records.
"""

from __future__ import annotations

from conflictkit.evaluation.cases.records import Record, Table, open_table, split_of, unique
from conflictkit.states import UNSCREENED
from conflictkit.types import Case

UNCERTAIN = "uncertain"


def load(where: str) -> list[Case]:
    """The cases of one file, or of one configuration of the hub's data set.

    Raises:
        ConflictKitError: as `records.open_table`, and RowError for a row that is not as described.
    """
    table = open_table(where)
    return [_case(table, record) for record in table.records]


def _case(table: Table, record: Record) -> Case:
    memory, counter = record.text("memory_answer"), record.text("counter_answer")
    truth = record.texts("ground_truth")
    judged = set(truth) <= {"True", "False"}
    # conflictQA-strategyQA-llama2-7b
    parts = table.stem.split("-", 2)
    return Case(
        id=table.name_row(record),
        split=split_of(record.split),
        relation="",
        # The benchmark names no subject: questions stand for themselves.
        subject=record.text("question"),
        question=record.text("question"),
        contexts=(record.text("counter_memory"),),
        context_kind="counter",
        memory_answers=(memory,),
        context_answers=(counter,),
        gold_answers=() if judged else truth,
        state=UNSCREENED,
        source="conflictqa",
        choices=unique([memory, counter, UNCERTAIN]),
        meta={
            "screened_for": parts[2] if len(parts) == 3 else table.stem,
            "ground_truth": list(truth),
            **record.meta(
                "popularity",
                "parametric_memory",
                "parametric_memory_aligned_evidence",
                "counter_memory_aligned_evidence",
            ),
        },
    )
