"""House rules that no linter knows: sizes, words, links, pins, what may be touched from where."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import conflictkit

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FILE = 400
LONGEST_METHOD_FILE = 120


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: which files count is what git tracks")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_python_file_is_too_long(tracked: list[Path]) -> None:
    lengths = {_name(path): len(_lines(path)) for path in tracked if path.suffix == ".py"}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_a_published_rule_fits_on_two_screens() -> None:
    folder = ROOT / "conflictkit" / "interventions" / "contrast"
    rules = [path for path in folder.glob("*.py") if not path.name.startswith("_")]
    assert rules
    lengths = {path.name: len(_lines(path)) for path in rules}
    assert {name: n for name, n in lengths.items() if n > LONGEST_METHOD_FILE} == {}


def test_no_text_names_what_lies_outside_the_project(tracked: list[Path]) -> None:
    outside = re.compile(r"\.\./shared|/work/|/root/|/opt/|--(extra-)?index-url|--find-links")
    readable = {".py", ".md", ".toml", ".txt", ".yml", ".json", ".jsonl", ".cfg", ""}
    found = [
        f"{_name(path)}:{number}"
        for path in tracked
        if path.suffix in readable and path != Path(__file__)
        for number, line in enumerate(_lines(path), 1)
        if outside.search(line)
    ]
    assert found == []


def test_the_links_at_the_top_lead_to_the_code() -> None:
    for name in ("detectors", "interventions"):
        link = ROOT / name
        if not link.is_symlink():
            pytest.skip("links are not kept in an sdist, nor checked out on every system")
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / "conflictkit" / name


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.slow
def test_only_four_files_reach_into_transformers() -> None:
    for path in (ROOT / "conflictkit").rglob("*.py"):
        if path.name in ("_hf.py", "_hf_attention.py", "_hf_packed.py", "_hf_compiled.py"):
            continue
        names = [name for name in _imports(path) if name.startswith("transformers.")]
        inner = [name for name in names if name.rpartition(".")[2] not in dir(transformers)]
        assert inner == [], f"{_name(path)} imports {inner}: that belongs in conflictkit/_hf.py"


@pytest.mark.slow
def test_no_code_imports_through_the_links(tracked: list[Path]) -> None:
    for path in tracked:
        if path.suffix == ".py":
            roots = {name.partition(".")[0] for name in _imports(path)}
            assert not roots & {"detectors", "interventions"}, _name(path)


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = _lines(ROOT / "constraints.txt")
    parts = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in parts}


def test_every_dependency_is_pinned_within_its_range(project: dict, pins: dict[str, str]) -> None:
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(text for extra in extras for text in extra)]:
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        assert name in pins, f"constraints.txt does not pin {name}"
        assert wanted.specifier.contains(pins[name]), f"{text} does not admit {pins[name]}"


def test_the_changelog_knows_this_version() -> None:
    assert f"## {conflictkit.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_relative_links_of_the_texts_lead_somewhere(tracked: list[Path]) -> None:
    broken = []
    for path in tracked:
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:|#", target):
                continue
            if not (path.parent / target.partition("#")[0]).exists():
                broken.append(f"{_name(path)} -> {target}")
    assert broken == []
