"""Rankings of heads as files: exact there and back, strict about everything else."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conflictkit import interventions
from conflictkit.errors import ConflictKitError, InvalidParameterError, RankingError
from conflictkit.files import JsonFile
from conflictkit.interventions import _headfile
from conflictkit.interventions.ranking import HeadRanking

DIGEST = "0123456789abcdef" * 4


def ranking(**given: Any) -> HeadRanking:
    """Two layers of three heads."""
    fields: dict[str, Any] = {
        "by": "path-patching",
        "model": "tiny",
        "fingerprint": DIGEST,
        "cases": 7,
        "cases_hash": DIGEST,
        "scores": {
            "context": [[0.5, -1.0, 0.0], [0.5, 2.5e-9, 0.1]],
            "memory": torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 3.0]]),
        },
        "errors": {"context": [[0.1] * 3, [0.0] * 3]},
        "dropped": {"no conflict": 2},
        "seed": 3,
    }
    return HeadRanking(**fields | given)


def as_text(**changes: Any) -> str:
    """A valid file with some fields changed; None of `...` leaves a field out."""
    data = ranking().to_dict()
    for name, value in changes.items():
        *path, last = name.split(".")
        place = data
        for part in path:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return json.dumps(data)


def test_a_file_gives_back_exactly_what_was_written(tmp_path: Path) -> None:
    for made in (
        ranking(),
        ranking(enlarge=((1, 2), (0, 0)), suppress=()),
        ranking(directions=[[[0.5, -1e-9], [0.0, 3.0], [1 / 3, 2.0]], [[1.0, 1.0]] * 3]),
        ranking(scores={"context": [[1 / 3, 1e-300, 0.1]]}, errors={}, dropped={}),
    ):
        made.write(tmp_path / "heads.json")
        read = HeadRanking.read(tmp_path / "heads.json")
        assert read == made
        assert read.to_dict() == made.to_dict()
    assert os.listdir(tmp_path) == ["heads.json"]


def test_the_best_heads_come_first_and_equal_ones_in_their_order() -> None:
    made = ranking()
    assert made.top("context", 3) == ((0, 0), (1, 0), (1, 2))
    assert made.top("context", 99) == ((0, 0), (1, 0), (1, 2), (1, 1))
    assert made.top("context", 6, positive=False)[-2:] == ((0, 2), (0, 1))
    assert made.top("memory", 1) == ((1, 2),)
    assert made.top("memory", 0) == ()
    listed = ranking(enlarge=((1, 2), (0, 0)), suppress=())
    assert listed.top("enlarge", 1) == ((1, 2),)
    assert listed.top("suppress", 5) == ()


def test_what_a_ranking_lacks_is_named() -> None:
    alone = ranking(scores={"context": [[1.0]]}, errors={})
    with pytest.raises(RankingError, match="no scores of 'memory': it has context"):
        alone.top("memory", 1)
    with pytest.raises(RankingError, match="no list to enlarge"):
        alone.top("enlarge", 1)
    for k in (-1, 1.0, True, "2"):
        with pytest.raises(InvalidParameterError, match="k must be"):
            alone.top("context", k)  # type: ignore[arg-type]


def test_other_weights_are_refused() -> None:
    ranking().check("another name", DIGEST)
    with pytest.raises(RankingError, match="other weights .model 'tiny', .* than those of 'big'"):
        ranking().check("big", "0" * 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "conflictkit-policy"}, "format"),
        ({"version": 2}, "version 2 cannot be read"),
        ({"version": True}, "version True"),
        ({"seed": ...}, "lacks the field 'seed'"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"__class__": "os.system"}, "unknown field '__class__'"),
        ({"by": 3}, "by must be text"),
        ({"by": "\ud800"}, "by must be text"),
        ({"model.name": None}, "model must be text"),
        ({"model.fingerprint": "00"}, "64 hexadecimal digits"),
        ({"model": [1]}, "model must be an object"),
        ({"layers": 3}, "layers is 3, the tables have 2"),
        ({"layers": 2.0}, "layers is 2.0"),
        ({"heads": True}, "heads is True"),
        ({"cases.count": 0}, "cases must be a whole number from 1"),
        ({"cases.count": 1e9}, "cases must be a whole number"),
        ({"cases.dropped": {"why": -1}}, "dropped: why"),
        ({"seed": -1}, "seed"),
        ({"scores": {}}, "scores must hold"),
        ({"scores": []}, "scores must be an object"),
        ({"scores.other": [[1.0]]}, "unknown field 'other'"),
        ({"scores.context": [[1.0, 2.0], [1.0]]}, "row of the same length"),
        ({"scores.context": [[1.0, 2.0]]}, "tables of different shapes"),
        ({"scores.context": [[], []]}, "row of the same length"),
        ({"scores.context": 1.0}, "scores.context must be a table"),
        ({"scores.context": [["1", 2, 3]] * 2}, "scores.context holds '1'"),
        ({"scores.context": [[True, 2, 3]] * 2}, "scores.context holds True"),
        ({"scores.context": [[10**400, 2, 3]] * 2}, "not finite"),
        ({"errors.context": [[-1.0] * 3] * 2}, "standard error is negative"),
        ({"enlarge": [[0, 3]]}, "no head \\(0, 3\\)"),
        ({"enlarge": [[0, -1]]}, "a head is \\[layer, head\\]"),
        ({"suppress": [[0, 1], [0, 1]]}, "names a head twice"),
        ({"suppress": {"a": 1}}, "suppress must be a list"),
        ({"directions": ...}, "lacks the field 'directions'"),
        ({"directions": [[[1.0]] * 3]}, "a table for each layer"),
        ({"directions": [[[1.0]] * 3, [[1.0]] * 2]}, "a vector of the same length for each head"),
        ({"directions": [[[1.0]] * 3, [[1.0, 2.0]] * 3]}, "a vector of the same length"),
        ({"directions": [[[1.0]] * 3, [["x"]] * 3]}, "directions of layer 1 holds 'x'"),
        ({"directions": [[[1.0]] * 3, [[10**400]] * 3]}, "not finite"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(as_text(**change))
    with pytest.raises(RankingError, match=said) as caught:
        HeadRanking.read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_ranking_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = as_text()
    path = tmp_path / "heads.json"
    for data, said in [
        (b"", "is not JSON"),
        (b"[1, 2]", "must be an object"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (good.encode("utf-16"), "is not UTF-8"),
        (b"\x80\x04K\x01.", "is not UTF-8"),
        (good.replace("0.5", "NaN", 1).encode(), "NaN is no number"),
        (good.replace("0.5", "-Infinity", 1).encode(), "-Infinity is no number"),
        (good.replace("0.5", "1e999", 1).encode(), "not finite"),
        (good.replace('"seed": 3', '"seed": ' + "9" * 5000).encode(), "cannot be read as JSON"),
        (good.replace("{", '{"seed": 1, ', 1).encode(), "given twice"),
        (b"[" + b"0," * 4_000_001 + b"0]", "more than"),
    ]:
        path.write_bytes(data)
        with pytest.raises(RankingError, match=said):
            HeadRanking.read(path)
    path.write_bytes(b"\xef\xbb\xbf" + good.encode())  # a BOM is no fault
    assert HeadRanking.read(path) == ranking()
    smaller = replace(_headfile.FILE, largest=len(good))
    monkeypatch.setattr(_headfile, "FILE", smaller)
    with pytest.raises(RankingError, match="is larger than"):
        HeadRanking.read(path)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in [
        (tmp_path / "none.json", "cannot be read"),
        (tmp_path, "cannot be read|not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        ("a\0b", "cannot be read"),
    ]:
        with pytest.raises(RankingError, match=said):
            HeadRanking.read(name)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "heads.json"
    path.write_text("mine")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(RankingError, match="No space left"):
            ranking().write(path)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["heads.json"]
    with pytest.raises(RankingError, match="cannot write"):
        ranking().write(tmp_path / "missing" / "heads.json")


def test_nothing_but_our_own_errors_escapes_from_damaged_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """5,000 damaged files: bytes changed, pieces cut, doubled and swapped."""
    good = as_text().encode()
    pieces = (b"[", b"]", b"{", b"}", b'"', b",", b":", b"-", b"1e400", b"null", b"true", b"NaN",
              b"\xff", b"\\ud800", b"[" * 3000, b"9" * 5000, b"1.5", b"\x00")  # fmt: skip
    draw = random.Random(0)
    data = bytearray()
    # Not written: 5,000 files are a matter of the disk.
    monkeypatch.setattr(JsonFile, "contents", lambda *_: bytes(data))
    read = 0
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            start = draw.randrange(len(data))
            stop = min(len(data), start + draw.choice((0, 1, 1, 8, 60)))
            data[start:stop] = draw.choice((draw.choice(pieces), b"", bytes(data[start:stop]) * 2))
        try:
            HeadRanking.read("heads.json")
        except ConflictKitError:
            continue
        read += 1
    assert 0 < read < 2500  # a digit changed is another number, and no fault


def test_a_ranking_drives_the_edit_of_heads() -> None:
    chosen = dict.fromkeys(ranking().top("memory", 2), 0.0)
    assert interventions.HeadScale(chosen).scales == {(1, 2): 0.0, (0, 1): 0.0}
