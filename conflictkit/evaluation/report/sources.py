"""The runs that a report shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conflictkit.errors import InvalidParameterError, OutputError
from conflictkit.evaluation.folder import Run, load_run
from conflictkit.evaluation.metrics.summary import Summary


@dataclass(frozen=True)
class Source:
    """A finished run under the name that the report gives it.

    Attributes:
        name: unique among the runs of a report.
        run: the run.
        summary: its figures.
    """

    name: str
    run: Run
    summary: Summary

    def facts(self) -> list[tuple[str, str]]:
        """What was run, as (what, value) for people."""
        info = self.run.info
        model, cases, options = info["model"], info["cases"], info["options"]
        states = ", ".join(f"{count:,} {state}" for state, count in cases["states"].items())
        told = ", ".join(
            f"{name} {value}"
            for name, value in options.items()
            if isinstance(value, int | float | str) and not isinstance(value, bool)
        )
        weights = f"{model['parameters']:,} weights, {model['dtype']}, {model['device']}"
        found = [
            ("model", f"{model['name']} ({model['class']}, {weights})"),
            ("weights", str(model["fingerprint"])[:12]),
            ("cases", f"{cases['spec'] or 'given in Python'}, n = {cases['count']:,}: {states}"),
            ("cases' hash", str(cases["hash"])[:12]),
            ("options", told),
            ("versions", ", ".join(f"{name} {v}" for name, v in info["versions"].items())),
            ("finished", str(info["finished"])),
        ]
        if self.run.errors:
            reasons = dict.fromkeys(aside.error for aside in self.run.errors)
            count = len(self.run.errors)
            found.append(("not asked", f"{count:,} cases ({', '.join(reasons)})"))
        return found


def read(folders: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """The runs in these folders.

    Raises:
        InvalidParameterError: no folder, or one twice.
        OutputError: a folder without a run, or with one that is not finished.
        RowError: a run's cases are damaged.
    """
    if not folders:
        raise InvalidParameterError("a report needs at least one run: name its folder")
    places = [Path(folder) for folder in folders]
    found = []
    for place, name in zip(places, _names(places), strict=True):
        run = load_run(place)
        summary = run.summary
        if summary is None:
            raise OutputError(
                f"the run in '{place}' is not finished: give its 'conflictkit evaluate' command "
                "again, and it goes on"
            )
        found.append(Source(name, run, summary))
    return found


def baselines(sources: Sequence[Source]) -> str:
    """What the runs' methods are compared with; empty: no run holds its baseline."""
    summaries = [source.summary for source in sources]
    return " or ".join(dict.fromkeys(one.baseline for one in summaries if one.compared))


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [place.resolve() for place in places]
    for place in whole:
        if whole.count(place) > 1:
            raise InvalidParameterError(f"the run '{place}' is given twice")
    length = 1
    while len({place.parts[-length:] for place in whole}) < len(whole):
        length += 1
    return ["/".join(place.parts[-length:]) for place in whole]
