"""Passages in a terminal: the story, and a table of who says what and who contradicts whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from conflictkit.trace.layout import percent, share
from conflictkit.trace.passages import CONTRADICTION, AnswerPassages
from conflictkit.trace.record import CONFLICT_SCORE, Candidate, Trace
from conflictkit.trace.sides import colour_of, mark, marks, mean, said, sentences
from conflictkit.trace.text import clip, number, visible

MEMORY_STYLE = "magenta"
HEAT = "#d9622b"
_OTHER_COLUMNS = 46
"""Columns that all but the matrix need."""
_CELL = 5


def style_of(name: str) -> str:
    """The style of a source's name."""
    return colour_of(name) or MEMORY_STYLE


def story(trace: Trace, options: ConsoleOptions) -> Iterator[RenderableType]:
    """Whom the answer follows, and the table; nothing if passages were not read one by one."""
    found = trace.passages
    if found is None:
        return
    for line in sentences(trace):
        yield Text(line, style="bold")
    yield _table(trace, found, options)


def agreed(names: Sequence[str]) -> Text:
    """The sources that a token agrees with, for a narrow column."""
    return Text(marks(names), style=style_of(names[0]) if names else "dim")


def _table(trace: Trace, found: AnswerPassages, options: ConsoleOptions) -> Table:
    count = len(found.names) - 1
    fits = options.max_width - _OTHER_COLUMNS >= _CELL * count
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("passage", no_wrap=True)
    table.add_column("tokens\nagree", justify="right", no_wrap=True)
    table.add_column("per\ntoken", justify="right", no_wrap=True)
    # What people wrote may hold anything; a header is read as markup unless it is a Text.
    where = Text(f'would say at\n"{clip(said(trace, found.peak), 12)}"')
    table.add_column(where, overflow="fold", max_width=22)
    table.add_column(Text(f"{CONFLICT_SCORE}\nmem"), justify="right", no_wrap=True)
    if fits:
        for name in found.names[1:]:
            head = Text(f"\n{mark(name)}", style=style_of(name))
            table.add_column(head, justify="right", no_wrap=True)
    elif count > 1:
        table.add_column("furthest\nfrom", justify="right", no_wrap=True)
    token = trace.tokens[found.peak].passages
    for place in [*range(1, count + 1), 0]:
        name = found.names[place]
        best = token.tops[place] if token is not None else ()
        row: list[RenderableType] = [
            Text("memory" if place == 0 else mark(name), style=f"bold {style_of(name)}"),
            percent(found.shares[place]),
            percent(mean(found.logprobs[place], found.total)),
            _candidate(best, style_of(name)),
        ]
        row.append(_divergence(found, place, 0))
        if fits:
            row += [_divergence(found, place, other) for other in range(1, count + 1)]
        elif count > 1:
            row.append(_furthest(found, place))
        table.add_row(*row)
    table.caption = (
        "tokens agree: share most probable with it; per token: mean probability; "
        f"{CONFLICT_SCORE}: largest over the answer"
    )
    table.caption_justify = "left"
    return table


def _divergence(found: AnswerPassages, one: int, other: int) -> Text:
    value = found.jsd[one][other]
    if one == other:
        return Text("·", style="dim")
    style = f"bold {HEAT}" if value >= CONTRADICTION else "" if share(value) else "dim"
    return Text(number(value), style=style)


def _furthest(found: AnswerPassages, place: int) -> Text:
    """The passage furthest from a source, where there is no room for all of them."""
    others = [i for i in range(1, len(found.names)) if i != place]
    other = max(others, key=lambda i: found.jsd[place][i])
    text = Text(f"{mark(found.names[other])} ", style=style_of(found.names[other]))
    return text.append_text(_divergence(found, place, other))


def _candidate(best: Sequence[Candidate], style: str) -> Text:
    if not best:
        return Text("–", style="dim")
    shown = clip(visible(best[0].text, spaces=True) or "<empty>", 16)
    chance = percent(best[0].probability).replace(" ", "")
    return Text.assemble((shown, style), f" {chance}")
