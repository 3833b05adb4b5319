"""What the tests of drafts share: prompts that repeat themselves, runs, drafts made to order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from conflictkit import engine, methods
from conflictkit.controller import Controller
from conflictkit.drafting import Lookup
from conflictkit.plan import open_streams
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from conflictkit.types import Generation, Stats

VOCAB = 8
"""So few tokens that drafts are often right."""
SIZES = [(9, 4), (3, 7), (14, 2), (1, 1)]
TOKENS = 16
_DECODING = frozenset(Decoding.__dataclass_fields__)

Rows = list[dict[str, list[int]]]
Made = list[list[Generation]]


def repeating(seed: int, sizes: Sequence[tuple[int, int]] = SIZES, vocab: int = VOCAB) -> Rows:
    """Prompt pairs whose contexts end as they begin."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for context, question in sizes:
        own = torch.randint(3, vocab, (context,), generator=draw).tolist()
        asked = torch.randint(3, vocab, (question,), generator=draw).tolist()
        whole = [*own, *own[:3]][-max(context, 3) :]
        rows.append({"context": [0, *whole, *asked], "memory": [0, *asked]})
    return rows


def run_of(
    hf: Any, control: Any, rows: Rows, drafts: int | None = 0, road: Any = None, **options: Any
) -> Stepper:
    """A run that nothing has been read for; options of `Decoding` and of `Stepper`.

    Without drafts it goes the plain road, for which each stream has a pass of its own.
    """
    control = Controller(methods.parse(control)) if isinstance(control, str) else control
    lengths = [(len(row["context"]), len(row["memory"])) for row in rows]
    spans = [(1, 1 + context - memory) for context, memory in lengths]
    decoding = {name: options.pop(name) for name in [*options] if name in _DECODING}
    streams = options.pop("streams", None) or open_streams(
        hf, control, {name: [row[name] for row in rows] for name in rows[0]}, pad_id=2,
        spans=spans, names=options.pop("names", None), use_cache=options.pop("use_cache", True),
    )  # fmt: skip
    given: dict[str, Any] = {"end_ids": (1,), "top": 2, "decode": text} | options
    given["road"] = road or ("sequential" if drafts == 0 else "packed")
    own = Decoding(**{"max_new_tokens": TOKENS, **decoding})
    return Stepper(streams, control, own, drafts=drafts, **given)


def text(ids: Sequence[int]) -> str:
    """Tokens as words."""
    return " ".join(map(str, ids))


def made(hf: Any, control: Any, rows: Rows, *given: Any, **options: Any) -> Made:
    """All answers of a run."""
    return engine.generate(run_of(hf, control, rows, *given, **options))


def ids_of(answers: Made) -> list[list[tuple[int, ...]]]:
    """The tokens of all answers."""
    return [[one.ids for one in row] for row in answers]


def same(found: Made, wanted: Made) -> Stats:
    """The same tokens, endings and records, up to rounding; what the found cost."""
    close: Any = {"rel": 1e-3, "abs": 1e-3}
    assert ids_of(found) == ids_of(wanted)
    pairs = [pair for rows in zip(found, wanted, strict=True) for pair in zip(*rows, strict=True)]
    for mine, other in pairs:
        assert mine.finish_reason == other.finish_reason
        assert mine.score == pytest.approx(other.score, **close)
        for one, two in zip(mine.records, other.records, strict=True):
            assert one.id == two.id
            assert one.scores == pytest.approx(two.scores, **close)
            assert one.context_weight == pytest.approx(two.context_weight, **close)
            assert one.memory_weight == pytest.approx(two.memory_weight, **close)
            assert one.tops.keys() == two.tops.keys()
            for name in one.tops:
                shares = [[share for _, share in each.tops[name]] for each in (one, two)]
                assert shares[0] == pytest.approx(shares[1], **close)
    return found[0][0].stats


def texts_of(rows: Rows, answers: Made, name: str = "context") -> list[list[int]]:
    """Each prompt with its answer behind it, end token included."""
    found = []
    for row, several in zip(rows, answers, strict=True):
        for one in several:
            said = [record.id for record in one.records] or list(one.ids)
            found.append([*row[name], *said])
    return found


def continued(so_far: Sequence[int], texts: Sequence[Sequence[int]]) -> list[int]:
    """What follows in the first of these texts that begins so; nothing if none does."""
    size = len(so_far)
    fitting = (one for one in texts if list(one[:size]) == list(so_far))
    return list(next(fitting, ()))[size:]


def make(
    monkeypatch: pytest.MonkeyPatch, draft: Callable[[list[int], int], Sequence[int]]
) -> list[list[int]]:
    """Let drafts be `draft(text so far, most)`; the list grows by each of them."""
    seen: list[list[int]] = []

    def drafted(self: Lookup, most: int, least: int = 1) -> list[int]:
        found = list(draft(self._ids, most))[: max(most, 0)]
        seen.append(found)
        return found

    monkeypatch.setattr(Lookup, "draft", drafted)
    return seen


@contextmanager
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Every text that drafts are looked up for inside, and the draft."""
    seen: list[tuple[list[int], list[int]]] = []
    own = Lookup.draft

    def drafted(self: Lookup, most: int, least: int = 1) -> list[int]:
        found = own(self, most, least)
        seen.append((list(self._ids), found))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Lookup, "draft", drafted)
        yield seen


def actives(answers: Made) -> set[float]:
    """What gates said in these answers."""
    return {
        record.scores["active"] for row in answers for one in row for record in one.records
        if "active" in record.scores
    }  # fmt: skip


def in_common(draft: Sequence[int], truth: Sequence[int]) -> int:
    """How many tokens of a draft are right."""
    pairs = zip(draft, truth, strict=False)
    return next((place for place, (one, two) in enumerate(pairs) if one != two),
                min(len(draft), len(truth)))  # fmt: skip
