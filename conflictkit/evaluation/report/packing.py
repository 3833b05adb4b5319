"""Cases and answers of a run, packed for the page: JSON, compressed, opened when looked at.

What is needed to list and search all cases is one packet; passages and traces are in others, a few
cases each, so that opening one case unpacks little. All text has passed `visible`.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from conflictkit.evaluation.folder import Run
from conflictkit.evaluation.metrics.source import judge
from conflictkit.evaluation.record import Result
from conflictkit.trace.record import CONFLICT_SCORE
from conflictkit.trace.text import visible
from conflictkit.types import Case

BLOCK = 25
"""Cases in a packet."""
CANDIDATES = 3
"""Of each stream, per token."""


class _Texts:
    """Strings by number: candidates repeat a lot."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._seen:
            shown = visible(text, lines=True)
            self._seen[text] = self.numbers.setdefault(shown, len(self.numbers))
        return self._seen[text]


def packets(run: Run, match: str, *, traces: bool = True) -> tuple[str, list[str]]:
    """A run as packets for the page.

    Args:
        run: the run.
        match: how answers are recognised.
        traces: put the answers' tokens in.

    Returns:
        The packet that lists all cases, and those with passages and traces, in base64.
    """
    methods = list(dict.fromkeys(result.method for result in run.results))
    place = {label: number for number, label in enumerate(methods)}
    by_case: dict[str, dict[int, Result]] = {case.id: {} for case in run.cases}
    for result in run.results:
        if result.case in by_case:
            by_case[result.case][place[result.method]] = result
    names = _score_names(run.results)
    answers, pieces = _Texts(), _Texts()
    listed, blocks = [], []
    for start in range(0, len(run.cases), BLOCK):
        block = []
        for case in run.cases[start : start + BLOCK]:
            found = by_case[case.id]
            row: list[Any] = []
            for number in range(len(methods)):
                result = found.get(number)
                row.append(None if result is None else _judged(case, result, match, answers))
            listed.append([*_head(case), row])
            told = [
                _told(found[number], names, pieces, traces) if number in found else None
                for number in range(len(methods))
            ]
            block.append([*_body(case), told])
        blocks.append(_pack(block))
    index = {
        "methods": [visible(label) for label in methods],
        "scores": [visible(name) for name in names],
        "conflict": names.index(CONFLICT_SCORE) if CONFLICT_SCORE in names else -1,
        "block": BLOCK,
        "traces": traces,
        "answers": list(answers.numbers),
        "texts": list(pieces.numbers),
        "cases": listed,
    }
    return _pack(index), blocks


def _score_names(results: Sequence[Result]) -> list[str]:
    """Names of all scores recorded, the one that colours tokens first."""
    names = dict.fromkeys(
        name for result in results for token in result.tokens for name in token["scores"]
    )
    first = [CONFLICT_SCORE] if CONFLICT_SCORE in names else []
    return list(dict.fromkeys([*first, *names]))


def _head(case: Case) -> list[Any]:
    """What the list of cases shows."""
    answers = (case.gold_answers, case.context_answers, case.memory_answers)
    return [
        visible(case.id),
        visible(case.state),
        visible(case.question, lines=True),
        *([visible(answer) for answer in some] for some in answers),
    ]


def _judged(case: Case, result: Result, match: str, answers: _Texts) -> list[Any]:
    """Answer, whether it is right, and where it comes from."""
    verdict = judge(case, result.answer, match=match)
    return [answers(result.answer), int(verdict.right), verdict.source[0]]


def _body(case: Case) -> list[Any]:
    """What is shown of a case once it is open."""
    facts = {
        "source": case.source,
        "split": case.split,
        "relation": case.relation,
        "subject": case.subject,
        "passage": case.context_kind,
    }
    return [
        [visible(passage, lines=True) for passage in case.contexts],
        [[name, visible(str(value))] for name, value in facts.items() if value],
        [visible(text, lines=True) if text else None for text in (case.prompt, case.memory_prompt)],
    ]


def _told(result: Result, names: Sequence[str], texts: _Texts, traces: bool) -> list[Any]:
    """Of one answer: why it ended, its log-probability, passes, choices, tokens."""
    choices = [[visible(name), _short(value)] for name, value in result.choices.items()]
    tokens = [_token(token, names, texts) for token in result.tokens] if traces else []
    facts = [visible(result.finish_reason), _short(result.context_logprob)]
    return [*facts, _short(result.cost.forwards), choices, tokens]


def _token(token: Mapping[str, Any], names: Sequence[str], texts: _Texts) -> list[Any]:
    scores = [_short(token["scores"].get(name)) for name in names]
    weights = [_short(token["context_weight"]), _short(token["memory_weight"])]
    tops = [
        [
            part
            for text, share in token[top][:CANDIDATES]
            for part in (texts(text), _per_cent(share))
        ]
        for top in ("context_top", "memory_top")
    ]
    return [texts(token["text"]), token["id"], scores, *weights, *tops]


def _short(value: float | None) -> float | int | None:
    """A number as it will be shown; None for what is not a number."""
    if value is None or not math.isfinite(value):
        return None
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _per_cent(share: float | None) -> int | None:
    """A probability in whole per cent, as it is shown; -1 below one, 101 above 99, but not 0 or 1.

    Rounded once, here: thousandths rounded again by the page would show 54.47 % as 55 %.
    """
    if share is None or not math.isfinite(share):
        return None
    if 0 < share < 0.01:
        return -1
    return 101 if 0.99 < share < 1 else round(share * 100)


def _pack(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode("ascii")
