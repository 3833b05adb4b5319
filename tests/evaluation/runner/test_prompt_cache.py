"""An evaluation over prompts that were read before: the same rows, and the same costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from conflictkit.errors import InvalidParameterError
from conflictkit.evaluation import evaluate, shared
from conflictkit.evaluation.shared import PromptsRead
from conflictkit.prompt_cache import PromptCache
from conflictkit.types import Case
from tests.evaluation.runner.conftest import case, closed, rows

METHODS = "plain,memory,adacad,cad"
DOCUMENT = "It is green, as everybody said who had ever been there before the war."
FEW: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 2}


@pytest.fixture
def cases() -> list[Case]:
    """Questions about one document, about documents of their own, about none, and one twice."""
    same = [case(number, contexts=(DOCUMENT,)) for number in range(4)]
    twice = case(5, contexts=(DOCUMENT,), question=same[0].question)
    return [*same, twice, case(6), case(7), closed(8)]


def like(value: Any) -> Any:
    """Up to rounding, which the last digits kept show."""
    if isinstance(value, dict):
        return {name: like(one) for name, one in value.items()}
    if isinstance(value, list):
        return [like(one) for one in value]
    return pytest.approx(value, rel=2e-3, abs=2e-3) if isinstance(value, float) else value


def used(kept: PromptCache, model: Any) -> PromptCache:
    """A cache with something in it already."""
    model.ask("What else?", max_new_tokens=1, cache=kept)
    return kept


@pytest.mark.slow
def test_the_same_rows_whatever_is_kept(model: Any, cases: list[Case], tmp_path: Path) -> None:
    kept = used(PromptCache(), model)
    evaluate(model, cases, METHODS, tmp_path / "own", **FEW)
    wanted = rows(tmp_path / "own")
    for name, cache in {"tiny": PromptCache(1), "one": kept, "two": kept}.items():
        before = (kept.tokens_read, kept.tokens_reused)
        evaluate(model, cases, METHODS, tmp_path / name, cache=cache, **FEW)
        assert rows(tmp_path / name) == like(wanted)
        if name == "two":
            # Not a token of a prompt was read again.
            assert kept.tokens_read == before[0]
            assert kept.tokens_reused - before[1] > before[0]
    prompts = [model.prompts(one.question, one.contexts or None).values() for one in cases]
    assert kept.tokens_read < sum(len(one.ids) for several in prompts for one in several)


@pytest.mark.parametrize("most", [1, 1 << 30])
def test_a_cache_that_is_given_empty_is_used(
    model: Any, cases: list[Case], tmp_path: Path, most: int
) -> None:
    kept = PromptCache(most)
    evaluate(model, cases, METHODS, tmp_path, cache=kept, **FEW)
    assert kept.tokens_read > 0
    assert (len(kept) > 0) == (most > 1)


def test_something_else_than_a_cache_is_refused_by_name(
    model: Any, cases: list[Case], tmp_path: Path
) -> None:
    given: Any = 5
    with pytest.raises(InvalidParameterError, match="cache must be a PromptCache, not int"):
        evaluate(model, cases, METHODS, tmp_path / "run", cache=given)
    assert not (tmp_path / "run").exists()


# What it costs


def test_a_prompt_costs_what_reading_all_of_it_takes() -> None:
    read, again = PromptsRead(PromptCache()), Mock(return_value=3.0)
    assert read.seconds("context", 5.0, 100, 100, again) == 5.0
    assert read.seconds("context", 0.01, 0, 100, again) == 5.0
    assert read.seconds("context", 0.01, 0, 40, again) == 2.0
    # A few tokens tell less of the speed than many.
    assert read.seconds("context", 1.0, 24, 100, again) == 5.0
    assert read.seconds("context", 1.0, 25, 100, again) == 4.0
    assert read.seconds("context", 9.0, 1, 10, again) == 9.0
    assert not again.called
    # Where nothing tells, they are read once more.
    assert read.seconds("memory", 0.5, 2, 10, again) == 3.0
    assert read.seconds("memory", 0.0, 0, 20, again) == 6.0
    again.assert_called_once_with()


@pytest.fixture
def clock(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A second for every token that the model reads, for what the evaluation takes."""
    now = [0.0]

    def reads(_: Any, __: Any, named: dict[str, Any]) -> None:
        now[0] += named["input_ids"].numel()

    hook = model.model.register_forward_pre_hook(reads, with_kwargs=True)
    monkeypatch.setattr(shared, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    yield now
    hook.remove()


def seconds(model: Any, cases: list[Case], folder: Path, kept: PromptCache | None) -> list[float]:
    """What every answer of one token took, in the order of the rows."""
    options: dict[str, Any] = {"batch_size": 1, "max_new_tokens": 1}
    run = evaluate(model, cases, METHODS, folder, cache=kept, **options)
    return [result.cost.seconds for result in run.results]


def test_costs_do_not_shrink_because_prompts_are_kept(
    model: Any, cases: list[Case], tmp_path: Path, clock: Any
) -> None:
    alone = [seconds(model, [one], tmp_path / one.id, None) for one in cases]  # nothing is kept yet
    together = seconds(model, cases, tmp_path / "all", None)
    assert sorted(together) == pytest.approx(sorted(sum(alone, [])))


def test_costs_do_not_shrink_because_another_run_has_read_the_prompts(
    model: Any, cases: list[Case], tmp_path: Path, clock: Any
) -> None:
    kept = used(PromptCache(), model)
    first = seconds(model, cases, tmp_path / "one", kept)
    assert seconds(model, cases, tmp_path / "two", kept) == pytest.approx(first)
