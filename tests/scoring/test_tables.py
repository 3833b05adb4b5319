"""Parquet: rows that are malformed, what a hash of rows depends on, and what is held in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from conflictkit.scoring import Fields, Row, tables
from conflictkit.scoring.reading import Place, open_source
from conflictkit.scoring.rows import BadRow


def test_malformed_rows_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    broken = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"question": broken, "context": ["c", "c"]}), path)
    first, bad = [row for row, _ in open_source(path, Fields()).rows(Place())]
    assert first == Row("ok", ("c",), line=1)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field, bad.reason) == (2, "question", "is not UTF-8 text")
    parquet.write_table(pa.table({"question": [1], "context": [["c", None]]}), path)
    (bad,) = [row for row, _ in open_source(path, Fields()).rows(Place())]
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field) == (1, "question")
    assert json.loads(bad.raw) == {"question": 1, "context": ["c", None]}


def test_the_hash_of_a_table_is_that_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"

    def hashed(rows: list[Any], stop: int, step: int = 99, **options: Any) -> str:
        parquet.write_table(pa.Table.from_pylist(rows), path, **options)
        source = open_source(path, Fields())
        digest = source.digest()
        for start in range(0, stop, step):
            source.absorb(digest, start, min(start + step, stop))
        return digest.hexdigest()

    rows = [{"question": f"Number {n}?", "context": ["a", str(n)], "more": n} for n in range(11)]
    seven = hashed(rows, 7)
    assert hashed(rows, 7, step=2) == seven
    assert hashed(rows, 7, step=3, row_group_size=2, compression="none") == seven
    assert hashed(rows[:8], 7) == seven
    assert hashed([{**row, "more": 0} for row in rows], 7) == seven  # a column that is not read
    for place, same in ((6, False), (7, True)):
        changed = [*rows]
        changed[place] = {**rows[place], "context": ["a", "b"]}
        assert (hashed(changed, 7) == seven) is same
    assert hashed(rows, 8) != seven


def test_the_hash_of_a_table_tells_bytes_apart_that_are_no_text(tmp_path: Path) -> None:
    path, found = tmp_path / "rows.parquet", set()
    for bad in (b"\xff", b"\xfe"):
        text = pa.array([bad, b"ok"], pa.binary()).view(pa.string())
        passages = pa.ListArray.from_arrays(pa.array([0, 2]), text)
        for column in (text[:1], passages):
            parquet.write_table(pa.table({"question": ["q"], "context": column}), path)
            source = open_source(path, Fields())
            digest = source.digest()
            source.absorb(digest, 0, 1)
            found.add(digest.hexdigest())
    assert len(found) == 4


def test_a_row_group_of_parquet_is_not_held(tmp_path: Path) -> None:
    path, count = tmp_path / "rows.parquet", 10_000
    texts = [f"{n:05}" + "x" * 1200 for n in range(count)]
    table = pa.table({"question": ["Who?"] * count, "context": texts})
    parquet.write_table(table, path, use_dictionary=False, compression="none")
    del table, texts
    assert parquet.ParquetFile(path).num_row_groups == 1
    source = open_source(path, Fields())
    pool, before = pa.default_memory_pool(), pa.total_allocated_bytes()
    held = [pool.bytes_allocated() - before for _ in source.rows(Place())]
    assert path.stat().st_size > 12_000_000
    assert max(held) < 6_000_000


def test_parquet_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PART", 2000)
    lines = tmp_path / "records"
    record = {"line": 1, "id": None, "answer": "x" * 500, "scores": {"jsd": {"max": 0.5}}}
    lines.write_text((json.dumps(record) + "\n") * 40)
    held = []
    parts = tables._parts

    def spy(path: Path) -> Any:
        for part in parts(path):
            held.append(len(part))
            yield part

    monkeypatch.setattr(tables, "_parts", spy)
    tables.write_parquet(lines, tmp_path / "out.parquet", ["jsd"], tokens=False)
    file = parquet.ParquetFile(tmp_path / "out.parquet")
    assert file.metadata.num_rows == 40
    assert file.num_row_groups == 40 / max(held) == 10
