"""Where cases come from: one name for each source, `NAME:WHERE`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from conflictkit import atlas
from conflictkit.errors import EmptyInputError, InvalidParameterError, RowError, unknown_name
from conflictkit.evaluation.cases import (
    conflictqa,
    counterfact,
    dynamicqa,
    faitheval,
    generic,
    paraconflict,
    squad,
    tristate,
)
from conflictkit.evaluation.cases.io import as_dict, read_cases
from conflictkit.evaluation.cases.records import exists
from conflictkit.types import Case

LOADERS: Mapping[str, Callable[[str], list[Case]]] = {
    "paraconflict": paraconflict.load,
    "dynamicqa": dynamicqa.load,
    "conflictqa": conflictqa.load,
    "tristate": tristate.load,
    "faitheval": faitheval.load,
    "squad": squad.load,
    "counterfact": counterfact.load,
    "generic": generic.load,
}
"""Source -> what reads its cases from a path or a hub id."""
SOURCES = ("atlas", *LOADERS)
_OUR_OWN = (".jsonl", ".ndjson")


def load_cases(spec: str) -> list[Case]:
    """The cases that `--cases SPEC` means.

    Args:
        spec: `atlas` (the test split, with its guards), `atlas:validation`, `NAME:PATH`,
            `NAME:OWNER/DATASET` or `NAME:OWNER/DATASET:CONFIG` for a source in `LOADERS`; or the
            path of a file: `.jsonl` in our own format, `.csv` as `generic`.

    Raises:
        UnknownNameError: no such source.
        InvalidParameterError: no such file or split, or no place named.
        RowError: a row that is not as its source has it; with file, line and field.
        EmptyInputError: no cases.
        HubError: a data set that cannot be loaded.
    """
    name, colon, where = spec.partition(":")
    if name == "atlas" and (colon or not exists(Path(spec))):
        split = where or "test"
        return [*atlas.cases(split), *atlas.guards(split)]
    if name in LOADERS and colon:
        if not where.strip():
            raise InvalidParameterError(f"'{spec}' names no file: type {name}:PATH")
        return _checked(spec, LOADERS[name](where))
    ending = Path(spec).suffix.lower()
    if ending in _OUR_OWN:
        return read_cases(spec)
    if ending == ".csv":
        return _checked(spec, generic.load(spec))
    if name in LOADERS:
        raise InvalidParameterError(f"'{name}' needs a place: type {name}:PATH")
    if spec and not colon and exists(Path(spec)):
        raise InvalidParameterError(
            f"cannot tell what '{spec}' holds: put the name of its source before it, "
            f"NAME:{spec}, one of {', '.join(LOADERS)}"
        )
    raise unknown_name("source of cases", name, SOURCES)


def _checked(spec: str, cases: list[Case]) -> list[Case]:
    """The cases, if there are any, ids are unique, and all could be written down as they are."""
    if not cases:
        raise EmptyInputError(f"there are no cases in '{spec}'")
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise RowError(f"{spec}: two cases have the id '{case.id}'")
        seen.add(case.id)
        as_dict(case)
    return cases
