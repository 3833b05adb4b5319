"""Passages in a trace: whom a token agrees with, the summary, and how they are drawn."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from conflictkit.trace import Trace
from conflictkit.trace.passages import TokenPassages, Widest, agreement
from conflictkit.trace.sides import COLOURS, listed, marks, sentences
from conflictkit.types import Comparison
from tests.trace.samples import END, HOSTILE, LONDON, STOP, hostile, poland, token, top
from tests.trace.test_drawings import ALLOWED, Page, _contrast, drawn

NAMES = ("memory", "passage 1", "passage 2")
APART = ((0.0, 0.55, 0.01), (0.55, 0.0, 0.61), (0.01, 0.61, 0.0))
CLOSE = ((0.0, 0.01, 0.02), (0.01, 0.0, 0.03), (0.02, 0.03, 0.0))


def read(probabilities, jsd, wanted, names=NAMES):
    tops = {
        name: top((text, number, p)) for name, (text, number, p) in zip(names, wanted, strict=True)
    }
    logs = tuple(math.log(p) for p in probabilities)
    return TokenPassages.read(Comparison(names, logs, jsd), tops, len(names) - 1)


SAID = ((" Warsaw", 6, 0.93), (" London", 5, 0.86), (" Warsaw", 6, 0.95))
DOT = ((".", 9, 0.97), (".", 9, 0.97), (".", 9, 0.97))


def apart(**given) -> Trace:
    """Passage 1 against passage 2 and memory; the answer follows passage 1."""
    london = dataclasses.replace(LONDON, passages=read((0.004, 0.86, 0.01), APART, SAID))
    stop = dataclasses.replace(STOP, passages=read((0.97, 0.97, 0.97), CLOSE, DOT))
    end = dataclasses.replace(END, passages=read((0.1, 0.2, 0.9), CLOSE, DOT))
    fields = {
        "contexts": ("The capital of Poland is London.", "Warsaw is the capital of Poland."),
        "tokens": (london, stop, end),
    }
    return poland(**fields | given)


def many(count: int = 20) -> Trace:
    """Passages that all say something else, the last one what memory says."""
    names = ("memory", *(f"passage {n}" for n in range(1, count + 1)))
    jsd = tuple(
        tuple(0.0 if i == j else 0.0 if {i, j} == {0, count} else 0.4 + 0.01 * max(i, j) / count
              for j in range(count + 1))
        for i in range(count + 1)
    )  # fmt: skip
    wanted = ((" Warsaw", 6, 0.9), *((f" City{n}", 10 + n, 0.8) for n in range(1, count)))
    wanted += ((" Warsaw", 6, 0.9),)
    own = (0.004, 0.86, *([0.01] * (count - 1)))
    london = dataclasses.replace(LONDON, passages=read(own, jsd, wanted, names))
    contexts = tuple(f"Passage number {n} about Poland." for n in range(1, count + 1))
    return poland(contexts=contexts, tokens=(london,))


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ((0.1, 0.5, 0.3), ("passage 1",)),
        ((0.1, 0.3, 0.5), ("passage 2",)),
        ((0.1, 0.5, 0.5), ("passage 1", "passage 2")),
        ((0.1, 0.5, 0.499995), ("passage 1", "passage 2")),
        ((0.1, 0.5, 0.49998), ("passage 1",)),
        ((0.6, 0.5, 0.5), ("memory",)),
        ((0.5, 0.500005, 0.1), ()),
        ((0.500005, 0.5, 0.1), ()),
        ((0.5, 0.50002, 0.1), ("passage 1",)),
        ((0.5, 0.49998, 0.1), ("memory",)),
        ((1.0, 1.0, 1.0), ()),
    ],
)
def test_whom_a_token_agrees_with(probabilities, expected) -> None:
    assert agreement(NAMES, probabilities) == expected


def test_a_row_knows_nothing_of_a_longer_rows_passages() -> None:
    names = (*NAMES, "passage 3")
    jsd = tuple(tuple(float(i * 10 + j) for j in range(4)) for i in range(4))
    comparison = Comparison(names, (-1.0, -2.0, -3.0, -0.1), jsd)
    found = TokenPassages.read(comparison, {}, 2)
    assert found.names == NAMES
    assert found.logprobs == (-1.0, -2.0, -3.0)
    assert found.agrees_with == ("memory",)
    assert found.jsd == ((0.0, 1.0, 2.0), (10.0, 11.0, 12.0), (20.0, 21.0, 22.0))


def test_the_summary_counts_the_answer_and_not_its_end() -> None:
    found = apart().passages
    assert found is not None
    assert found.total == 2
    assert found.counts == (0, 1, 0)
    assert found.shares == (0.0, 0.5, 0.0)
    assert found.logprobs == pytest.approx([math.log(p * 0.97) for p in (0.004, 0.86, 0.01)])
    assert found.follows == ("passage 1",)
    assert found.memory_sides_with == ("passage 2",)
    assert found.passages_apart == Widest(0.61, ("passage 1", "passage 2"), 0)
    assert found.memory_apart == Widest(0.55, ("passage 1", "memory"), 0)
    assert found.jsd == ((0.0, 0.55, 0.02), (0.55, 0.0, 0.61), (0.02, 0.61, 0.0))
    only_end = apart(tokens=apart().tokens[2:]).passages
    assert only_end is not None
    assert only_end.total == 1
    assert only_end.follows == ("passage 2",)


def test_an_answer_half_as_probable_follows_a_source_too() -> None:
    for second, expected in ((0.44, ("passage 1", "passage 2")), (0.42, ("passage 1",))):
        one = dataclasses.replace(LONDON, passages=read((0.1, 0.86, second), APART, SAID))
        found = apart(tokens=(one,)).passages
        assert found is not None
        assert found.follows == expected


def test_memory_sides_with_nobody_if_all_contradict_it_or_none_does() -> None:
    far = ((0.0, 0.5, 0.6), (0.5, 0.0, 0.61), (0.6, 0.61, 0.0))
    even = ((0.0, 0.2, 0.2), (0.2, 0.0, 0.61), (0.2, 0.61, 0.0))
    for jsd in (far, even):
        one = dataclasses.replace(LONDON, passages=read((0.1, 0.8, 0.1), jsd, SAID))
        found = apart(tokens=(one,)).passages
        assert found is not None
        assert found.memory_sides_with == ()


def test_json_says_who_contradicts_whom() -> None:
    data = json.loads(apart().to_json())
    assert data == apart().to_dict()
    assert data["tokens"][0]["passages"] == {
        "agrees_with": ["passage 1"],
        "memory_probability": pytest.approx(0.004),
        "passages": [
            {
                "name": "passage 1",
                "probability": pytest.approx(0.86),
                "top": [{"text": " London", "id": 5, "probability": 0.86}],
                "jsd_memory": 0.55,
            },
            {
                "name": "passage 2",
                "probability": pytest.approx(0.01),
                "top": [{"text": " Warsaw", "id": 6, "probability": 0.95}],
                "jsd_memory": 0.01,
            },
        ],
        "jsd": [[0.0, 0.61], [0.61, 0.0]],
    }
    summary = data["passages"]
    assert summary["max_disagreement"] == {
        "jsd": 0.61,
        "between": ["passage 1", "passage 2"],
        "token": 0,
    }
    assert summary["memory"]["share"] == 0.0
    assert [one["share"] for one in summary["passages"]] == [0.5, 0.0]
    assert [one["max_jsd_memory"] for one in summary["passages"]] == [0.55, 0.02]
    assert "passages" not in poland().to_dict()
    assert "passages" not in poland().tokens[0].to_dict()


def test_the_story_is_told_in_sentences() -> None:
    assert sentences(apart()) == [
        "The answer follows passage 1 (91 % per token with it, 6 % from memory).",
        'Passages 1 and 2 contradict each other at "London" (jsd 0.61 of at most 0.69): '
        'passage 1 would say "London", passage 2 and memory "Warsaw".',
        "Memory sides with passage 2.",
    ]
    assert sentences(poland()) == []


def test_the_story_of_passages_that_agree() -> None:
    stop = apart().tokens[1]
    assert sentences(apart(tokens=(stop,))) == [
        "The answer is much the same under every passage and from memory.",
        "The passages agree with one another on every token (jsd 0.03 of at most 0.69).",
        "Passages and memory agree on every token (jsd 0.02 of at most 0.69).",
    ]


def test_what_each_would_say_is_told_once() -> None:
    jsd = ((0.0, 0.3, 0.01), (0.3, 0.0, 0.31), (0.01, 0.31, 0.0))
    one = dataclasses.replace(LONDON, passages=read((0.004, 0.86, 0.01), jsd, SAID))
    assert sentences(apart(tokens=(one,)))[1:] == [
        'Passages 1 and 2 differ most at "London" (jsd 0.31 of at most 0.69): '
        'passage 1 would say "London", passage 2 and memory "Warsaw".',
        'Passage 1 and memory differ most at "London" (jsd 0.30 of at most 0.69).',
        "Memory sides with passage 2.",
    ]


def test_the_story_of_one_passage_against_memory() -> None:
    names, jsd = NAMES[:2], ((0.0, 0.55), (0.55, 0.0))
    one = dataclasses.replace(LONDON, passages=read((0.9, 0.1), jsd, SAID[:2], names))
    trace = apart(contexts=("It is London.",), tokens=(one,))
    assert sentences(trace) == [
        "The answer follows memory (90 % per token, 10 % with passage 1).",
        'Passage 1 contradicts memory at "London" (jsd 0.55 of at most 0.69): '
        'passage 1 would say "London", memory "Warsaw".',
    ]
    for text in (str(trace), Page(trace.to_html()).text):
        assert "Passage 1 contradicts memory" in text


def test_many_sources_are_named_briefly() -> None:
    names = [f"passage {n}" for n in range(1, 21)]
    assert listed(names[:3]) == "passages 1, 2 and 3"
    assert listed([*names, "memory"]) == "passages 1, 2, 3, 4, 5 and 15 more and memory"
    assert marks(names[:2]) == "1=2"
    assert marks(names) == "1=2+18"
    assert marks(()) == "–"
    told = " ".join(sentences(many()))
    assert 'passage 1 would say "City1", passage 20 and memory "Warsaw", ' in told
    assert "17 other answers" in told
    assert "Memory sides with passage 20." in told


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_terminal_form_keeps_to_its_width(width: int) -> None:
    for trace in (apart(), many(), apart(tokens=())):
        shown = drawn(trace, width, color_system=None)
        assert max(map(len, shown.splitlines())) <= width


def test_the_terminal_shows_the_matrix_and_whom_each_token_agrees_with() -> None:
    shown = drawn(apart(), 80, color_system=None)
    assert re.search(r"^passage 2 +Warsaw is the capital", shown, re.M)
    assert re.search(r"^ *1 +50 % +91 % +·London 86% +0\.55 +· +0\.61", shown, re.M)
    assert re.search(r"^ *2 +0 % +10 % +·Warsaw 95% +0\.02 +0\.61 +·", shown, re.M)
    assert re.search(r"^ *memory +0 % +6 % +·Warsaw 93% +· +0\.55 +0\.02", shown, re.M)
    assert re.search(r"^ *1 +·London +1 +0\.61 █", shown, re.M)
    assert re.search(r"^ *2 +\. +– +0\.01 ", shown, re.M)


def test_where_the_matrix_does_not_fit_the_furthest_passage_is_named() -> None:
    wide, narrow = (drawn(many(), width, color_system=None) for width in (160, 80))
    assert "furthest" not in wide
    assert re.search(r"^ *3 +0 % +1 % +·City3 80% +0\.40 +20 0\.41", narrow, re.M)


def cells(body: str) -> list[list[str]]:
    """Text of every cell, row by row."""
    rows = body.split("</tbody>")[0].split("<tr>")[1:]
    return [
        [Page(f"{cell}</td>").text for cell in re.findall(r"<td.*?(?=</td>)", row)] for row in rows
    ]


def test_the_page_shows_the_matrix_and_whom_each_token_agrees_with() -> None:
    page = Page(apart().to_html())
    assert set(page.tags) <= ALLOWED
    text = page.text
    assert "Passages 1 and 2 contradict each other" in text
    assert "would say at “London”" in text
    assert "1 of 2" in text
    sides, tokens = map(cells, apart().to_html().split("<tbody>")[1:])
    assert sides == [
        ["1", "1 of 2", "91 %", "·London 86 %", "0.55", "·", "0.61"],
        ["2", "0 of 2", "10 %", "·Warsaw 95 %", "0.02", "0.61", "·"],
        ["mem memory", "0 of 2", "6 %", "·Warsaw 93 %", "·", "0.55", "0.02"],
    ]
    assert [row[:3] for row in tokens] == [
        ["1", "·London", "1"],
        ["2", ".", "–"],
        ["3", "<end>", "2"],
    ]


def test_hostile_text_in_passages_stays_text() -> None:
    everything = "".join(HOSTILE)
    names = ("memory", *(f"passage {n}" for n in range(1, len(HOSTILE) + 2)))
    size = len(names)
    jsd = tuple(tuple(0.6 if i != j else 0.0 for j in range(size)) for i in range(size))
    wanted = [(text, 7 + n, 0.5) for n, text in enumerate([everything, *HOSTILE, everything])]
    own = read([0.1] * (size - 1) + [0.5], jsd, wanted, names)
    tokens = tuple(dataclasses.replace(one, passages=own) for one in hostile().tokens)
    trace = dataclasses.replace(hostile(), tokens=tokens)
    page = Page(trace.to_html())
    assert set(page.tags) <= ALLOWED
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in page.attributes)
    for acting in ("\x00", "\x1b", "\u202e", "\ud800"):
        assert acting not in trace.to_html()
        assert acting not in str(trace)
    json.loads(trace.to_json())


def test_marks_are_readable_on_their_colours() -> None:
    assert all(_contrast("#ffffff", one) >= 4.5 for one in COLOURS)
    assert all(_contrast("#000000", one) >= 3 for one in COLOURS)


def test_without_passages_nothing_new_is_drawn() -> None:
    assert "agrees" not in str(poland())
    assert "ck-source" not in Page(poland().to_html()).text
    assert "ck-story" not in poland().to_html().split("</style>")[-1]
    assert token("a", 1, 0.1).passages is None
