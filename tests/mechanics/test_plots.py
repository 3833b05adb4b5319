"""Drawings: what they hold, that they fetch nothing, and that no text of a model can act."""

from __future__ import annotations

import builtins
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from conflictkit.errors import InvalidParameterError, OutputError, UnsupportedError
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.mechanics.lens import LogitLens, logit_lens
from conflictkit.mechanics.plots import (
    Plot,
    attention_of,
    attention_pattern,
    head_map,
    lens_chart,
)
from tests.anatomy import families

HOSTILE = "</script><script>alert(1)</script>"
SHOWN = "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;"


def ranking(**given: Any) -> HeadRanking:
    fields: dict[str, Any] = {
        "by": "path-patching",
        "model": "tiny",
        "fingerprint": "0" * 64,
        "cases": 9,
        "cases_hash": "0" * 64,
        "scores": {
            "context": [[0.3, -0.1, 0.2], [-0.2, 0.0, 0.1]],
            "memory": [[0.1, -0.2, 0.6], [-0.1, 0.4, 0.1]],
        },
        "errors": {"context": [[0.01] * 3] * 2, "memory": [[0.02] * 3] * 2},
    }
    return HeadRanking(**fields | given)


LENS = LogitLens(
    (1, 2),
    torch.tensor([[40, 7], [3, 2], [1, 5]]),
    torch.tensor([[-9.0, -2.0], [-1.0, -0.9], [-0.1, -3.0]]),
    torch.tensor([0, 0, 1]),
)


@pytest.fixture
def plotly() -> None:
    pytest.importorskip("plotly", reason="needs the extra viz")


@pytest.mark.usefixtures("plotly")
def test_a_head_has_the_colour_of_its_larger_score() -> None:
    figure = head_map(ranking()).figure
    (cells,) = figure.data
    wanted = torch.tensor([[0.3, 0.0, -0.6], [0.0, -0.4, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(cells.z, dtype=torch.float64), wanted)
    assert (cells.zmin, cells.zmax) == (-0.6, 0.6)
    assert cells.text[0][2] == (
        "<b>layer 0, head 2</b><br>context +0.2000 ± 0.0100<br>memory +0.6000 ± 0.0200"
    )
    assert figure.layout.title.text == "tiny: heads by path-patching, 9 cases"


@pytest.mark.usefixtures("plotly")
def test_an_analysis_without_memory_has_one_colour() -> None:
    made = ranking(scores={"context": [[0.0, 0.5]]}, errors={})
    (cells,) = head_map(made).figure.data
    assert (cells.zmin, cells.zmax) == (0, 0.5)
    assert list(cells.colorbar.ticktext) == ["0", "context 0.500"]
    assert cells.text[0][1] == "<b>layer 0, head 1</b><br>context +0.5000"
    assert head_map(ranking(scores={"context": [[0.0]]}, errors={})).figure.data[0].zmax == 1


@pytest.mark.usefixtures("plotly")
def test_an_attention_pattern_marks_the_context() -> None:
    weights = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]])
    plot = attention_pattern(weights, ["a", "a", HOSTILE], span=(1, 2), title="layer 1, head 2")
    (cells,) = plot.figure.data
    # Two tokens with the same text are two places, and the future is empty.
    assert [list(row) for row in cells.z] == [
        [1, None, None],
        [0.25, 0.75, None],
        [0.5, 0.25, 0.25],
    ]
    assert list(plot.figure.layout.xaxis.tickvals) == [0, 1, 2]
    assert list(plot.figure.layout.yaxis.ticktext)[:2] == ["a", "a"]
    assert cells.text[1][0] == "a → a<br>25.0 %"
    (mark,) = plot.figure.layout.shapes
    assert (mark.x0, mark.x1) == (0.5, 1.5)
    assert plot.figure.layout.annotations[0].text == "context"
    assert attention_pattern(weights, "abc").figure.layout.shapes == ()


@pytest.mark.usefixtures("plotly")
def test_a_lens_chart_has_a_logarithmic_axis_with_rank_one_on_top() -> None:
    figure = lens_chart(LENS, ("London", "Warsaw")).figure
    context, memory = figure.data
    assert (context.name, list(context.y)) == ("London", [40, 3, 1])
    assert (memory.name, list(memory.y)) == ("Warsaw", [7, 2, 5])
    assert figure.layout.yaxis.type == "log"
    low, high = figure.layout.yaxis.range
    assert low > high  # upside down
    assert context.hovertext[2] == "London<br>after layer 2: rank 1<br>90.48 %"


def drawings() -> list[Plot]:
    weights = torch.eye(2)
    return [
        head_map(ranking(model=HOSTILE, by=HOSTILE)),
        attention_pattern(weights, [HOSTILE, "\u202e\x00"], span=(0, 1), title=HOSTILE),
        lens_chart(LENS, (HOSTILE, "&lt;b&gt;<b>"), title=HOSTILE),
    ]


@pytest.mark.usefixtures("plotly")
@pytest.mark.parametrize("number", range(3))
def test_no_text_can_act_and_nothing_is_fetched(number: int, tmp_path: Path) -> None:
    plot = drawings()[number]
    page = plot.html()
    assert "default-src 'none'" in page
    assert "alert(1)</script>" not in page.lower()
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=", page) == []
    # What plotly reads as HTML inside labels holds the text escaped.
    inside = str(plot.figure.to_dict())
    assert "<script" not in inside
    assert "&lt;/script" in inside
    assert "\u202e" not in inside
    fragment = plot._repr_html_()
    assert "<html" not in fragment.lower()[:500]
    assert "Plotly.newPlot" in fragment
    plot.write(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.usefixtures("plotly")
def test_an_entity_in_a_text_is_shown_as_it_stands() -> None:
    assert lens_chart(LENS, ("&lt;b&gt;", "x")).figure.data[0].name == "&amp;lt;b&amp;gt;"
    assert lens_chart(LENS, (HOSTILE, "x")).figure.data[0].name == SHOWN


@pytest.mark.usefixtures("plotly")
def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match=r"the 2 tokens need \[2, 2\]"):
        attention_pattern(torch.eye(3), ["a", "b"])
    for span in ((0, 3), (1, 1), (-1, 1)):
        with pytest.raises(InvalidParameterError, match="is no part of 2 tokens"):
            attention_pattern(torch.eye(2), ["a", "b"], span=span)
    with pytest.raises(InvalidParameterError, match="1 labels for 2 tokens"):
        lens_chart(LENS, ("a",))
    with pytest.raises(OutputError, match="cannot write"):
        lens_chart(LENS).write(tmp_path / "none" / "page.html")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **named: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *args, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for draw in (
        lambda: head_map(ranking()),
        lambda: attention_pattern(torch.eye(1), ["a"]),
        lambda: lens_chart(LENS),
    ):
        with pytest.raises(UnsupportedError, match=r'pip install "conflictkit\[viz\]"'):
            draw()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_attention_of_a_head_is_the_models(family: str) -> None:
    model, ids = families.model(family), families.tokens()[0].tolist()
    kernel = model.config._attn_implementation
    seen = attention_of(model, ids, 1, 2)
    assert model.config._attn_implementation == kernel
    torch.testing.assert_close(seen.sum(-1), torch.ones(len(ids)), rtol=0, atol=1e-5)
    assert seen.triu(1).abs().max() == 0
    model.set_attn_implementation("eager")
    try:
        own = model(torch.tensor([ids]), output_attentions=True).attentions[1][0, 2]
    finally:
        model.set_attn_implementation(kernel)
    torch.testing.assert_close(seen, own.detach(), rtol=0, atol=1e-6)
    for layer, head in ((2, 0), (0, 4), (-1, 0)):
        with pytest.raises(InvalidParameterError, match="no head"):
            attention_of(model, ids, layer, head)


@pytest.mark.usefixtures("plotly")
def test_a_real_lens_is_drawn() -> None:
    model, ids = families.model("llama"), families.tokens()[0].tolist()
    plot = lens_chart(logit_lens(model, ids, (4, 5)))
    assert [len(line.y) for line in plot.figure.data] == [2, 2]
