"""The experiments' numbers as a page of the documentation: python experiments/docs.py

Reads what the experiments have written beside themselves, and makes `docs/results.md` and its
plots. No number is typed by hand. (`docs/tristate.html` is written by `tristate/run.py`.)
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PAGE = DOCS / "results.md"
MARK = "<!-- says -->"
QUESTIONS = {
    "tristate": "Every method where the context is right, wrong, agrees, or is beside the point",
    "adacad": "AdaCAD: the gain of contrast without its harm?",
    "ckplug": "CK-PLUG: how far does alpha move the source?",
    "grd": "GRD: resistance without losing correction or agreement?",
    "heads": "Heads scaled, pruned, run twice, masked: four papers' claims",
    "probes": "Do activations show a conflict?",
    "steering": "Features and directions: SpARE's claims, and declining",
}
TABLES = ("Right answers by state", "Cost")
"""Of the tables of `tristate`, those that the page shows."""


def main() -> None:
    """Write the page, copy the plots."""
    PAGE.write_text(page(), encoding="utf-8")
    for name in QUESTIONS:
        shutil.copyfile(HERE / name / "plot.png", DOCS / "images" / f"{name}.png")
    print(PAGE)


def page() -> str:
    """The whole page."""
    parts = [_head()]
    for name, question in QUESTIONS.items():
        parts += [f"## {question}", said(name), f"![{question}](images/{name}.png)"]
        if name == "tristate":
            tables = (HERE / name / "tables.md").read_text(encoding="utf-8")
            parts += [section(tables, title) for title in TABLES]
    parts += ["## auto against its rivals", *_auto()]
    return "\n\n".join(parts) + "\n"


def _head() -> str:
    return "\n".join(
        [
            "# Results",
            "",
            "What the methods do on Atlas's test split. Every number below is written by the "
            "commands of `experiments/`, none by hand: `python experiments/NAME/run.py`, then "
            "`python experiments/docs.py`. In brackets: 95 % intervals by subject.",
            "",
            "Atlas is a small model that was taught to disagree with itself: these numbers compare "
            "methods with each other, and [say nothing](atlas.md) about how often a large model is "
            "right.",
            "",
            "The whole report of the first experiment, with charts and every answer: "
            "[tristate.html](tristate.html).",
        ]
    )


def said(name: str) -> str:
    """What an experiment's numbers say, as its command has written it."""
    text = (HERE / name / "README.md").read_text(encoding="utf-8")
    return text.split(MARK)[1].strip()


def section(tables: str, title: str) -> str:
    """One table of a report in Markdown, a level deeper."""
    lines = tables.splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip("# ") == title and "#" in line)
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("#")), len(lines))
    return "\n".join([f"### {title}", *lines[start + 1 : end]]).strip()


def _auto() -> Sequence[str]:
    """The comparisons of `auto`, headings a level deeper."""
    found = []
    for file in sorted((HERE / "auto" / "results").glob("*.md")):
        for line in file.read_text(encoding="utf-8").splitlines():
            found.append(f"##{line}" if line.startswith("#") else line)
        found.append("")
    return ["\n".join(found).strip()]


if __name__ == "__main__":
    main()
