"""A trace as HTML: a fragment for notebooks, a page to keep or send. No script anywhere."""

from __future__ import annotations

import math
from html import escape

from conflictkit.trace.layout import (
    SOURCES,
    Span,
    answers,
    colour,
    headline,
    percent,
    rivals,
    settings,
    share,
    spans,
    streams,
    top,
)
from conflictkit.trace.markup import candidate as _candidate
from conflictkit.trace.markup import safe as _text
from conflictkit.trace.passages_html import chip, chips, section, tip
from conflictkit.trace.record import CONFLICT_SCORE, MAX_CONFLICT, TokenTrace, Trace
from conflictkit.trace.style import STYLE
from conflictkit.trace.text import clip, number, visible

FOLD = 700
"""Passages longer than this are folded: the page is about the answer."""
WORD = 8
"""Most tokens that stay together on a line: many scripts write no spaces."""

# Nothing may be fetched or run, even if something slipped through the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(trace: Trace) -> str:
    """One self-contained page."""
    title = f"{clip(visible(trace.question), 80)} · {visible(trace.method)} · conflictkit"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        "<style>body { margin: 0; background: #fff; } .ck-trace { margin: 0 auto; }</style>\n"
        f"</head>\n<body>\n{fragment(trace)}\n</body>\n</html>\n"
    )


def fragment(trace: Trace) -> str:
    """The page's content, with its own style, to be put into another page."""
    parts = [_asked(trace), _answers(trace), f'<p class="ck-headline">{_text(headline(trace))}</p>']
    if trace.tokens:
        parts += [section(trace), _strip(trace), _table(trace)]
    parts.append(_foot(trace))
    return f'<div class="ck-trace"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</div>"


def _asked(trace: Trace) -> str:
    html = '<p class="ck-label">Question</p>'
    html += f'<h2 dir="auto">{_text(trace.question, lines=True)}</h2>'
    html += '<p class="ck-label">Context</p>'
    if not trace.contexts:
        return html + "<p>None: closed book.</p>"
    names = trace.passages.names[1:] if trace.passages is not None else ("",) * len(trace.contexts)
    pairs = zip(trace.contexts, names, strict=True)
    return html + "".join(_passage(passage, name) for passage, name in pairs)


def _passage(passage: str, name: str) -> str:
    number = chip(name) + " " if name else ""
    if len(passage) <= FOLD:
        return f'<div class="ck-passage" dir="auto">{number}{_text(passage, lines=True)}</div>'
    start = _text(passage[: FOLD // 2])
    return (
        f'<details class="ck-passage"><summary dir="auto">{number}{start}… '
        f"({len(passage):,} characters)</summary>"
        f'<div dir="auto">{_text(passage, lines=True)}</div></details>'
    )


def _answers(trace: Trace) -> str:
    kinds = {SOURCES["memory"]: "ck-memory", SOURCES["plain"]: "ck-context"}
    boxes = "".join(
        f'<div class="ck-answer {kinds.get(source, "ck-method")}">'
        f'<p class="ck-label">{_text(source)}</p>'
        f'<b dir="auto">{_text(answer.strip(), lines=True) or "(nothing)"}</b></div>'
        for source, answer in answers(trace)
    )
    return f'<div class="ck-answers">{boxes}</div>'


def _strip(trace: Trace) -> str:
    words = "".join(_word(trace, word) for word in _words(spans(trace)))
    legend = ""
    if trace.scored:
        legend = (
            f'<div class="ck-legend"><span>conflict ({CONFLICT_SCORE})</span><span>0</span>'
            f'<span class="ck-scale"></span><span>{number(MAX_CONFLICT)} (ln 2)</span></div>'
        )
    return f'<div class="ck-strip"><div class="ck-tokens">{words}</div>{legend}</div>'


def _words(found: list[Span]) -> list[list[Span]]:
    """Spans that stand together on a line: what memory would say is written below the word."""
    words: list[list[Span]] = []
    for span in found:
        new = span.text[:1].isspace() or not span.text or not words
        if new or words[-1][-1].text[-1:] in ("", "\n") or len(words[-1]) == WORD:
            words.append([])
        words[-1].append(span)
    return words


def _word(trace: Trace, word: list[Span]) -> str:
    html = "".join(_token(trace, span) for span in word)
    peak = max(word, key=lambda span: share(span.conflict))
    if colour(peak.conflict):
        html += "".join(
            f'<span class="ck-rival ck-of-{stream}">{stream}: '
            f"{_candidate(rival.text.strip() or rival.text)} "
            f"{percent(rival.probability)}</span>"
            for stream, rival in rivals(peak.tokens[0])
        )
    sides = dict.fromkeys(name for span in word for name in _sides(span))
    if sides:
        html += f'<span class="ck-rival">{chips(tuple(sides))}</span>'
    html = f'<span class="ck-word">{html}</span>'
    return html + ("<br>" if word[-1].text.endswith("\n") else "")


def _sides(span: Span) -> tuple[str, ...]:
    """The sources that a span's tokens agree with."""
    read = [token.passages.agrees_with for token in span.tokens if token.passages is not None]
    return tuple(name for names in read for name in names)


def _token(trace: Trace, span: Span) -> str:
    background = colour(span.conflict)
    style = f' style="background:{background}"' if background else ""
    bare = span.text.strip(" ")
    shown = _text(bare) if bare.strip() else f'<span class="ck-mark">{_text(span.label)}</span>'
    return (
        f'<span class="ck-token{" ck-hot" if share(span.conflict) >= 0.5 else ""}" tabindex="0">'
        f'<span class="ck-chip"{style}>{shown}</span>'
        f'<span class="ck-tip">{_tip(trace, span)}</span></span>'
    )


def _tip(trace: Trace, span: Span) -> str:
    lines = []
    for offset, token in enumerate(span.tokens):
        facts = [f"{name} {number(value, 3)}" for name, value in _scores(trace, token)]
        if len(streams(trace)) == 2:
            facts.append(f"weights {_weights(token)} (context, memory)")
        lines.append(
            f"<b>{span.first + offset + 1}. {_text(token.label)}</b> · token {token.id} · "
            + " · ".join(_text(fact) for fact in facts)
        )
        for stream in streams(trace):
            listed = ", ".join(
                f"{_candidate(c.text)} {percent(c.probability)}" for c in top(token, stream)
            )
            lines.append(f'<span class="ck-of-{stream}">{stream}</span>: {listed}')
        if token.passages is not None:
            lines.append(tip(token.passages))
    return "<br>".join(lines)


def _scores(trace: Trace, token: TokenTrace) -> list[tuple[str, float]]:
    return [(name, token.scores.get(name, math.nan)) for name in trace.score_names]


def _weights(token: TokenTrace) -> str:
    return " ".join(number(w, sign=True) for w in (token.context_weight, token.memory_weight))


def _table(trace: Trace) -> str:
    shown = streams(trace)
    heads = ['<th class="ck-n">#</th>', "<th>token</th>"]
    if trace.passages is not None:
        heads.append("<th>agrees with</th>")
    for name in trace.score_names:
        side = "" if name == CONFLICT_SCORE else ' class="ck-n"'
        heads.append(f"<th{side}>{_text(name.replace('_', ' ').replace('-', ' '))}</th>")
    if len(shown) == 2:
        heads += [f'<th class="ck-n">{stream} weight</th>' for stream in shown]
    heads += [f'<th class="ck-of-{stream}">{stream} says</th>' for stream in shown]
    rows = "\n".join(_row(trace, index, shown) for index in range(len(trace.tokens)))
    return (
        f'<div class="ck-scroll"><table class="ck-table"><thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(trace: Trace, index: int, shown_streams: tuple[str, ...]) -> str:
    token = trace.tokens[index]
    cells = [
        f'<td class="ck-n">{index + 1}</td>',
        f'<td class="ck-code">{_text(token.label, spaces=True)}</td>',
    ]
    if trace.passages is not None:
        cells.append(f"<td>{chips(token.passages.agrees_with if token.passages else ())}</td>")
    for name, value in _scores(trace, token):
        shown = number(value, 3, sign="gain" in name)
        if name == CONFLICT_SCORE:
            width = round(share(value) * 100)
            bar = f'<span class="ck-bar"><i style="width:{width}%"></i></span>'
            cells.append(f'<td class="ck-n" style="text-align:left">{shown}{bar}</td>')
        else:
            cells.append(f'<td class="ck-n">{shown}</td>')
    if len(shown_streams) == 2:
        pair = (token.context_weight, token.memory_weight)
        cells += [f'<td class="ck-n">{number(weight, sign=True)}</td>' for weight in pair]
    cells += [f"<td>{_candidates(token, stream)}</td>" for stream in shown_streams]
    return f"<tr>{''.join(cells)}</tr>"


def _candidates(token: TokenTrace, stream: str) -> str:
    cells = []
    for index, candidate in enumerate(top(token, stream)[:3]):
        classes = "ck-code" + (f" ck-of-{stream}" if index == 0 else "")
        classes += " ck-chosen" if candidate.id == token.id else ""
        cells.append(f'<span class="{classes}">{_candidate(candidate.text)}</span>')
        cells.append(f'<span class="ck-n">{percent(candidate.probability)}</span>')
    return f'<div class="ck-list">{"".join(cells)}</div>'


def _foot(trace: Trace) -> str:
    facts = [f"method {trace.method}", settings(trace)]
    if trace.model:
        facts.append(f"model {trace.model}")
    facts.append(f"{len(trace.tokens)} tokens")
    shown = " · ".join(_text(fact) for fact in facts if fact)
    return (
        f'<p class="ck-foot">{shown} · made with conflictkit. '
        "Divergences in nats; a dot before a token is a space.</p>"
    )
