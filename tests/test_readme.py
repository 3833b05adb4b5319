"""The README's table of methods says what the registry says."""

from __future__ import annotations

from pathlib import Path

from conflictkit import methods

README = Path(__file__).resolve().parent.parent / "README.md"


def method_table() -> str:
    lines = [
        "| method | forwards/token | needs | paper | what it does |",
        "|---|---|---|---|---|",
    ]
    for info in methods.all():
        paper = "–"
        if info.paper:
            paper = f"[{info.paper.authors} {info.paper.year}]({info.paper.url})"
        needs = " + ".join(info.needs)
        lines.append(f"| `{info.name}` | {info.forwards} | {needs} | {paper} | {info.summary} |")
    return "\n".join(lines)


def test_the_table_of_methods_is_the_registry() -> None:
    wanted = method_table()
    assert wanted in README.read_text(encoding="utf-8"), f"the table should read:\n\n{wanted}\n"


def test_every_method_can_be_chosen_with_the_guide() -> None:
    guide = (README.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    missing = [name for name in methods.names() if f"`{name}`" not in guide]
    assert missing == [], "docs/choosing.md does not say when to use these"
