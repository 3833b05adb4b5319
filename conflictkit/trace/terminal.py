"""A trace in a terminal: readable on dark and light, without colour, from 60 columns on."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from conflictkit.trace.layout import (
    INK,
    SOURCES,
    STOPS,
    answers,
    colour,
    headline,
    percent,
    settings,
    share,
    spans,
    streams,
    top,
)
from conflictkit.trace.passages_terminal import agreed, story, style_of
from conflictkit.trace.record import CONFLICT_SCORE, MAX_CONFLICT, Candidate, TokenTrace, Trace
from conflictkit.trace.text import clip, number, visible

PLAIN_WIDTH = 100
MAX_ROWS = 40
MAX_PASSAGE = 400
HEADS = {"confidence_gain": "confid.\ngain"}
# One foreground that shows on black and on white.
ACCENT = "#d9622b"
STYLES = {"context": "cyan", "memory": "magenta"}


def plain(trace: Trace) -> str:
    """The whole trace as text without any control sequence."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=PLAIN_WIDTH,
        color_system=None,
        force_terminal=False,
        # In a notebook rich would show the text there and leave the file empty.
        force_jupyter=False,
        legacy_windows=False,
    )
    console.print(trace)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def render(trace: Trace, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """Everything: what was asked, the answers, the coloured answer and the table."""
    yield summary(trace)
    yield from details(trace, console, options)


def details(trace: Trace, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """The headline, the coloured answer and the table."""
    coloured = console.color_system is not None and not console.no_color
    yield Text()
    yield Text(headline(trace), style="bold")
    if not trace.tokens:
        return
    yield Text()
    yield Padding(marked_answer(trace, coloured), (0, 0, 0, 2))
    if trace.scored:
        yield Padding(legend(coloured), (1, 0, 0, 2))
    if trace.passages is not None:
        yield Text()
        yield from story(trace, options)
    yield token_table(trace, options)


def summary(trace: Trace) -> Table:
    """Question, passages and the answers that are known."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("question", Text(visible(trace.question, lines=True)))
    apart = trace.passages is not None
    for index, passage in enumerate(trace.contexts):
        head = f"passage {index + 1}" if apart else "context" if index == 0 else ""
        style = style_of(head) if apart else STYLES["context"]
        grid.add_row(head, Text(_passage(passage), style=style))
    if not trace.contexts:
        grid.add_row("context", Text("none (closed book)", style="dim"))
    if trace.model:
        grid.add_row("model", Text(visible(trace.model)))
    if trace.params:
        grid.add_row("parameters", Text(visible(settings(trace))))
    grid.add_row()
    styles = {SOURCES["memory"]: STYLES["memory"], SOURCES["plain"]: STYLES["context"]}
    for source, answer in answers(trace):
        shown = visible(answer.strip(), lines=True) or "(nothing)"
        grid.add_row(Text(visible(source)), Text(shown, style=styles.get(source, "bold")))
    return grid


def _passage(passage: str) -> str:
    return clip(visible(passage[: MAX_PASSAGE + 1], lines=True), MAX_PASSAGE)


def marked_answer(trace: Trace, coloured: bool) -> Text:
    """The answer, each token on the colour of its conflict (without colour: in brackets)."""
    text = Text(overflow="fold")
    for span in spans(trace):
        shown = visible(span.text, lines=True) or f" {span.label}"
        bare = shown.lstrip(" ")
        text.append(shown[: len(shown) - len(bare)] if text else "")
        background = colour(span.conflict)
        if coloured and background:
            # Both colours are set, so that the terminal's own foreground cannot hide the text.
            text.append(bare, style=f"{INK} on {background}")
        elif share(span.conflict) >= 0.5:
            text.append(f"[{bare}]", style="bold")
        else:
            text.append(bare, style="" if span.text else "dim")
    return text


def legend(coloured: bool) -> Text:
    """What the marks mean: the colour scale with its ends."""
    name = CONFLICT_SCORE
    if not coloured:
        return Text(
            f"[ ] {name} of {number(MAX_CONFLICT / 2)} or more (at most {number(MAX_CONFLICT)})"
        )
    text = Text.assemble((f"conflict ({name})  0 ", "dim"))
    for stop in STOPS:
        text.append("    ", style=f"on {stop}")
    return text.append(f" {number(MAX_CONFLICT)} = ln 2", style="dim")


def token_table(trace: Trace, options: ConsoleOptions) -> Table:
    """One row per token; in a narrow terminal fewer candidates and scores."""
    width = options.max_width
    others = [name for name in trace.score_names if name != CONFLICT_SCORE]
    others = others[: 4 if width >= 120 else 2 if width >= 100 else 1]
    if trace.passages is not None:
        others = others[:-1]  # whom the token agrees with takes its place
    shown_streams = streams(trace)
    count = 3 if width >= 120 else 2 if width >= 100 else 1
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", justify="right", style="dim", no_wrap=True)
    table.add_column("token", overflow="fold", min_width=5, max_width=24)
    if trace.passages is not None:
        table.add_column("agrees\nwith", no_wrap=True)
    if trace.scored:
        table.add_column(CONFLICT_SCORE, no_wrap=True)
    for name in others:
        table.add_column(
            HEADS.get(name, name.replace("_", "-").replace("-", "\n", 1)),
            justify="right",
            no_wrap=True,
        )
    if len(shown_streams) == 2:
        table.add_column("weights\nctx   mem", justify="right", no_wrap=True)
    for stream in shown_streams:
        head = f"bold {STYLES[stream]}"
        table.add_column(f"{stream} says", header_style=head, overflow="fold")
    shown = _rows(trace)
    for index in shown:
        token = trace.tokens[index]
        row: list[RenderableType] = [str(index + 1), Text(token.label, style="bold")]
        if trace.passages is not None:
            row.append(agreed(token.passages.agrees_with if token.passages else ()))
        if trace.scored:
            row.append(_bar(trace.conflict[index], options, 8 if width >= 100 else 6))
        for name in others:
            row.append(number(token.scores.get(name, math.nan), sign="gain" in name))
        if len(shown_streams) == 2:
            row.append(_weights(token))
        row += [_candidates(top(token, name), count, STYLES[name]) for name in shown_streams]
        table.add_row(*row)
    if len(shown) < len(trace.tokens):
        table.caption = (
            f"the {len(shown)} of {len(trace.tokens)} tokens with most conflict; "
            "the page, the JSON and the dataframe have all"
        )
    return table


def _rows(trace: Trace) -> list[int]:
    """Indices of the tokens to list, in order: all, or those with most conflict."""
    if len(trace.tokens) <= MAX_ROWS:
        return list(range(len(trace.tokens)))

    def rank(index: int) -> float:
        conflict = trace.conflict[index]
        return math.inf if math.isnan(conflict) else -conflict

    return sorted(sorted(range(len(trace.tokens)), key=rank)[:MAX_ROWS])


def _bar(conflict: float, options: ConsoleOptions, length: int) -> Text:
    full, empty = ("#", ".") if options.ascii_only else ("█", "░")
    filled = round(share(conflict) * length)
    text = Text(f"{number(conflict):>5} ")
    text.append(full * filled, style=ACCENT)
    text.append(empty * (length - filled), style="dim")
    return text


def _weights(token: TokenTrace) -> str:
    pair = (token.context_weight, token.memory_weight)
    return " ".join(f"{number(weight, sign=True):>5}" for weight in pair)


def _candidates(best: tuple[Candidate, ...], count: int, style: str) -> Text:
    """The best candidates, one per line; no more than it takes to name 99 % of the mass."""
    text, named = Text(), 0.0
    for index, candidate in enumerate(best[:count]):
        if named >= 0.99:
            break
        named += candidate.probability
        shown = clip(visible(candidate.text, spaces=True) or "<empty>", 20)
        text.append("\n" if index else "")
        text.append(shown, style="dim" if index else style)
        chance = percent(candidate.probability).replace(" ", "")
        text.append(f" {chance}", style="dim" if index else "")
    return text
