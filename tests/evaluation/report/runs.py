"""Run folders made of real answers of Atlas, in the format that the runner writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import conflictkit as ck
from conflictkit.answers import Answer
from conflictkit.evaluation.record import Cost, Result
from conflictkit.trace import Candidate
from conflictkit.types import Case

SCORES = ["jsd", "context-entropy", "memory-confidence"]


def answered(
    cases: Sequence[Case], methods: Sequence[str], *, size: int = 64, tokens: int = 8
) -> list[Result]:
    """Every case under every method, from `Model.ask_batch` with its traces."""
    model = ck.load("atlas")
    found = []
    for method in methods:
        for start in range(0, len(cases), size):
            batch = cases[start : start + size]
            said = model.ask_batch(
                [case.question for case in batch],
                [case.contexts or None for case in batch],
                method,
                scores=SCORES,
                max_new_tokens=tokens,
            )
            found += [
                result(case, method, answer, len(batch))
                for case, answer in zip(batch, said, strict=True)
            ]
    return found


def result(case: Case, method: str, answer: Answer, rows: int) -> Result:
    assert answer.trace is not None
    tokens = [token for token in answer.trace.tokens if token.kind != "end"]
    stats = answer.stats
    logprob = sum(-token.scores.get("context-entropy", 0.0) for token in tokens)
    return Result(
        case=case.id,
        method=method,
        answer=answer.text,
        ids=tuple(token.id for token in tokens),
        finish_reason=answer.finish_reason,
        context_logprob=logprob if case.contexts else None,
        tokens=[
            {
                "text": token.text,
                "id": token.id,
                "scores": dict(token.scores),
                "context_weight": token.context_weight,
                "memory_weight": token.memory_weight,
                "context_top": pairs(token.context_top),
                "memory_top": pairs(token.memory_top),
            }
            for token in tokens
        ],
        cost=Cost(
            forwards=stats.forwards / rows,
            context_tokens=stats.context_tokens // rows,
            memory_tokens=stats.memory_tokens // rows,
            seconds=0.01,
            cache_bytes=1024 if stats.memory_tokens else 0,
        ),
    )


def pairs(top: Iterable[Candidate]) -> list[list[Any]]:
    return [[candidate.text, candidate.probability] for candidate in top]


def write(
    folder: Path,
    cases: Sequence[Case],
    results: Sequence[Result],
    summary: Mapping[str, Any],
    *,
    model: str = "atlas",
) -> Path:
    """A finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "format": "conflictkit-run",
        "version": 1,
        "model": {
            "name": model,
            "fingerprint": "0" * 64,
            "class": "LlamaForCausalLM",
            "parameters": 4_000_000,
            "dtype": "float32",
            "device": "cpu",
        },
        "cases": {
            "spec": "atlas",
            "hash": "1" * 64,
            "count": len(cases),
            "states": dict(Counter(case.state for case in cases)),
        },
        "methods": list(dict.fromkeys(result.method for result in results)),
        "options": {"max_new_tokens": 16, "batch_size": 64, "seed": 0},
        "versions": {"conflictkit": ck.__version__, "python": "3.11"},
        "started": "2026-01-02T10:00:00+00:00",
        "finished": "2026-01-02T10:01:00+00:00",
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    lines(folder / "cases.jsonl", (asdict(case) for case in cases))
    lines(folder / "rows.jsonl", (result.to_dict() for result in results))
    (folder / "errors.jsonl").touch()
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def lines(path: Path, values: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
