"""The page in a real browser: a case opens with its trace, hostile text stays text, it prints."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image

from conflictkit.evaluation.folder import load_run
from conflictkit.evaluation.metrics.source import judge
from conflictkit.evaluation.metrics.summary import Cell, Summary
from conflictkit.evaluation.report import charts, page, read
from conflictkit.trace.layout import percent
from conflictkit.trace.text import visible
from tests.evaluation.report import runs
from tests.trace.samples import HOSTILE

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Browser:
    """A headless browser that opens one page at a time, each time as new."""

    def __init__(self, program: str, place: Path) -> None:
        self.program, self.place, self.count = program, place, 0

    def __call__(self, file: Path, *options: str, hash: str = "") -> str:
        """Open a page; what the browser wrote to standard output."""
        self.count += 1
        command = [
            *(self.program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--hide-scrollbars", "--virtual-time-budget=20000"),
            *(f"--user-data-dir={self.place / str(self.count)}", *options),
            file.as_uri() + (f"#{hash}" if hash else ""),
        ]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        return done.stdout.decode("utf-8", errors="replace")

    def dom(self, file: Path, hash: str = "") -> str:
        """The page's elements once its script has run."""
        return self(file, "--dump-dom", hash=hash)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium or Chrome (Debian: apt-get install chromium)")
    return Browser(program, tmp_path_factory.mktemp("profiles"))


@pytest.fixture(scope="module")
def report(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pages") / "report.html"
    file.write_text(page(read([first])), encoding="utf-8")
    return file


def _shown(dom: str) -> str:
    """The text of a piece of a page."""
    return unescape(re.sub(r"<[^>]*>", "", dom))


def _view(dom: str) -> str:
    start = dom.index('data-part="view"')
    return dom[start : dom.index('data-part="tools"')]


def test_the_list_shows_every_case(browser: Browser, report: Path, first: Path) -> None:
    dom = browser.dom(report)
    assert 'data-ready="yes"' in dom
    run = load_run(first)
    listed = _shown(dom[dom.index('data-part="list"') :])
    for case in run.cases:
        assert case.id in listed
        assert case.question in listed
    right = sum(
        judge(case, result.answer).right
        for case in run.cases
        for result in run.results
        if (result.case, result.method) == (case.id, "plain")
    )
    assert f"{len(run.cases)} cases, {right} answered right by plain" in _shown(dom)


@pytest.mark.parametrize("place", [0, -1])
def test_an_address_opens_a_case_with_both_streams(
    browser: Browser, report: Path, first: Path, place: int
) -> None:
    run = load_run(first)
    case = run.cases[place]
    result = next(r for r in run.results if (r.case, r.method) == (case.id, "ck-plug?alpha=0.5"))
    dom = browser.dom(report, urlencode({"case": case.id, "method": result.method}))
    view = _view(dom)
    text = _shown(view)
    assert case.question in text
    for passage in case.contexts:
        assert visible(passage, lines=True) in text
    for other in {r.method for r in run.results}:
        assert other in text
    rows = re.findall(r"<tr>.*?</tr>", view[view.index('class="ck-table"') :], flags=re.S)[1:]
    for row, token in zip(rows, result.tokens, strict=False):
        shown = _shown(row)
        for name in ("context_top", "memory_top"):
            candidate, share = token[name][0]
            assert candidate.replace(" ", "·") + percent(share) in shown
        assert f"{token['scores']['jsd']:.3f}" in shown
        assert f"{token['context_weight']:+.2f}".replace("-", "−") in shown


def test_scores_without_room_are_folded_away(browser: Browser, first: Path, tmp_path: Path) -> None:
    run = load_run(first)
    more = {f"score_{n}": n / 8 for n in range(4)}
    results = [
        replace(one, tokens=[{**t, "scores": {**t["scores"], **more}} for t in one.tokens])
        for one in run.results
    ]
    assert run.summary is not None
    folder = runs.write(tmp_path / "run", run.cases, results, run.summary.to_dict())
    file = tmp_path / "report.html"
    file.write_text(page(read([folder])), encoding="utf-8")
    view = _view(browser.dom(file, urlencode({"case": run.cases[0].id, "method": "cad"})))
    main, _, folded = view.partition("<details>")
    assert "score 3" not in _shown(main)
    assert "memory says" in _shown(main)
    # Two detectors, the four, and what the rule computed.
    assert "7 more scores" in _shown(folded)
    assert "score 3" in _shown(folded)
    assert "0.375" in _shown(folded)


def test_an_address_lists_the_cases_behind_a_figure(
    browser: Browser, report: Path, first: Path
) -> None:
    dom = browser.dom(report, urlencode({"run": 0, "state": "resistance", "method": "memory"}))
    found = [case.id for case in load_run(first).cases if case.state == "resistance"]
    rows = re.findall(r'<tr data-at="\d+">.*?</tr>', dom, flags=re.S)
    assert [_shown(re.search(r"<th.*?</th>", row, re.S)[0]) for row in rows] == found  # type: ignore
    assert f"{len(found)} cases" in _shown(dom)


def test_a_case_that_is_not_there_is_said_to_be_missing(browser: Browser, report: Path) -> None:
    view = _view(browser.dom(report, "case=nobody&method=plain"))
    assert 'There is no case "nobody" in this run.' in _shown(view)


def test_hostile_text_stays_text(browser: Browser, hostile: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(read([hostile])), encoding="utf-8")
    case = load_run(hostile).cases[0]
    method = load_run(hostile).info["methods"][2]
    dom = browser.dom(file, urlencode({"case": visible(case.id), "method": visible(method)}))
    view = _view(dom)
    assert "<img" not in dom
    assert "<script" not in view
    assert " onerror" not in re.sub(r">[^<]*<", "><", view)
    text = _shown(view)
    for one in HOSTILE:
        # A break at the end of a line is one character, whatever wrote it.
        assert visible(one, lines=True).strip() in text
    assert f"Case {visible(case.id)}" in text


def test_names_in_a_chart_do_not_overlap(browser: Browser, tmp_path: Path) -> None:
    """Measured by the browser, with its fonts."""
    labels = ["plain", "memory", "cad", "adacad", "coiecd", "arr", "grd"]
    labels += [f"ck-plug?alpha={n / 10:g}" for n in range(11)]
    labels += [f"cad?alpha={n}" for n in ("0.5", "1")]
    rows = {
        label: {
            "resistance": Cell(0.4 + n % 5 / 25, 0.3, 0.6, 99),
            "correction": Cell(0.5 + n % 7 / 30, 0.4, 0.7, 99),
        }
        for n, label in enumerate(labels)
    }
    chart = charts.plane(Summary(tuple(rows), rows))
    assert chart is not None
    style = re.search(r"<style>.*?</style>", page([]), flags=re.S)
    assert style is not None
    script = """
      const boxes = [...document.querySelectorAll(".label")].map((one) => one.getBBox());
      let overlaps = 0;
      boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
        if (a.x < b.x + b.width - 1 && b.x < a.x + a.width - 1 &&
            a.y < b.y + b.height - 3 && b.y < a.y + a.height - 3) overlaps += 1;
      }));
      const outside = boxes.filter((a) => a.x < 0 || a.x + a.width > 560).length;
      document.body.dataset.found = [boxes.length, overlaps, outside].join(" ");
    """
    file = tmp_path / "chart.html"
    text = f"<!DOCTYPE html>{style[0]}<body><div>{chart.drawing}</div><script>{script}</script>"
    file.write_text(text, encoding="utf-8")
    found = re.search(r'data-found="(\d+) (\d+) (\d+)"', browser.dom(file))
    assert found is not None
    assert int(found[1]) >= 9
    assert (found[2], found[3]) == ("0", "0")


def test_it_can_be_looked_at_and_printed(browser: Browser, report: Path, tmp_path: Path) -> None:
    picture, print_ = tmp_path / "report.png", tmp_path / "report.pdf"
    browser(report, f"--screenshot={picture}", "--window-size=1280,1600")
    with Image.open(picture) as image:
        assert image.size == (1280, 1600)
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        drawn = {colour for _, colour in colours}
        # The page's paper, its text, and the colour of a figure that is better or worse.
        assert {(255, 255, 255), (28, 25, 23)} <= drawn
        assert image.convert("L").crop((0, 0, 24, 1600)).getextrema() == (255, 255)
        # Nothing is wider than the page.
        assert image.convert("L").crop((1256, 0, 1280, 1600)).getextrema() == (255, 255)
    browser(report, f"--print-to-pdf={print_}", "--no-pdf-header-footer")
    data = print_.read_bytes()
    assert data.startswith(b"%PDF")
    assert len(data) > 20_000
