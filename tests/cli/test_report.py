"""`conflictkit report`: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conflictkit.evaluation.metrics.summary import summarise
from conflictkit.evaluation.record import Cost, Result
from conflictkit.evaluation.report import figures, markdown, page, read
from conflictkit.types import Case
from tests.cli.conftest import Run
from tests.evaluation.report import runs

CITIES = {"Poland": "Warsaw", "Chile": "Santiago", "Kenya": "Nairobi", "Japan": "Tokyo"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two methods on four cases, without a model."""
    cases = [
        Case(land, "test", "capital", land, f"The capital of {land}?", ("It is Riga.",), "bare",
             (city,), ("Riga",), (city,), "resistance")
        for land, city in CITIES.items()
    ]  # fmt: skip
    cost = Cost(forwards=2, context_tokens=9, memory_tokens=4, seconds=0.1, cache_bytes=0)
    token = {
        **{"text": " Riga", "id": 5, "scores": {"jsd": 0.4}},
        **{"context_weight": 1.0, "memory_weight": 0.0},
        **{"context_top": [[" Riga", 0.9]], "memory_top": [[" Warsaw", 0.8]]},
    }
    results = [
        Result(case.id, method, answer, (5,), "eos", -0.5, cost, tokens=[token])
        for method in ("plain", "memory")
        for case in cases
        for answer in ["Riga" if method == "plain" else case.gold_answers[0]]
    ]
    place = tmp_path_factory.mktemp("runs") / "first"
    return runs.write(place, cases, results, summarise(cases, results, resamples=200).to_dict())


def test_it_writes_what_it_is_asked_for(run: Run, folder: Path, tmp_path: Path) -> None:
    html, text, table = tmp_path / "r.html", tmp_path / "r.md", tmp_path / "r.csv"
    code, out, err = run("report", folder, "--html", html, "--markdown", text, "--csv", table)
    assert (code, out.split(), err) == (0, [str(html), str(text), str(table)], "")
    sources = read([folder])
    assert html.read_text(encoding="utf-8") == page(sources)
    assert text.read_text(encoding="utf-8") == markdown(sources)
    assert table.read_text(encoding="utf-8") == figures(sources)


def test_without_a_file_it_prints_the_tables(run: Run, folder: Path) -> None:
    code, out, err = run("report", folder)
    assert (code, out, err) == (0, markdown(read([folder])), "")
    assert "| memory | 100.0" in out


def test_csv_into_a_folder_is_one_file_per_table(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("report", folder, "--csv", tmp_path / "tables")
    assert code == 0
    found = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert found == sorted(Path(line).name for line in out.splitlines())
    assert "states.csv" in found
    with (tmp_path / "tables" / "states.csv").open(encoding="utf-8") as file:
        rows = {(row["row"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    assert rows == {("plain", "resistance"): "0.0", ("memory", "resistance"): "1.0"}


def test_json_holds_the_summaries(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("report", folder, "--json", "--html", tmp_path / "r.html")
    assert code == 0
    data = json.loads(out)
    assert data["written"] == [str(tmp_path / "r.html")]
    (one,) = data["runs"]
    assert one["name"] == "first"
    assert one["run"]["methods"] == ["plain", "memory"]
    assert one["summary"]["cells"]["memory"]["resistance"]["value"] == 1.0


def test_without_traces_the_page_is_smaller(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("report", folder, "--html", tmp_path / "a.html").code == 0
    assert run("report", folder, "--html", tmp_path / "b.html", "--no-traces").code == 0
    sizes = [(tmp_path / name).stat().st_size for name in ("a.html", "b.html")]
    assert sizes[1] < sizes[0]


def test_bad_input_is_one_line(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    assert "there is no run in" in refused("report", tmp_path)
    assert "given twice" in refused("report", folder, folder)
    assert "Missing argument" in refused("report")
    assert "there is no folder" in refused("report", folder, "--html", tmp_path / "no" / "r.html")
    assert "--html" in refused("report", folder, "--no-traces")
    (tmp_path / "file").touch()
    assert "neither" in refused("report", folder, "--csv", tmp_path / "file")
    same = tmp_path / "same.csv"
    assert "same name" in refused("report", folder, "--csv", same, "--markdown", same)
    assert not same.exists()


def test_an_unfinished_run_is_refused(
    refused: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        if file.name != "summary.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert "not finished" in refused("report", tmp_path, "--html", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
