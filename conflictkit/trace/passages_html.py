"""Passages on the page: the story, the table, and the marks of the passages a token agrees with."""

from __future__ import annotations

from collections.abc import Sequence

from conflictkit.trace.layout import colour, percent
from conflictkit.trace.markup import candidate, safe
from conflictkit.trace.passages import MEMORY, AnswerPassages, TokenPassages
from conflictkit.trace.record import CONFLICT_SCORE, Trace
from conflictkit.trace.sides import colour_of, mark, mean, said, sentences
from conflictkit.trace.text import number


def chip(name: str) -> str:
    """A source's mark on its colour."""
    background = colour_of(name)
    if background is None:
        return f'<span class="ck-source ck-source-memory">{mark(name)}</span>'
    return f'<span class="ck-source" style="background:{background}">{mark(name)}</span>'


def chips(names: Sequence[str]) -> str:
    """The marks of several sources, or a dash for nobody."""
    return "".join(chip(name) for name in names) or "–"


def section(trace: Trace) -> str:
    """Whom the answer follows, who contradicts whom; empty if passages were not read one by one."""
    found = trace.passages
    if found is None:
        return ""
    told = "".join(f"<p>{safe(line)}</p>" for line in sentences(trace))
    return f'<div class="ck-story">{told}{_table(trace, found)}</div>'


def tip(passages: TokenPassages) -> str:
    """What each source makes of a token, one line for each."""
    lines = [f"agrees with {chips(passages.agrees_with)}"]
    for place in [*range(1, len(passages.names)), 0]:
        top = passages.tops[place]
        best = f" · would say {candidate(top[0].text)} {percent(top[0].probability)}" if top else ""
        apart = f" · {CONFLICT_SCORE} to memory {number(passages.jsd[place][0], 3)}"
        lines.append(
            f"{chip(passages.names[place])} {percent(passages.probabilities[place])}{best}"
            + ("" if place == 0 else apart)
        )
    return "<br>".join(lines)


def _table(trace: Trace, found: AnswerPassages) -> str:
    at = safe(said(trace, found.peak))
    heads = ["<th>passage</th>", '<th class="ck-n">tokens that agree</th>']
    heads.append('<th class="ck-n">probability per token</th>')
    heads.append(f"<th>would say at “{at}”</th>")
    heads.append(f'<th class="ck-n ck-cell">{CONFLICT_SCORE} to {chip(MEMORY)}</th>')
    heads += [f'<th class="ck-n ck-cell">{chip(name)}</th>' for name in found.names[1:]]
    order = [*range(1, len(found.names)), 0]
    rows = "".join(_row(trace, found, place) for place in order)
    return (
        f'<div class="ck-scroll"><table class="ck-sides"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        '<p class="ck-foot">A token agrees with the passage, read alone, under which it is most '
        "probable, if memory finds it less probable. Divergences are the largest over the answer, "
        "in nats.</p>"
    )


def _row(trace: Trace, found: AnswerPassages, place: int) -> str:
    token = trace.tokens[found.peak].passages
    top = token.tops[place] if token is not None else ()
    wanted = "–"
    if top:
        wanted = (
            f'<span class="ck-code">{candidate(top[0].text)}</span> {percent(top[0].probability)}'
        )
    cells = [
        f"<td>{chip(found.names[place])}{' memory' if place == 0 else ''}</td>",
        f'<td class="ck-n">{found.counts[place]} of {found.total}</td>',
        f'<td class="ck-n">{percent(mean(found.logprobs[place], found.total))}</td>',
        f'<td class="ck-wanted">{wanted}</td>',
    ]
    cells += [_cell(found, place, other) for other in range(len(found.names))]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(found: AnswerPassages, one: int, other: int) -> str:
    if one == other:
        return '<td class="ck-n ck-cell">·</td>'
    value = found.jsd[one][other]
    background = colour(value)
    heat = f' style="background:{background}"' if background else ""
    return f'<td class="ck-n ck-cell"{heat}>{number(value)}</td>'
