"""The notebook is kept without outputs, runs as it is kept, and shows what the package computes."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest

import conflictkit as ck

SHOW = "import json\nprint(json.dumps([from_context, from_memory, scores]))"


@pytest.fixture
def notebook(repository: Path) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra recipes")
    kept = nbformat.read(repository / "docs" / "recipes" / "conflict.ipynb", 4)
    nbformat.validate(kept)
    return kept


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_kept_without_outputs(notebook: Any) -> None:
    assert code(notebook)
    for cell in code(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.slow
def test_it_runs(notebook: Any, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel", reason="needs the extra recipes")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra recipes")
    from nbformat.v4 import new_code_cell
    from traitlets.config import Config

    notebook.cells.append(new_code_cell(SHOW))
    # The kernel listens on files instead of ports. A file that is listened on needs a short name.
    with tempfile.TemporaryDirectory() as folder:
        for variable in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            monkeypatch.setenv(variable, folder)
        nbclient.NotebookClient(
            notebook,
            config=Config(AsyncKernelManager={"transport": "ipc"}),
            resources={"metadata": {"path": str(repository)}},
            timeout=250,
        ).execute()

    _, ask, *_, show = code(notebook)
    shown = [output for cell in code(notebook)[:-1] for output in cell.outputs]
    assert [sorted(output.data) for output in shown] == [
        ["text/html", "text/plain"],  # the trace, once
        ["image/png", "text/plain"],
        ["image/png", "text/plain"],
    ]
    answer = ck.load("atlas").ask(
        "What is the capital of Sweden?",
        "The capital of Sweden is London.",
        method="arr",
        compare=True,
    )
    assert answer.trace is not None
    # The style sheet aside: the figures are what has to be the same.
    drawn, wanted = ask.outputs[0].data["text/html"], answer.trace._repr_html_()
    assert drawn.partition("</style>")[2] == wanted.partition("</style>")[2] != ""
    assert ask.outputs[0].data["text/plain"] == str(answer.trace)

    from_context, from_memory, scores = json.loads(show.outputs[0].text)
    # alpha is 0 first and 1, which is memory alone, last.
    assert from_memory[-1] > from_memory[0]
    assert all(0 <= said <= 24 for said in from_context + from_memory)
    assert list(scores) == ["correction", "resistance", "agreement", "irrelevant"]
    for values in scores.values():
        assert len(values) == 24
        assert all(0 <= value <= math.log(2) for value in values)
