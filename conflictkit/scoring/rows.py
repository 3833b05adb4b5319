"""A row to score, and what makes one malformed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from conflictkit.errors import InvalidParameterError, RowError

T_co = TypeVar("T_co", covariant=True)


class Reader(Protocol[T_co]):
    """What makes something of the columns of a file, row by row."""

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns in which an empty cell of a CSV file says that there is no value."""
        ...

    def columns(self, file: str, found: Sequence[str]) -> list[str]:
        """Which of the columns found in `file` to read.

        Raises:
            InvalidParameterError: one that is needed is not there, or there twice.
        """
        ...

    def read(self, values: Mapping[str, Any], line: int) -> T_co:
        """What the row on `line` says.

        Raises:
            Malformed: a value that is missing, empty or of the wrong type.
        """
        ...


@dataclass(frozen=True)
class Row:
    """One question with its passages.

    Attributes:
        question: what is asked.
        contexts: the passages, in order; at least one.
        answer: the answer to score; None: the one that the model writes.
        id: what the row is called, if anything.
        line: where it stands in its file, counted from 1 (in Parquet files: its number).
    """

    question: str
    contexts: tuple[str, ...]
    answer: str | None = None
    id: str | int | None = None
    line: int | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be scored.

    Attributes:
        line: as in `Row`.
        field: the column at fault; None: the whole row.
        reason: what is wrong with it.
        raw: the row as it was read; the beginning of it, if it is very long.
    """

    line: int
    field: str | None
    reason: str
    raw: str

    def __post_init__(self) -> None:
        for name in ("field", "reason", "raw"):
            value = getattr(self, name)
            if value is not None:  # JSON can spell half a character, which no file can hold
                whole = value.encode("utf-8", errors="backslashreplace").decode()
                object.__setattr__(self, name, whole)

    def error(self, path: str) -> RowError:
        """The error that names file, line and field."""
        where = f"{path}, line {self.line}" + (f", field '{self.field}'" if self.field else "")
        return RowError(
            f"{where}: {self.reason}: mend the row, or set such rows aside with on_error='skip' "
            "(command line: --on-error skip); the rows before it are kept"
        )


@dataclass(frozen=True)
class Fields:
    """Which columns hold what.

    Attributes:
        question, context: must be there.
        answer, id: None: the columns `answer` and `id`, in rows that have them; a column that is
            named here must be in every row.

    Raises:
        InvalidParameterError: a name that is empty, given twice, or no valid text.
    """

    question: str = "question"
    context: str = "context"
    answer: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        names = self.names
        for name in names:
            if not isinstance(name, str) or not name:
                raise InvalidParameterError(f"a field must be the name of a column, not {name!r}")
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise InvalidParameterError(f"the field {name!r} is not valid text") from error
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidParameterError(f"two fields are read from the column '{twice}'")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of question, context, answer and id."""
        return (self.question, self.context, self.answer or "answer", self.id or "id")

    @property
    def optional(self) -> tuple[str, ...]:
        """The columns of answer and id."""
        return self.names[2:]

    def columns(self, file: str, found: Sequence[str]) -> list[str]:
        """Those of the four columns that a file has.

        Raises:
            InvalidParameterError: one that is needed is not there, or there twice.
        """
        wanted = {"question": self.question, "context": self.context}
        wanted |= {"answer": self.answer or "", "id": self.id or ""}
        for what, column in wanted.items():
            if column and column not in found:
                raise InvalidParameterError(
                    f"'{file}' has no column '{column}' (it has {', '.join(found) or 'none'}): "
                    f"name the one to use with Fields({what}=...) (command line: --{what}-field)"
                )
        for name in self.names:
            if list(found).count(name) > 1:
                raise InvalidParameterError(f"'{file}' has two columns '{name}'")
        return [name for name in self.names if name in found]

    def read(self, values: Mapping[str, Any], line: int) -> Row:
        """A row from the values of its columns.

        Raises:
            Malformed: a value that is missing, empty or of the wrong type.
        """
        question, context, answer, name = self.names
        for field in (question, context, *(f for f in (self.answer, self.id) if f)):
            if field not in values:
                raise Malformed(field, "is missing")
        return Row(
            question=text(question, values[question]),
            contexts=_passages(context, values[context]),
            answer=_answer(answer, values.get(answer)),
            id=_id(name, values.get(name)),
            line=line,
        )


class Malformed(Exception):
    """What is wrong with a row; never leaves the package."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason


def text(field: str, value: Any) -> str:
    """A text that says something, as it stands.

    Raises:
        Malformed: anything else.
    """
    if value is None:
        raise Malformed(field, "is empty")
    if not isinstance(value, str):
        raise Malformed(field, f"must be text, not {kind(value)}")
    if not value.strip():
        raise Malformed(field, "is empty")
    if "\0" in value:
        raise Malformed(field, "holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Malformed(field, f"is not valid text ({error.reason})") from error
    return value


def _passages(field: str, value: Any) -> tuple[str, ...]:
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise Malformed(field, "is empty: without a context there is nothing to compare")
    if isinstance(value, list | tuple):
        return tuple(text(field, passage) for passage in value)
    if not isinstance(value, str):
        raise Malformed(field, f"must be text or a list of texts, not {kind(value)}")
    return (text(field, value),)


def _answer(field: str, value: Any) -> str | None:
    return None if value is None else text(field, value)


def _id(field: str, value: Any) -> str | int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise Malformed(field, f"must be text or a whole number, not {kind(value)}")
    return text(field, value)


def kind(value: Any) -> str:
    """What to call a value of JSON in a message."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    names |= {dict: "an object", list: "a list", tuple: "a list"}
    return names.get(type(value), type(value).__name__)
