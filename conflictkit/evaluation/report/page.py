"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from conflictkit import __version__
from conflictkit.evaluation.metrics.summary import Summary
from conflictkit.evaluation.report import charts, detection, numbers
from conflictkit.evaluation.report.packing import packets
from conflictkit.evaluation.report.sources import Source, baselines
from conflictkit.evaluation.report.tables import DETECTION, comparison, tables
from conflictkit.trace.layout import STOPS
from conflictkit.trace.record import CALM, MAX_CONFLICT
from conflictkit.trace.style import STYLE
from conflictkit.trace.text import visible

_QUALITY = ("minimum", "harmonic", "exact_match")


def page(sources: Sequence[Source], *, traces: bool = True) -> str:
    """The page.

    Args:
        sources: the runs, in order.
        traces: put the token traces of all answers in; they are most of its size.

    Returns:
        HTML. Only its own script may run (its hash is in the policy), and nothing may be fetched.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("conflictkit.evaluation.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    script = _read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    settings = {
        "runs": len(sources),
        "calm": CALM,
        "most": MAX_CONFLICT,
        "stops": STOPS,
    }
    return environment.get_template("report.html").render(
        title="Evaluation report",
        policy=(
            f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=Markup(STYLE + _read("report.css")),
        script=Markup(script),
        settings=Markup(json.dumps(settings)),
        version=__version__,
        baseline=visible(baselines(sources)),
        level=numbers.LEVEL,
        listing=_listing,
        comparison=comparison(sources) if len(sources) > 1 else None,
        runs=[_run(place, source, traces) for place, source in enumerate(sources)],
    )


def _read(name: str) -> str:
    folder = resources.files("conflictkit.evaluation.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _listing(run: int, state: str, label: str) -> str:
    """Address of the cases behind a figure."""
    return "#" + urlencode({"run": run, "state": state, "method": label})


def _run(number: int, source: Source, traces: bool) -> dict[str, Any]:
    """What the template shows of a run."""
    index, blocks = packets(source.run, source.summary.match, traces=traces)
    drawn = _charts(source.summary)
    return {
        "number": number,
        "name": visible(source.name),
        "facts": [(name, visible(value)) for name, value in source.facts()],
        "tables": tables(source.summary),
        "charts": {key: [_marked(chart) for chart in found] for key, found in drawn.items()},
        "index": index,
        "blocks": blocks,
    }


def _marked(chart: charts.Chart) -> dict[str, Any]:
    from markupsafe import Markup

    return {
        "title": chart.title,
        "note": chart.note,
        "width": chart.width,
        "drawing": Markup(chart.drawing),
    }


def _charts(summary: Summary) -> Mapping[str, list[charts.Chart]]:
    """The charts that stand under each table."""
    measured = [name for name in _QUALITY if any(name in row for row in summary.cells.values())]
    cost = charts.cost(summary, measured[0]) if measured else None
    found = {
        "states": [charts.plane(summary), cost],
        "sources": charts.all_curves(summary),
        DETECTION: detection.charts(summary),
    }
    return {key: [chart for chart in some if chart is not None] for key, some in found.items()}
