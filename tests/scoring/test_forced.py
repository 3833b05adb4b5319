"""Teacher forcing against stepping: one row alone, every prefix read anew, float64 formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from conflictkit import _hf, detectors
from conflictkit.errors import LogitsError
from conflictkit.scoring import forced
from tests.engine.reference import next_logits
from tests.tiny import gpt2, llama, sliding

PROMPTS = [
    ([0, 5, 6, 7, 8, 9, 11, 12, 13, 14], [0, 12, 13, 14]),
    ([0, 20, 21, 3], [0, 3]),
    ([0, 9, 9, 9, 30, 31, 32, 8, 7, 33], [0, 8, 7, 33]),
]
ANSWERS = [[15, 16, 17, 4, 5], [25], [7, 8, 9]]
NAMES = ("jsd", "context-entropy", "top-disagreement")


def stepped(model: Any, prompt: list[int], answer: list[int]) -> list[torch.Tensor]:
    """float64 log-probabilities before every answer token."""
    return [
        next_logits(model, [*prompt, *answer[:n]])[0].double().log_softmax(-1)
        for n in range(len(answer))
    ]


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> float:
    middle = ((p.exp() + q.exp()) / 2).log()
    return float((p.exp() * (p - middle) + q.exp() * (q - middle)).sum() / 2)


@pytest.mark.parametrize("make", [llama, gpt2, sliding])
def test_one_pass_equals_stepping(make: Any) -> None:
    model = make()
    scores = [detectors.get(name) for name in NAMES]
    found = forced.read(model, PROMPTS, ANSWERS, scores, pad_id=2)
    assert len(found) == len(PROMPTS)
    for (context, memory), answer, reading in zip(PROMPTS, ANSWERS, found, strict=True):
        ours, theirs = stepped(model, context, answer), stepped(model, memory, answer)
        assert len(reading.context) == len(answer)
        for index, token in enumerate(answer):
            p, q = ours[index], theirs[index]
            wanted = (jensen_shannon(p, q), float(-(p.exp() * p).sum()))
            assert reading.context[index] == pytest.approx(float(p[token]), abs=1e-5)
            assert reading.memory[index] == pytest.approx(float(q[token]), abs=1e-5)
            assert reading.scores[0][index] == pytest.approx(wanted[0], abs=1e-5)
            assert reading.scores[1][index] == pytest.approx(wanted[1], abs=1e-5)
            assert reading.scores[2][index] == float(p.argmax() != q.argmax())


def test_a_detector_is_told_position_and_previous_token() -> None:
    seen = []

    def look(step: Any) -> torch.Tensor:
        seen.append((step.index, None if step.previous is None else step.previous.tolist()))
        return step.context.amax(-1)

    spy = detectors.Detector("spy", ("context",), look, "")
    forced.read(llama(), PROMPTS, ANSWERS, [spy], pad_id=2)
    assert seen == [(0, None), (1, [15, 7]), (2, [16, 8]), (3, [17]), (4, [4])]


def test_logits_that_would_not_fit_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [detectors.get("jsd")]
    whole = forced.read(llama(), PROMPTS, ANSWERS, scores, pad_id=2)
    sizes = []
    read = _hf.tail_logits

    def spy(model: Any, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        made = read(model, ids, **arguments)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(_hf, "tail_logits", spy)
    monkeypatch.setattr(forced, "MOST_LOGITS", 40 * 6)
    parts = forced.read(llama(), PROMPTS, ANSWERS, scores, pad_id=2)
    assert max(sizes) <= 40 * 6
    for one, other in zip(whole, parts, strict=True):
        assert one.context == pytest.approx(other.context, abs=1e-5)
        assert one.scores[0] == pytest.approx(other.scores[0], abs=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_last_logits_asked_for_are_those_of_the_last_positions(make: Any) -> None:
    model, ids = make(), torch.tensor([[0, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        every = model(ids, use_cache=False).logits
    arguments: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(6)[None],
    }
    for keep in (1, 3, 6):
        found = _hf.tail_logits(model, ids, keep=keep, **arguments)
        torch.testing.assert_close(found, every[:, -keep:])
    # Models without the argument give all positions: the last ones are taken.
    accepted = _hf.accepted_arguments(model) - {"logits_to_keep"}
    found = _hf.tail_logits(model, ids, keep=2, accepted=accepted, **arguments)
    torch.testing.assert_close(found, every[:, -2:])


def test_logits_that_are_no_numbers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    read = _hf.tail_logits

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        logits = read(*arguments, **options)
        logits[0, 2] = math.nan
        return logits

    monkeypatch.setattr(_hf, "tail_logits", broken)
    with pytest.raises(LogitsError, match=r"answer token 3, rows \[0\]"):
        forced.read(llama(), PROMPTS, ANSWERS, [detectors.get("jsd")], pad_id=2)
