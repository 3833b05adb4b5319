"""What is asked for, and whether it is reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

Figures = Mapping[str, Any]

MOST_STEP, MOST_BATCH, MOST_CACHE = 1.08, 1.05, 1.05
MOST_PASSES = 1.0
MOST_COPIED = 0.6
MOST_SECONDS = 1.0
LEAST_SCORED = 0.9
MOST_TENSORS = 0
MOST_MEMORY = 0.01


def size(cell: Figures) -> tuple[int, int]:
    return cell["context"], cell["batch"]


def asked(found: Mapping[str, Figures], cells: list[Figures]) -> Iterator[str]:
    """A line for each figure that is asked for."""
    passes = [one["ways"]["packed"]["passes_per_token"] for one in cells if has(one, "packed")]
    yield _line(
        "passes over the weights per token, AdaCAD, `packed` (`sequential`: 2)",
        f"at most {MOST_PASSES:.0f}",
        f"{max(passes):.2f}" if passes else None,
        bool(passes) and max(passes) <= MOST_PASSES,
    )
    yield from _steps(cells)
    copied, score, leaks = found["copying"], found["score"], found["leaks"]
    per = copied["passes_per_token"]["drafted"] if copied else 0
    yield _line(
        "passes per token where answers copy, AdaCAD, `drafts='auto'`",
        f"at most {MOST_COPIED}",
        f"{per:.2f} over {copied['counted']} answers" if copied else None,
        per <= MOST_COPIED,
    )
    over = copied.get("drafted_over_generate_same")
    yield _line(
        "their seconds, relative to plain `generate` where both answer alike",
        f"at most {MOST_SECONDS}",
        f"{spread(over)} over {over['of']} answers" if over else None,
        bool(over) and over["median"] <= MOST_SECONDS,
    )
    yield _line(
        "their tokens with and without drafts",
        "the same",
        f"{copied['same_as_undrafted']} of {copied['counted']} the same" if copied else None,
        bool(copied) and copied["same_as_undrafted"] == copied["counted"],
    )
    share = score.get("scored_over_bare")
    yield _line(
        "tokens per second of scoring a corpus, relative to two bare passes",
        f"at least {LEAST_SCORED}",
        f"{spread(share)} ({score['shape']})" if share else None,
        bool(share) and share["median"] >= LEAST_SCORED,
    )
    grown = leaks.get("tensors_grown", 0)
    behind = f"live tensors, from the tenth to the last of {leaks.get('answers', '')} answers"
    yield _line(
        behind if leaks else "live tensors, from the tenth answer on",
        f"{MOST_TENSORS} more",
        f"{grown} more" if leaks else None,
        grown <= MOST_TENSORS,
    )
    memory = leaks.get("memory_grown", 0)
    yield _line(
        "resident memory, likewise",
        f"less than {MOST_MEMORY:.0%} more",
        f"{memory:.1%} more" if leaks else None,
        memory < MOST_MEMORY,
    )


def _steps(cells: list[Figures]) -> Iterator[str]:
    """What a packed step costs, beside plain ones."""
    for cell in cells:
        shape, (context, batch) = cell["shape"], size(cell)
        where = f"{shape}, context {context:,}"
        if not has(cell, "packed"):
            continue
        packed = cell["ways"]["packed"]
        if (shape, context, batch) == ("0.5B", 2048, 1):
            yield _line(
                f"seconds of a packed step, relative to a plain one, {where}, one row",
                f"at most {MOST_STEP}",
                spread(packed["over_plain"]),
                packed["over_plain"]["median"] <= MOST_STEP,
            )
        if has(cell, "double"):
            rounds = zip(packed["seconds"], cell["ways"]["double"]["seconds"], strict=True)
            over = median(one / other for one, other in rounds)
            yield _line(
                f"seconds of a packed step of {batch} rows in two streams, relative to a plain one "
                f"of {2 * batch} rows, {where}",
                f"at most {MOST_BATCH}",
                f"{over:.2f}",
                over <= MOST_BATCH,
            )
        if context == 4096:
            held = packed["cache_over_plain"]
            yield _line(
                f"bytes of both streams' caches, relative to plain's, {where}",
                f"at most {MOST_CACHE}",
                f"{held:.3f}",
                held <= MOST_CACHE,
            )


def _line(what: str, asked: str, measured: str | None, reached: bool) -> str:
    verdict = "" if measured is None else "reached" if reached else "**not reached**"
    return f"| {what} | {asked} | {measured or 'not measured'} | {verdict} |"


def has(cell: Figures, way: str) -> bool:
    return way in cell["ways"]


def spread(one: Figures, digits: int = 2) -> str:
    return f"{one['median']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"
