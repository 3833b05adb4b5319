"""The page about the metrics says what the code says."""

from __future__ import annotations

from pathlib import Path

from conflictkit.evaluation.metrics import METRICS
from conflictkit.evaluation.metrics.rates import TERMS
from conflictkit.evaluation.metrics.text import MATCHES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def metric_table() -> str:
    lines = ["| name | title | unit | better | what it is |", "|---|---|---|---|---|"]
    for name, metric in METRICS.items():
        better = metric.better or "–"
        cells = (f"`{name}`", metric.title, metric.unit, better, metric.explanation)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def match_table() -> str:
    lines = ["| match | an answer gives a target if |", "|---|---|"]
    lines += [f"| `{name}` | {match.summary} |" for name, match in MATCHES.items()]
    return "\n".join(lines)


def test_the_tables_are_the_codes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in (metric_table(), match_table()):
        assert table in page, f"the table should read:\n\n{table}\n"


def test_every_metric_has_its_terms_and_says_which_way_is_better() -> None:
    assert set(METRICS) == set(TERMS) | {"minimum", "harmonic"}
    for name, metric in METRICS.items():
        assert metric.better in ("higher", "lower", ""), name
        assert metric.title, name
        assert metric.explanation, name
        assert "|" not in metric.explanation, name
