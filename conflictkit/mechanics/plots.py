"""Drawings of what is inside: head maps, attention patterns, the logit lens. Pages without network.

Each function returns a `Plot`, which draws itself in a notebook, and `write`s one self-contained
page (plotly's code is part of it, some 4 MB). Needs the extra `viz`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit import anatomy, files
from conflictkit._hf_attention import written_out
from conflictkit.errors import InvalidParameterError, OutputError, UnsupportedError
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.mechanics._runs import hooked, network, read
from conflictkit.mechanics.attention import probabilities
from conflictkit.trace.text import clip, number, visible

if TYPE_CHECKING:
    from conflictkit.mechanics.lens import LogitLens
    from conflictkit.toolkit import Model

INK, SOFT, LINE = "#1c1917", "#57534e", "#e2ded9"
CONTEXT, MEMORY = "#0b6577", "#7a2f91"
_PALE = "#f7f5f2"
_COLOURS = (CONTEXT, MEMORY, "#9a3412", "#3f6212", "#1e3a8a", SOFT)
_MAP = [[0, MEMORY], [0.25, "#bb8fc9"], [0.5, _PALE], [0.75, "#7fb4bf"], [1, CONTEXT]]
_HEAT = [[0, "#ffffff"], [0.3, "#cfe3e7"], [0.6, "#7fb4bf"], [1, CONTEXT]]
_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, Liberation Sans, sans-serif"
_LONGEST = 16
"""Characters of a token that fit beside an axis."""

# Inline script and style are plotly's; nothing may be fetched, sent or framed.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
_CONFIG = {"displaylogo": False, "displayModeBar": False}


@dataclass(frozen=True, eq=False)
class Plot:
    """A drawing.

    Attributes:
        figure: the plotly figure, to be changed at will.
        title: of the page.
    """

    figure: Any
    title: str

    def html(self) -> str:
        """One self-contained page."""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f"<title>{escape(visible(self.title))} · conflictkit</title>\n"
            "<style>body { margin: 16px; background: #fff; }</style>\n"
            f"</head>\n<body>\n{self._repr_html_()}\n</body>\n</html>\n"
        )

    def _repr_html_(self) -> str:
        return self.figure.to_html(full_html=False, include_plotlyjs=True, config=_CONFIG)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page; an old file is replaced in one move, or left as it was.

        Raises:
            OutputError: the file cannot be written.
        """
        try:
            files.write_whole(Path(path), self.html())
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write '{os.fspath(path)}': {error}") from error


def head_map(ranking: HeadRanking, *, title: str | None = None) -> Plot:
    """Layers by heads: which heads carry memory and which the context.

    A head has the colour and the size of the larger of its two scores, and none if neither is above
    0. Both scores, with their standard errors, show when one points at it.

    Args:
        ranking: of any analysis.
        title: above the map; None: model and analysis.

    Raises:
        UnsupportedError: plotly is not installed.
    """
    objects = _plotly()
    tables = {kind: ranking.table(kind) for kind in ranking.scores}
    empty = torch.zeros(ranking.layers, ranking.heads)
    context = tables.get("context", empty).clamp(min=0)
    memory = tables.get("memory", empty).clamp(min=0)
    values = torch.where(context >= memory, context, -memory)
    most = float(values.abs().max()) or 1.0
    hover = [
        [_head_text(ranking, layer, head) for head in range(ranking.heads)]
        for layer in range(ranking.layers)
    ]
    cells = objects.Heatmap(
        z=values.tolist(),
        text=hover,
        hoverinfo="text",
        colorscale=_MAP if "memory" in tables else _HEAT,
        zmin=-most if "memory" in tables else 0,
        zmax=most,
        xgap=1,
        ygap=1,
        colorbar=_bar(most, "memory" in tables),
    )
    figure = objects.Figure(cells)
    title = title or f"{ranking.model}: heads by {ranking.by}, {ranking.cases:,} cases"
    cell = min(max(960 // max(ranking.heads, ranking.layers), 18), 56)
    _dress(figure, title, 260 + cell * ranking.heads, 160 + round(0.75 * cell) * ranking.layers)
    figure.update_xaxes(title="head", dtick=1 if ranking.heads <= 40 else 4, showgrid=False)
    figure.update_yaxes(title="layer", dtick=1 if ranking.layers <= 40 else 4, showgrid=False)
    return Plot(figure, title)


def attention_of(model: Model | Module, ids: Sequence[int], layer: int, head: int) -> Tensor:
    """What one head looks at while a prompt is read, with transformers' eager attention.

    Args:
        model: a loaded `Model`, or a Hugging Face model.
        ids: token ids of the prompt.
        layer, head: which head, both counted from 0.

    Returns:
        `[tokens, tokens]` float32 probabilities, a row for each token that reads.

    Raises:
        InvalidParameterError: the model has no such head.
        UnsupportedError: as `conflictkit.mechanics.attention.attention_mass`.
    """
    hf = network(model)
    body = anatomy.find(hf)
    body.output_of(layer, head)
    found: list[Tensor] = []
    module: Any = body.attentions[layer]
    keep = lambda _, out: found.append(probabilities(hf, layer, out)[0, head].float().cpu())  # noqa: E731
    with torch.no_grad(), written_out(hf), hooked(after=[(module, keep)]):
        read(hf, [ids])
    return found[0]


def attention_pattern(
    weights: Tensor,
    tokens: Sequence[str],
    *,
    span: tuple[int, int] | None = None,
    title: str = "attention",
) -> Plot:
    """Where one head looks: a row for each token that reads, a column for each that is read.

    Args:
        weights: `[tokens, tokens]` attention of the head, a row sums to 1.
        tokens: the prompt's tokens as text.
        span: `(start, stop)` of the context, which is marked, half open.
        title: above the pattern.

    Raises:
        UnsupportedError: plotly is not installed.
        InvalidParameterError: weights, tokens and span do not fit each other.
    """
    objects = _plotly()
    count = len(tokens)
    if weights.dim() != 2 or tuple(weights.shape) != (count, count) or not count:
        raise InvalidParameterError(
            f"weights are {list(weights.shape)}, the {count} tokens need [{count}, {count}]"
        )
    if span is not None and not 0 <= span[0] < span[1] <= count:
        raise InvalidParameterError(f"span {span} is no part of {count} tokens")
    found = weights.detach().float().cpu()
    seen = torch.ones(count, count).tril().bool()  # the rest is not there to look at
    names = [_label(token) for token in tokens]
    shown = [[w if s else None for w, s in zip(*row, strict=True)] for row in _pairs(found, seen)]
    hover = [
        [f"{names[row]} → {names[column]}<br>{100 * one:.1f} %" for column, one in enumerate(line)]
        for row, line in enumerate(found.tolist())
    ]
    figure = objects.Figure(
        objects.Heatmap(
            z=shown,
            text=hover,
            hoverinfo="text",
            hoverongaps=False,
            colorscale=_HEAT,
            zmin=0,
            zmax=1,
            colorbar={
                "title": {"text": "attention", "side": "right"},
                "tickformat": ".0%",
                "outlinewidth": 0,
                "thickness": 14,
            },
        )
    )
    pixels = min(max(18 * count, 320), 1000)
    _dress(figure, title, pixels + 280, pixels + 230)
    figure.update_layout(plot_bgcolor="#efece8")  # what was not there to be read
    ticks = {
        # By number: tokens of the same text would be one place.
        "tickvals": list(range(count)),
        "ticktext": names,
        "showgrid": False,
        "zeroline": False,
        "tickfont": {"size": 12 if count <= 60 else 8, "family": "ui-monospace, Menlo, monospace"},
    }
    figure.update_xaxes(title={"text": "is read", "standoff": 16}, tickangle=-60, **ticks)
    figure.update_yaxes(title={"text": "reads", "standoff": 16}, autorange="reversed", **ticks)
    if span is not None:
        _mark_span(figure, span, count)
    return Plot(figure, title)


def lens_chart(
    lens: LogitLens, labels: Sequence[str] = ("context", "memory"), *, title: str = "logit lens"
) -> Plot:
    """The rank of answers after each layer, the most likely token on top; a logarithmic axis.

    Args:
        lens: from `conflictkit.mechanics.lens.logit_lens`.
        labels: what its tokens are called, the context's answer first, then memory's.
        title: above the chart.

    Raises:
        UnsupportedError: plotly is not installed.
        InvalidParameterError: not one label for each token.
    """
    objects = _plotly()
    layers, count = lens.ranks.shape
    if len(labels) != count:
        raise InvalidParameterError(f"{len(labels)} labels for {count} tokens")
    figure = objects.Figure()
    for column, label in enumerate(labels):
        name, colour = _label(label, 60), _COLOURS[column % len(_COLOURS)]
        ranks = lens.ranks[:, column].tolist()
        chances = lens.logprobs[:, column].exp().tolist()
        figure.add_scatter(
            x=list(range(layers)),
            y=ranks,
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            marker={"size": 8},
            hovertext=[
                f"{name}<br>after layer {layer}: rank {rank:,}<br>{100 * chance:.2f} %"
                for layer, (rank, chance) in enumerate(zip(ranks, chances, strict=True))
            ],
            hoverinfo="text",
        )
    _dress(figure, title, 960, 560)
    worst = max(int(lens.ranks.max()), 10)
    ticks = [n for n in (1, 3, 10, 30, *(10**p for p in range(2, 7))) if n <= worst * 1.2]
    figure.update_xaxes(title="after layer", dtick=1 if layers <= 40 else 4, showgrid=False)
    figure.update_yaxes(
        title="rank of the answer's first token (log)",
        type="log",
        range=[math.log10(worst * 1.5), -0.15],
        tickvals=ticks,
        ticktext=[f"{tick:,}" for tick in ticks],
        gridcolor=LINE,
        zeroline=False,
    )
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 15}},
    )
    return Plot(figure, title)


def _plotly() -> Any:
    try:
        import plotly.graph_objects as objects
    except ImportError as error:
        raise UnsupportedError('a drawing needs plotly: pip install "conflictkit[viz]"') from error
    return objects


def _dress(figure: Any, title: str, width: int, height: int) -> None:
    figure.update_layout(
        title={
            "text": _label(title, 110),
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 18},
            "font": {"size": 19},
        },
        template="none",
        width=width,
        height=height,
        paper_bgcolor="#fff",
        plot_bgcolor="#fff",
        font={"family": _FONT, "size": 14, "color": INK},
        hoverlabel={"bgcolor": "#fff", "bordercolor": INK, "font": {"color": INK, "size": 14}},
        margin={"l": 90, "r": 40, "t": 84, "b": 70},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)


def _bar(most: float, memory: bool) -> dict[str, Any]:
    ends = [(-most, f"memory {number(most, 3)}"), (0, "0"), (most, f"context {number(most, 3)}")]
    kept = ends if memory else ends[1:]
    return {
        "tickvals": [value for value, _ in kept],
        "ticktext": [text for _, text in kept],
        "outlinewidth": 0,
        "thickness": 14,
    }


def _head_text(ranking: HeadRanking, layer: int, head: int) -> str:
    lines = [f"<b>layer {layer}, head {head}</b>"]
    for kind, rows in ranking.scores.items():
        error = ranking.errors.get(kind)
        beside = "" if error is None else f" ± {number(float(error[layer][head]), 4)}"
        lines.append(f"{kind} {number(float(rows[layer][head]), 4, sign=True)}{beside}")
    return "<br>".join(lines)


def _mark_span(figure: Any, span: tuple[int, int], count: int) -> None:
    start, stop = span[0] - 0.5, span[1] - 0.5
    figure.add_shape(
        type="rect", x0=start, x1=stop, y0=-0.5, y1=count - 0.5, line={"color": INK, "width": 1.5}
    )
    figure.add_annotation(
        x=(start + stop) / 2,
        y=1,
        yref="paper",
        yanchor="bottom",
        text="context",
        showarrow=False,
        font={"color": INK, "size": 15},
    )


def _pairs(*tables: Tensor) -> Any:
    return zip(*(table.tolist() for table in tables), strict=True)


def _label(text: str, length: int = _LONGEST) -> str:
    """Any text as plotly draws it: plotly reads some HTML, and entities, in every label."""
    return escape(clip(visible(text), length), quote=False)
