"""`conflictkit ask --per-passage`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conflictkit import toolkit
from tests.cli.conftest import Run

PASSAGES = ("It is London.", "It is Oslo, they say.")
BASE = ("ask", "Capital?", "-c", PASSAGES[0], "-c", PASSAGES[1], "--per-passage")


def asked(folder: Path) -> tuple[object, ...]:
    return (*BASE, "--model", folder, "--max-new-tokens", 4)


def test_json_page_and_terminal_say_the_same(run: Run, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(*asked(folder), "--json", "--html", page)
    assert (result.code, result.err) == (0, "")
    said = json.loads(result.out, parse_constant=lambda word: pytest.fail(word))
    expected = toolkit.load(str(folder)).ask(
        "Capital?", documents=PASSAGES, per_passage=True, max_new_tokens=4
    )
    assert said["passages"] == json.loads(json.dumps(expected.to_dict()["passages"]))
    assert said["passages"]["cost"]["forwards"] == 2 * len(said["tokens"])
    assert [one["name"] for one in said["tokens"][0]["passages"]["passages"]] == [
        "passage 1",
        "passage 2",
    ]
    quiet = tmp_path / "quiet.html"
    assert run(*asked(folder), "--quiet", "--html", quiet).out.strip() == said["answer"]
    assert quiet.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    shown = run(*asked(folder)).out
    for text in (shown, page.read_text(encoding="utf-8")):
        assert "The answer " in text
        assert "would say at" in text
    assert "passage 2" in shown
    assert PASSAGES[1] in shown


def test_without_it_nothing_is_read_one_by_one(run: Run, folder: Path) -> None:
    plain = [part for part in asked(folder) if part != "--per-passage"]
    said = json.loads(run(*plain, "--json").out)
    assert "passages" not in said
    assert "passages" not in said["tokens"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", "Capital?", "--per-passage"), "there are none: give --context"),
        ((*BASE, "--no-trace"), "leave --no-trace out"),
        ((*BASE, "--quiet"), "unless there is an --html"),
        ((*BASE, "-c", " "), "empty"),
    ],
)
def test_what_would_show_nothing_is_refused(
    refused: Callable[..., str], arguments: tuple, message: str
) -> None:
    assert message in refused(*arguments)
