"""Questions with their answers, from any file: what conflicts are made of.

A row has a question and its answers, and may have what else is known of it:

| column | holds |
|---|---|
| `question` | the question |
| `answer` or `answers` | the answer, or a list whose further entries are other names of it (in CSV: a JSON list) |
| `id` | what it is called; by default its number |
| `subject`, `relation` | what is asked about |
| `type` | the kind of thing that answers it (`city`, `year`, ...) |
| `popularity` | a number: the larger, the better known the answer is |
| `passage` | a passage that gives the answer |
| `split` | `train`, `validation` or `test` |
"""  # noqa: E501

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conflictkit.errors import RowError
from conflictkit.evaluation.cases.io import SPLITS
from conflictkit.evaluation.cases.records import Record, open_table

ANSWER_COLUMNS = ("answers", "answer")
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_YEAR = re.compile(r"(1\d|20)\d\d")
_DATE = re.compile(
    rf"(?i)(?=.*\d).*\b(?:{_MONTHS})[a-z]*\b.*|\d{{4}}-\d\d?-\d\d?|\d+(?:st|nd|rd|th) century"
)
_NUMBER = re.compile(r"[^\w\s]{0,2}\d[\d.,\s]*(?:%|\w{0,3}|[a-z]+)")
_NAME = re.compile(r"(?:[^\W\d_][\w.'’-]*)")
_PARTICLES = frozenset(
    {"van", "von", "de", "der", "den", "da", "di", "du", "la", "le", "bin", "al", "el"}
)


@dataclass(frozen=True)
class Question:
    """One question that can be answered in a few words.

    Attributes:
        id: unique within its collection.
        question: what is asked.
        answers: names of the true answer; the first is the one that passages use.
        subject, relation: what it asks about; empty where unknown.
        type: the kind of thing that answers it; empty where unknown.
        popularity: how well known the answer is, larger is better known; None: unknown.
        passage: a passage that gives the answer, if there is one.
        split: `train`, `validation` or `test`.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    subject: str = ""
    relation: str = ""
    type: str = ""
    popularity: float | None = None
    passage: str | None = None
    split: str = "test"

    @property
    def kind(self) -> str:
        """What an answer that could stand in its place has to share: the type, else the relation,
        else what the answer looks like."""
        return self.type or self.relation or shape(self.answers[0])


def shape(answer: str) -> str:
    """What an answer looks like: `number`, `date`, `person` (two to four capitalised words; some
    places and works look the same) or `other`."""
    text = answer.strip()
    if _YEAR.fullmatch(text) or _DATE.fullmatch(text):
        return "date"
    if _NUMBER.fullmatch(text):
        return "number"
    words = text.split()
    names = [word for word in words if word.lower() not in _PARTICLES]
    if (
        2 <= len(names) <= 4
        and words[0] not in ("The", "A", "An")
        and all(_NAME.fullmatch(name) and name[0].isupper() for name in names)
    ):
        return "person"
    return "other"


def read_questions(source: str | os.PathLike[str]) -> list[Question]:
    """The questions of a `.jsonl`, `.json`, `.csv` or `.parquet` file, or of a hub id.

    Raises:
        InvalidParameterError: no such file, or one that cannot be read.
        RowError: a row without question or answer, or with a value of the wrong type; the message
            names file, line and field.
        EmptyInputError: no rows.
        HubError: the data set cannot be loaded.
    """
    table = open_table(os.fspath(source))
    seen: dict[str, Record] = {}
    found = []
    for record in table.records:
        question = _question(record)
        if question.id in seen:
            raise record.error(
                "id", f"'{question.id}' is taken already ({seen[question.id].place})"
            )
        seen[question.id] = record
        found.append(question)
    return found


def collection(source: str | os.PathLike[str]) -> str:
    """What cases from this file call their source."""
    return Path(os.fspath(source)).stem


def _question(record: Record) -> Question:
    split = record.text("split", "test")
    if split not in SPLITS:
        raise record.error("split", f"must be one of {', '.join(SPLITS)}, not '{split}'")
    labels = {name: record.text(name, "") for name in ("subject", "relation", "type")}
    return Question(
        id=_id(record),
        question=record.text("question"),
        answers=_answers(record),
        popularity=_popularity(record),
        passage=record.text("passage", "") or None,
        split=split,
        **labels,
    )


def _answers(record: Record) -> tuple[str, ...]:
    given = [name for name in ANSWER_COLUMNS if record.values.get(name) not in (None, "")]
    if len(given) == 2:
        raise record.error("answer", "is given beside 'answers': keep one of them")
    return record.texts(given[0] if given else _missing(record))


def _missing(record: Record) -> str:
    return next((name for name in ANSWER_COLUMNS if name in record.values), "answers")


def _id(record: Record) -> str:
    value = record.values.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return record.text("id", f"q{record.number + 1}")


def _popularity(record: Record) -> float | None:
    value = record.values.get("popularity")
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _no_number(record, value)
    return number


def _no_number(record: Record, value: object) -> RowError:
    return record.error("popularity", f"must be a number, not {value!r}")


def kinds(questions: Sequence[Question]) -> list[str]:
    """The kinds of answers among the questions, in order of appearance."""
    return list(dict.fromkeys(question.kind for question in questions))
