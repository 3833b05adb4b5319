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


NOTEBOOKS = (
    "recipes/conflict.ipynb",
    "notebooks/heads.ipynb",
    "notebooks/representations.ipynb",
)


def load(repository: Path, name: str) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra recipes")
    kept = nbformat.read(repository / "docs" / name, 4)
    nbformat.validate(kept)
    return kept


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any, repository: Path, show: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run it in a kernel of its own, with one cell more; what that prints."""
    pytest.importorskip("ipykernel", reason="needs the extra recipes")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra recipes")
    from nbformat.v4 import new_code_cell
    from traitlets.config import Config

    notebook.cells.append(new_code_cell(show))
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
    return json.loads(code(notebook)[-1].outputs[0].text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_kept_without_outputs(name: str, repository: Path) -> None:
    cells = code(load(repository, name))
    assert cells
    for cell in cells:
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.slow
def test_the_conflict_notebook(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = load(repository, NOTEBOOKS[0])
    from_context, from_memory, scores = execute(notebook, repository, SHOW, monkeypatch)
    _, ask, *_ = code(notebook)
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

    # alpha is 0 first and 1, which is memory alone, last.
    assert from_memory[-1] > from_memory[0]
    assert all(0 <= said <= 24 for said in from_context + from_memory)
    assert list(scores) == ["correction", "resistance", "agreement", "irrelevant"]
    for values in scores.values():
        assert len(values) == 24
        assert all(0 <= value <= math.log(2) for value in values)


@pytest.mark.slow
def test_the_heads_notebook(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly", reason="needs the extra viz")
    notebook = load(repository, NOTEBOOKS[1])
    show = """import json
known = model.model(torch.tensor([prompt.ids])).logits[0, -1]
said = [answer.memory_answer, answer.text, flipped.plain_answer, flipped.text]
print(json.dumps([said, chosen, [curves[place][factors.index(1)] for place in candidates],
                  (known[first[0]] - known[first[1]]).item()]))"""
    said, chosen, at_one, plain = execute(notebook, repository, show, monkeypatch)
    # The context wins, one head is turned, memory wins.
    assert said == ["Stockholm", "Oslo", "Oslo", "Stockholm"]
    assert chosen.startswith("head-scale?heads=")
    assert at_one == [plain] * 5
    shown = [sorted(one.get("data", ())) for cell in code(notebook)[:-1] for one in cell.outputs]
    assert sum("text/html" in kinds for kinds in shown) == 5  # two traces, three drawings
    assert sum("image/png" in kinds for kinds in shown) == 1


@pytest.mark.slow
def test_the_representations_notebook(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs the extra probes")
    notebook = load(repository, NOTEBOOKS[2])
    show = """import json
said = [answer.memory_answer, answer.text, flipped.plain_answer, flipped.text]
areas = {name: [score.auroc for score in found.scores] for name, found in probed.items()}
print(json.dumps([said, areas, len(report.features)]))"""
    said, areas, features = execute(notebook, repository, show, monkeypatch)
    memory, plain, before, after = said
    assert before == plain != after
    assert {memory, "London"} == {plain, after}
    assert all(len(curve) == 6 and all(0 <= one <= 1 for one in curve) for curve in areas.values())
    assert 2 <= features <= 4
    shown = [sorted(one.get("data", ())) for cell in code(notebook)[:-1] for one in cell.outputs]
    assert sum("text/html" in kinds for kinds in shown) == 2  # the features, the trace
    assert sum("image/png" in kinds for kinds in shown) == 1
