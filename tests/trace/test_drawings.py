"""The page and the terminal: everything shown, nothing obeyed."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from conflictkit.trace import Trace
from conflictkit.trace.layout import INK, STOPS, colour
from conflictkit.trace.text import visible
from tests.trace.samples import END, STOP, hostile, poland, token

ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "div", "p", "h2", "b", "i", "br"),
    *("span", "bdi", "details", "summary", "table", "thead", "tbody", "tr", "th", "td"),
}
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Every element, attribute and text of a page; refuses what does not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def drawn(trace: Trace, width: int = 100, **options) -> str:
    file = io.StringIO()
    settings = {"force_terminal": True, "color_system": "truecolor"} | options
    Console(file=file, width=width, legacy_windows=False, **settings).print(trace)
    return file.getvalue()


@pytest.mark.parametrize("form", ["to_html", "_repr_html_"])
def test_hostile_text_stays_text_in_html(form: str) -> None:
    page = Page(getattr(hostile(), form)())
    assert set(page.tags) <= ALLOWED
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in page.attributes)
    assert "<script>alert(1)</script>" in page.text
    assert "\"><img src=x onerror='alert(1)'>" in page.text


def test_a_page_needs_nothing_else() -> None:
    html = hostile().to_html()
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|url\(|@import|<link|<script", html)
    html.encode("utf-8")


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\u202e", "\ud800", "\u2028", "\x7f"])
def test_what_would_act_is_shown_instead(character: str) -> None:
    named = f"<U+{ord(character):04X}>"
    assert visible(f"a{character}b") == f"a{named}b"
    assert character not in hostile().to_html()
    assert character not in str(hostile())


def test_emoji_and_scripts_that_join_are_left_whole() -> None:
    assert visible("👩‍👧 می‌خواهم") == "👩‍👧 می‌خواهم"


def test_the_page_shows_question_context_answers_and_every_token() -> None:
    text = Page(poland().to_html()).text
    for shown in ("capital of Poland?", "Poland is London.", "Warsaw.", "Lodz.", "0.612", "−0.61"):
        assert shown in text
    assert text.count("<end>") >= 2
    assert "0.612" in poland().to_html().split("<tbody>")[1]


def test_the_style_of_a_fragment_reaches_nothing_around_it() -> None:
    style = poland()._repr_html_().split("<style>")[1].split("</style>")[0]
    rules = re.findall(r"(?:^|})\s*([^{}@]+){", re.sub(r"@[^{]+{", "", style))
    selectors = [one.strip() for rule in rules for one in rule.split(",")]
    assert selectors
    assert all(one.startswith(".ck-trace") for one in selectors)


def test_a_long_passage_is_folded_but_whole() -> None:
    passage = "word " * 400
    html = poland(contexts=(passage,)).to_html()
    assert "<details" in html
    assert passage in Page(html).text


def _luminance(code: str) -> float:
    parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_is_readable_on_every_colour_of_the_scale() -> None:
    colours = [colour(step / 100) for step in range(71)]
    assert all(_contrast(INK, one) >= 4.5 for one in colours if one)


def test_the_scale_is_fixed_and_calm_tokens_have_no_colour() -> None:
    assert colour(0.049) is None
    assert colour(math.nan) is None
    assert colour(math.log(2)) == colour(5.0) == STOPS[-1]
    calm = poland(tokens=(STOP, END))
    assert "background:#" not in Page(calm.to_html()).text
    assert 'style="background' not in calm.to_html()
    assert "48;2" not in drawn(calm).split("conflict (jsd)")[0]
    assert "agree on every token" in str(calm)


def test_the_terminal_colours_conflict_and_sets_both_colours() -> None:
    line = next(line for line in drawn(poland()).splitlines() if "48;2" in line)
    assert re.search(r"\x1b\[38;2;28;25;23;48;2;\d+;\d+;\d+mLondon\x1b", line)


@pytest.mark.parametrize("options", [{"no_color": True}, {"color_system": None}])
def test_without_colour_brackets_mark_the_conflict(options: dict) -> None:
    shown = drawn(poland(), **options)
    assert "[London]" in re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "48;2" not in shown


def test_plain_text_has_no_control_sequences_and_says_who_wanted_what() -> None:
    text = str(poland())
    assert "\x1b" not in text
    assert 'memory alone would say "Warsaw" (93 %)' in text
    assert "under adacad      London." in text
    assert repr(poland()) == text


def test_a_trace_as_text_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(poland())
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(poland()) == text


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_terminal_form_keeps_to_its_width(width: int) -> None:
    for trace in (poland(), hostile(), poland(tokens=())):
        shown = drawn(trace, width, color_system=None)
        assert max(map(len, shown.splitlines())) <= width


def test_eighty_columns_hold_a_token_on_one_line() -> None:
    rows = drawn(poland(), 80, color_system=None).split("says")[-1]
    assert "·Warsaw 10%" not in rows
    assert "·Warsaw 10%" in drawn(poland(), 100, color_system=None)
    assert re.search(r"·London +0\.61 █+░* +−0\.25 +\+1\.61 −0\.61 +·London 86% +·Warsaw 93%", rows)


def test_what_looks_like_markup_is_not_obeyed() -> None:
    trace = poland(method="[red]x[/red]", answer="[bold]", contexts=("[/nope]",))
    assert "[red]x[/red]" in str(trace)
    assert "[/nope]" in str(trace)


def test_many_tokens_show_those_with_most_conflict() -> None:
    words = tuple(token(f" w{i}", i, i / 1000) for i in range(200))
    shown = str(poland(tokens=words))
    assert "the 40 of 200 tokens" in shown
    assert "·w199" in shown
    assert "·w159 " not in shown
    assert poland(tokens=words).to_html().count("<tr>") == 201


def test_pieces_of_a_character_are_drawn_as_one() -> None:
    pieces = (token("", 1, 0.6, kind="piece"), token("é", 2, 0.0))
    line = next(line for line in drawn(poland(tokens=pieces)).splitlines() if "48;2" in line)
    assert "mé\x1b" in line


@pytest.mark.parametrize("method", ["memory", "plain"])
def test_closed_book_shows_one_stream_and_no_weights(method: str) -> None:
    only = token("a", 3, None, context_weight=0.0, memory_weight=1.0, memory_top=STOP.memory_top)
    trace = poland(contexts=(), method=method, tokens=(only,), plain_answer=None)
    text = str(trace)
    assert "closed book" in text
    assert "weights" not in text
    assert "context says" not in text
    assert text.count("from memory") == 1


def test_nothing_scored_is_said_and_drawn() -> None:
    for score in (None, math.nan):
        trace = poland(tokens=(token("a", 1, score),))
        assert "No conflict was scored" in str(trace)
        assert "No conflict was scored" in Page(trace.to_html()).text


def test_an_empty_answer_is_said_and_drawn() -> None:
    trace = poland(tokens=(), answer="")
    for text in (str(trace), Page(trace.to_html()).text):
        assert "The answer is empty" in text
        assert "(nothing)" in text
