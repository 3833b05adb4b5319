"""The figures of a report as CSV: one line for each figure, nothing rounded."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from conflictkit.evaluation.metrics.summary import METRICS
from conflictkit.evaluation.report.sources import Source
from conflictkit.evaluation.report.tables import DETECTION, LEVELS, group_of

COLUMNS = (
    "run", "model", "table", "row", "metric", "unit", "value", "low", "high", "n", "difference",
    "difference_low", "difference_high", "p", "note",
)  # fmt: skip
_CELL = ("value", "low", "high", "n", "difference", "difference_low", "difference_high", "p")
CURVES = ("run", "model", "detector", "level", "fpr", "tpr")


def figures(sources: Sequence[Source]) -> str:
    """All figures of all runs; `table` is the key of the table that shows them."""
    return _csv(COLUMNS, (row for source in sources for row in _rows(source)))


def files(sources: Sequence[Source]) -> dict[str, str]:
    """The same, one file per table, and the points of the ROC curves: file name -> content."""
    rows = [row for source in sources for row in _rows(source)]
    keys = dict.fromkeys(row["table"] for row in rows)
    found = {
        f"{key}.csv": _csv(COLUMNS, (row for row in rows if row["table"] == key)) for key in keys
    }
    points = [point for source in sources for point in _points(source)]
    if points:
        found["roc.csv"] = _csv(CURVES, points)
    return found


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    start = {"run": source.name, "model": source.run.info["model"]["name"]}
    summary = source.summary
    for label in summary.methods:
        for metric, (_, unit, *_) in METRICS.items():
            cell = summary.cells[label].get(metric)
            if cell is not None:
                yield start | {
                    "table": group_of(metric),
                    "row": label,
                    "metric": metric,
                    "unit": unit,
                    "note": cell.note,
                    **{name: getattr(cell, name) for name in _CELL},
                }
    for name, levels in summary.detection.items():
        for level, found in levels.items():
            n = found["n_conflict"] + found["n_agreement"]
            remarks = (f"{found['n_conflict']} with conflict", found["note"])
            shared = start | {"table": DETECTION, "row": name, "n": n}
            for measure in ("auroc", "auprc"):
                yield shared | {
                    "metric": f"{measure}_per_{level}",
                    "value": found[measure],
                    "low": found[f"{measure}_low"],
                    "high": found[f"{measure}_high"],
                    "note": "; ".join(remark for remark in remarks if remark),
                }


def _points(source: Source) -> Iterator[dict[str, Any]]:
    start = {"run": source.name, "model": source.run.info["model"]["name"]}
    for name, levels in source.summary.detection.items():
        for level in LEVELS:
            curve = levels.get(level, {}).get("curve")
            for fpr, tpr in zip(curve["fpr"], curve["tpr"], strict=True) if curve else ():
                yield start | {"detector": name, "level": level, "fpr": fpr, "tpr": tpr}


def _csv(columns: Sequence[str], rows: Any) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
