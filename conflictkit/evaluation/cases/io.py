"""Cases as JSON lines: read, checked, written, and a hash that says whether two lists are one.

A line is one `conflictkit.types.Case`, its fields under their own names. `id`, `question` and
`state` have to be there. What a state needs is checked too: an evaluation that ran on half a case
would give a number all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conflictkit.errors import EmptyInputError, InvalidParameterError, OutputError, RowError
from conflictkit.errors import unknown_name as unknown
from conflictkit.scoring.disk import json_line, put
from conflictkit.scoring.reading import JsonlSource, Place, check_file
from conflictkit.scoring.rows import BadRow, Malformed, kind, text
from conflictkit.states import ALL, STATES, UNSCREENED
from conflictkit.types import Case

SPLITS = ("train", "validation", "test")
ORDER = (
    "id", "source", "split", "relation", "subject", "question", "contexts", "context_kind",
    "memory_answers", "context_answers", "gold_answers", "state", "choices", "prompt",
    "memory_prompt", "aligned", "meta",
)  # fmt: skip
_LABELS = ("source", "relation", "subject", "context_kind")
LISTS = ("contexts", "memory_answers", "context_answers", "gold_answers", "choices")
_CONFLICTS = STATES[:3]


def read_cases(path: str | os.PathLike[str]) -> list[Case]:
    """The cases of a JSON lines file, in its order.

    Raises:
        InvalidParameterError: there is no such file, or it cannot be read.
        RowError: a line that is no case; the message names file, line and field.
        EmptyInputError: a file without any line.
    """
    name = os.fspath(path)
    check_file(name)
    cases, lines = [], []
    for row, place in JsonlSource(name, _CaseReader()).rows(Place()):
        if isinstance(row, BadRow):
            raise RowError(where(name, row.line, row.field, row.reason))
        cases.append(row)
        lines.append(place.line)
    if not cases:
        raise EmptyInputError(f"there are no cases in '{name}'")
    first: dict[str, int] = {}
    for case, line in zip(cases, lines, strict=True):
        if case.id in first:
            reason = f"'{case.id}' is the id of line {first[case.id]} already"
            raise RowError(where(name, line, "id", reason))
        first[case.id] = line
    return cases


def write_cases(path: str | os.PathLike[str], cases: Iterable[Case]) -> None:
    """Write cases as JSON lines; an old file is replaced in one move. `read_cases` gives them back.

    Raises:
        InvalidParameterError: something that is no case, two cases with one id, or no case at all.
        OutputError: the file cannot be written.
    """
    lines: dict[str, bytes] = {}
    for case in cases:
        data = as_dict(case)
        if case.id in lines:
            raise InvalidParameterError(f"two cases have the id {case.id!r}")
        lines[case.id] = json_line(data)
    if not lines:
        raise InvalidParameterError(f"there are no cases to write to '{os.fspath(path)}'")
    try:
        put(Path(path), b"".join(lines.values()))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write '{os.fspath(path)}': {reason}") from error


def cases_hash(cases: Sequence[Case]) -> str:
    """SHA-256 of the cases, in their order, as canonical JSON: 64 hexadecimal digits.

    Raises:
        InvalidParameterError: something that is no case.
    """
    digest = hashlib.sha256()
    for case in cases:
        line = json.dumps(as_dict(case), sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def as_dict(case: Case) -> dict[str, Any]:
    """The case as plain data, ready for JSON.

    Raises:
        InvalidParameterError: something that is no case, or a field that no file could give back.
    """
    if not isinstance(case, Case):
        raise InvalidParameterError(f"expected a Case, not {type(case).__name__}")
    data: dict[str, Any] = {name: getattr(case, name) for name in ORDER}
    data |= {name: list(data[name]) for name in LISTS}
    try:
        back = as_case(data)
        if back == case:
            return data
        name = next(name for name in ORDER if getattr(back, name) != getattr(case, name))
        fault = Malformed(name, "is not what a file would give back: is it plain data?")
    except Malformed as malformed:
        fault = malformed
    raise InvalidParameterError(f"case {case.id!r}, field '{fault.field}': {fault.reason}")


def as_case(values: Mapping[str, Any]) -> Case:
    """The case that plain data tells of.

    Raises:
        Malformed: a field that is missing, unknown, of the wrong type, or not what the state needs.
    """
    for name in values:
        if name not in ORDER:
            raise Malformed(name, str(unknown("field", name, ORDER)))
    for name in ("id", "question", "state"):
        if name not in values:
            raise Malformed(name, "is missing")
    given: dict[str, Any] = {name: text(name, values[name]) for name in ("id", "question")}
    given["state"] = _one_of("state", values["state"], ALL)
    given["split"] = _one_of("split", values.get("split", "test"), SPLITS)
    given |= {name: _label(name, values.get(name, "")) for name in _LABELS}
    given |= {name: _texts(name, values.get(name, [])) for name in LISTS}
    given |= {
        name: None if values.get(name) is None else text(name, values[name])
        for name in ("prompt", "memory_prompt")
    }
    given["aligned"] = values.get("aligned", True)
    if not isinstance(given["aligned"], bool):
        raise Malformed("aligned", f"must be true or false, not {kind(given['aligned'])}")
    given["meta"] = _meta(values.get("meta", {}))
    case = Case(**given)
    _check_whole(case)
    return case


def where(name: str, line: int, field: str | None, reason: str) -> str:
    """What is wrong, and where in a file."""
    return f"{name}, line {line}" + (f", field '{field}'" if field else "") + f": {reason}"


class _CaseReader:
    optional = ()

    def columns(self, file: str, found: Sequence[str]) -> list[str]:
        return list(found)

    def read(self, values: Mapping[str, Any], line: int) -> Case:
        return as_case(values)


def _one_of(name: str, value: Any, valid: Sequence[str]) -> str:
    if text(name, value) not in valid:
        raise Malformed(name, str(unknown(name, value, valid)))
    return value


def _label(name: str, value: Any) -> str:
    return value if value == "" else text(name, value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise Malformed(name, f"must be a list of texts, not {kind(value)}")
    return tuple(text(name, entry) for entry in value)


def _meta(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Malformed("meta", f"must be an object, not {kind(value)}")
    try:
        plain = json.dumps(value, ensure_ascii=False, allow_nan=False)
        plain.encode("utf-8")
        return json.loads(plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise Malformed("meta", f"must be plain JSON ({error})") from error


def _check_whole(case: Case) -> None:
    """Raise Malformed for fields that do not go together."""
    state = case.state
    closed = not case.contexts and case.prompt is None
    if state == "recall" and case.contexts:
        raise Malformed("contexts", "must be empty: 'recall' is asked closed book")
    if closed and state not in ("recall", UNSCREENED):
        raise Malformed("contexts", f"is empty: '{state}' is about a context")
    if not case.gold_answers and state not in ("irrelevant", UNSCREENED):
        raise Malformed("gold_answers", f"is empty: '{state}' needs to know what is true")
    if not case.context_answers and state in _CONFLICTS:
        raise Malformed("context_answers", f"is empty: in '{state}' the context gives an answer")
    if case.context_answers and state == "irrelevant":
        raise Malformed("context_answers", "must be empty: in 'irrelevant' the context gives none")
    if len(case.choices) == 1 or len(set(case.choices)) < len(case.choices):
        raise Malformed("choices", "must be two or more different answers, or none")
    if (case.prompt is None) != (case.memory_prompt is None):
        missing = "prompt" if case.prompt is None else "memory_prompt"
        raise Malformed(missing, "is missing: prompt and memory_prompt go together")
