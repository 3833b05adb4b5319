"""What a prompt leaves room for, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conflictkit.errors import ContextTooLongError
from conflictkit.evaluation import evaluate
from conflictkit.evaluation.asking import prepare
from tests.evaluation.runner.conftest import case


def test_truncation_makes_room_for_the_choices(model: Any, tmp_path: Path) -> None:
    one = case(1, contexts=("word " * 60,), choices=("a", "y" * 99))
    wording = {"max_new_tokens": 9, "chat": None, "template": None, "truncate": True}
    ready = prepare(model, one, 0, wording)
    assert max(map(len, ready.choices)) == 100
    assert 250 < len(ready.prompts["context"]) + 100 <= model.window
    assert evaluate(model, [one], "plain", tmp_path, max_new_tokens=9, truncate=True).results


def test_choices_that_do_not_fit_say_what_to_do(model: Any) -> None:
    wording = {"max_new_tokens": 9, "chat": None, "template": None, "truncate": False}

    def refused(**fields: Any) -> str:
        with pytest.raises(ContextTooLongError) as caught:
            prepare(model, case(1, **fields), 0, wording)
        assert "max_new_tokens" not in str(caught.value)
        return str(caught.value)

    choices = ("a", "y" * 99)
    told = refused(contexts=("word " * 40,), choices=choices)
    assert "beside a choice of 100 tokens, question and context have" in told
    assert "--truncate" in told
    told = refused(prompt="y" * 180, memory_prompt="y", choices=choices)
    assert "beside a choice of 100 tokens, the prompt has 181" in told
    assert "the longest choice has 301 tokens" in refused(choices=("a", "y" * 300))
