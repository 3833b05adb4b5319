"""`conflictkit methods`: what there is, where it comes from, what it costs, how to set it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from conflictkit.cli import _output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from conflictkit.interventions.contrast import Parameter
    from conflictkit.methods import MethodInfo

SANE = 1e6


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show this one in detail.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods: paper, what they need, what they cost, parameters."""
    from conflictkit import methods as registry

    if name is not None:
        info = registry.describe(name)
        if as_json:
            _output.write_json(info.to_dict())
        else:
            _output.console().print(*_detail(info), sep="\n")
        return
    every = registry.all()
    if as_json:
        _output.write_json([info.to_dict() for info in every])
    else:
        _output.console().print(*_overview(every), sep="\n")


def _overview(every: tuple[MethodInfo, ...]) -> list[RenderableType]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("forwards\nper token", justify="right", no_wrap=True)
    table.add_column("what it does, paper, needs, parameters (values)")
    for index, info in enumerate(every):
        if index:
            table.add_row()
        source = f"{_paper(info)} · " if info.paper is not None else ""
        about = Text(info.summary)
        about.append(f"\n{source}needs {' and '.join(info.needs)}", style="dim")
        for parameter in info.parameters:
            about.append(f"\n{parameter.name}={_word(parameter.default)}", style="cyan")
            about.append(f" ({_values(parameter)})", style="dim")
        table.add_row(Text(info.name, style="bold"), str(info.forwards), about)
    hint = Text("conflictkit methods NAME shows one in detail.", style="dim")
    return [table, hint]


def _detail(info: MethodInfo) -> list[RenderableType]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    if info.paper is not None:
        facts.add_row("paper", Text(info.paper.title))
        facts.add_row("", f"{info.paper.authors}, {info.paper.year}, {info.paper.url}")
    facts.add_row("needs", " and ".join(info.needs))
    facts.add_row("cost", f"{info.forwards} forward{'s' * (info.forwards != 1)} per answer token")
    example = "&".join(f"{p.name}={_word(p.default)}" for p in info.parameters[:2])
    spec = f'"{info.name}?{example}"' if example else info.name
    facts.add_row("use", Text(f"--method {spec}"))
    parts: list[RenderableType] = [
        Text.assemble((info.name, "bold"), f": {info.summary}"),
        Text(),
        facts,
    ]
    if info.parameters:
        table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("parameter", no_wrap=True)
        table.add_column("default", no_wrap=True)
        table.add_column("values", no_wrap=True)
        table.add_column("what it does")
        for parameter in info.parameters:
            table.add_row(
                parameter.name, _word(parameter.default), Text(_values(parameter)), parameter.doc
            )
        parts += [Text(), table]
    return parts


def _paper(info: MethodInfo) -> str:
    paper = info.paper
    return f"{paper.authors} {paper.year}, arXiv {paper.arxiv}" if paper is not None else ""


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(parameter: Parameter) -> str:
    """What the parameter may be; bounds that only keep numbers sane are left to the JSON."""
    if parameter.kind == "bool":
        return "true, false"
    if parameter.choices:
        return ", ".join(parameter.choices)
    low = None if parameter.low is None or parameter.low <= -SANE else f"{parameter.low:g}"
    high = None if parameter.high is None or parameter.high >= SANE else f"{parameter.high:g}"
    if low is not None and high is not None:
        return f"{parameter.kind}, {low} to {high}"
    if low is not None:
        return f"{parameter.kind}, {low} or more"
    return f"{parameter.kind}, {high} or less" if high is not None else parameter.kind
