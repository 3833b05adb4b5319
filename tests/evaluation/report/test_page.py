"""The page holds every case, as harmless text, and nothing that it would have to fetch."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from conflictkit.evaluation.folder import load_run
from conflictkit.evaluation.metrics.source import judge
from conflictkit.evaluation.metrics.summary import Summary
from conflictkit.evaluation.record import Result
from conflictkit.evaluation.report import page, read
from conflictkit.evaluation.report.packing import BLOCK
from conflictkit.trace.layout import percent
from conflictkit.trace.text import visible
from conflictkit.types import Case
from tests.evaluation.report import runs

VOID = {"meta", "input", "br", "img", "link"}


class _Elements(HTMLParser):
    """Every element of a page with its attributes, and what its scripts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data


def elements(html: str) -> _Elements:
    parser = _Elements()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def unpacked(html: str, name: str) -> Any:
    text = re.search(rf'id="{name}">([^<]*)<', html)
    assert text is not None
    return json.loads(gzip.decompress(base64.b64decode(text[1])))


@pytest.mark.slow
def test_every_answer_and_every_token_is_in_the_page(first: Path) -> None:
    html = page(read([first]))
    index = unpacked(html, "run-0-index")
    block = unpacked(html, "run-0-block-0")
    run = load_run(first)
    cases = {case.id: (place, case) for place, case in enumerate(run.cases)}
    assert [entry[0] for entry in index["cases"]] == [case.id for case in run.cases]
    for result in run.results:
        place, case = cases[result.case]
        number = index["methods"].index(result.method)
        answer, right, source = index["cases"][place][6][number]
        verdict = judge(case, result.answer)
        assert index["answers"][answer] == result.answer
        assert (bool(right), source) == (verdict.right, verdict.source[0])
        passages, facts, prompts, told = block[place]
        assert passages == list(case.contexts)
        assert ["subject", case.subject] in facts
        assert prompts == [None, None]
        tokens = told[number][4]
        assert len(tokens) == len(result.tokens)
        for packed, token in zip(tokens, result.tokens, strict=True):
            text, number_, scores, context, memory, *tops = packed
            assert (index["texts"][text], number_) == (token["text"], token["id"])
            assert context == pytest.approx(token["context_weight"], abs=5e-4)
            assert memory == pytest.approx(token["memory_weight"], abs=5e-4)
            for name, value in zip(index["scores"], scores, strict=True):
                if name in token["scores"]:
                    assert value == pytest.approx(token["scores"][name], abs=5e-4)
                else:
                    assert value is None
            for flat, name in zip(tops, ("context_top", "memory_top"), strict=True):
                assert [index["texts"][one] for one in flat[::2]] == [
                    text for text, _ in token[name][:3]
                ]
                for whole, (_, share) in zip(flat[1::2], token[name], strict=False):
                    shown = {-1: "<1 %", 101: ">99 %"}.get(whole, f"{whole} %")
                    assert shown == percent(share)


@pytest.mark.slow
def test_without_traces_the_cases_stay(first: Path) -> None:
    html = page(read([first]), traces=False)
    assert len(html) < len(page(read([first])))
    assert len(unpacked(html, "run-0-index")["cases"]) == 8
    for case in unpacked(html, "run-0-block-0"):
        assert all(told is None or told[4] == [] for told in case[3])


def test_only_the_script_of_the_page_may_run(first: Path) -> None:
    found = elements(page(read([first])))
    own = [text for attributes, text in found.scripts if "type" not in attributes]
    assert len(own) == 1
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    (policy,) = [
        attributes["content"]
        for tag, attributes in found.found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", own[0])


@pytest.mark.parametrize("name", ["first", "hostile"])
def test_nothing_in_the_page_is_fetched_or_runs(name: str, request: pytest.FixtureRequest) -> None:
    html = page(read([request.getfixturevalue(name)]))
    found = elements(html)
    kinds = {tag for tag, _ in found.found}
    assert not kinds & {"img", "iframe", "link", "object", "embed", "base", "form"}
    for _, attributes in found.found:
        assert not [key for key in attributes if key.startswith("on") or key == "src"]
        address = attributes.get("href")
        assert address is None or address.startswith("#")
    types = [attributes.get("type") for attributes, _ in found.scripts]
    assert types.count(None) == 1
    ids = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_hostile_text_is_in_the_page_as_text(hostile: Path) -> None:
    html = page(read([hostile]))
    index = unpacked(html, "run-0-index")
    run = load_run(hostile)
    assert index["cases"][0][2] == visible(run.cases[0].question, lines=True)
    everything = json.dumps([index, unpacked(html, "run-0-block-0")], ensure_ascii=False)
    for character in ("\u202e", "\x1b", "\x00"):
        assert character not in html
        assert character not in everything
    assert "<U+202E>" in everything
    html.encode("utf-8")  # no lone surrogate


def test_a_row_without_an_answer_is_left_open(
    atlas_answers: tuple[list[Case], list[Result]], first: Path, tmp_path: Path
) -> None:
    cases, results = atlas_answers
    summary = json.loads((first / "summary.json").read_text(encoding="utf-8"))
    kept = [one for one in results if (one.case, one.method) != (cases[0].id, "cad")]
    folder = runs.write(tmp_path / "run", cases, kept, summary)
    # Only a case that was set aside may lack an answer.
    runs.lines(folder / "errors.jsonl", [{"case": cases[0].id, "error": "E", "reason": "x"}])
    html = page(read([folder]))
    index = unpacked(html, "run-0-index")
    place = index["methods"].index("cad")
    assert index["cases"][0][6][place] is None
    assert index["cases"][1][6][place] is not None


def test_cases_come_in_blocks(
    atlas_answers: tuple[list[Case], list[Result]], first: Path, tmp_path: Path
) -> None:
    cases, results = atlas_answers
    many = [replace(cases[0], id=f"case {n}") for n in range(BLOCK + 1)]
    answers = [replace(results[0], case=case.id) for case in many]
    summary = (first / "summary.json").read_text(encoding="utf-8")
    folder = runs.write(tmp_path / "run", many, answers, json.loads(summary))
    html = page(read([folder]))
    assert len(unpacked(html, "run-0-block-0")) == BLOCK
    assert len(unpacked(html, "run-0-block-1")) == 1


@pytest.mark.slow
def test_the_page_of_a_large_run_stays_small(
    atlas_answers: tuple[list[Case], list[Result]], first: Path
) -> None:
    """1,500 cases under 10 methods would make less than 15 MB, measured on a fifteenth of them
    and on random tokens, which compress worse than real ones."""
    rng = random.Random(0)
    cases, results = atlas_answers
    words = [f" word{n}" for n in range(5000)]

    def token() -> dict[str, Any]:
        tops = [
            [[rng.choice(words), rng.random()] for _ in range(3)] for _ in ("context", "memory")
        ]
        scores = {name: rng.random() for name in ("jsd", "context_entropy", "memory_confidence")}
        return {
            **{"text": rng.choice(words), "id": rng.randrange(5000), "scores": scores},
            **{"context_weight": rng.random(), "memory_weight": rng.random()},
            **{"context_top": tops[0], "memory_top": tops[1]},
        }

    pool = [token() for _ in range(5000)]
    many = [replace(cases[n % len(cases)], id=f"case-{n}") for n in range(100)]
    answers = [
        replace(
            results[0],
            case=case.id,
            method=f"method-{m}",
            answer=" ".join(rng.sample(words, 12)),
            tokens=rng.sample(pool, 12),
        )
        for case in many
        for m in range(10)
    ]
    (source,) = read([first])
    run = load_run(first)
    object.__setattr__(run, "cases", tuple(many))
    run.__dict__["results"] = tuple(answers)
    summary = Summary.from_dict(json.loads((first / "summary.json").read_text(encoding="utf-8")))
    html = page([replace(source, run=run, summary=summary)])
    packed = sum(map(len, re.findall(r"<script type=.text/plain.*?</script>", html)))
    assert packed > 3e5
    assert len(html) + 14 * packed < 15e6
