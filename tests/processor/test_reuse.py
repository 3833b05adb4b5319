"""One processor for several prompts: what it must not take for more of an earlier answer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit import prefixes
from conflictkit.errors import InvalidParameterError, PrefixError
from tests import tiny
from tests.engine.reference import greedy, next_logits

MODEL = tiny.llama()
MEMORY = [0, 6, 7]
PROMPT = [0, 5, 6, 7, 9]


def written(processor: Any, *prompts: list[int], n: int = 4, **mode: Any) -> list[list[int]]:
    ids = torch.tensor(prompts)
    made = MODEL.generate(
        ids, logits_processor=[processor], max_new_tokens=n, pad_token_id=2, **mode
    )
    return made[:, ids.shape[1] :].tolist()


def never_written(processor: Any) -> int:
    said = written(processor, PROMPT)[0]
    return next(token for token in range(30, 40) if token != said[0])


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_prompt_one_token_longer_is_not_taken_for_an_answer(mode: dict[str, Any]) -> None:
    processor = ck.ConflictProcessor(MODEL, MEMORY, "cad", alpha=3.0)
    longer = [*PROMPT, never_written(processor)]
    written(processor, PROMPT, **mode)
    with pytest.raises(PrefixError, match=r"one token longer.*prompt_length="):
        written(processor, longer, **mode)
    told = ck.ConflictProcessor(MODEL, MEMORY, "cad", alpha=3.0, prompt_length=len(longer))
    rule = ck.methods.build("cad", alpha=3.0)
    assert written(told, longer) == [greedy(MODEL, rule, longer, MEMORY, 4, {1})]


def test_another_draw_after_the_same_prompt_is_an_answer() -> None:
    processor = ck.ConflictProcessor(MODEL, MEMORY, "cad")
    said = set()
    for seed in range(6):
        torch.manual_seed(seed)
        said.add(str(written(processor, PROMPT, do_sample=True, temperature=3.0)))
    assert len(said) > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_draft_taken_back_is_none(seed: int) -> None:
    """The likeliest token after a place that was left already is what drafts are replaced by."""
    processor = ck.ConflictProcessor(MODEL, MEMORY, "cad")
    draft = tiny.llama(seed=seed + 1, layers=1)
    echo = [0, 5, 6, 7, 9, 5, 6, 7, 9, 5, 6]
    for _ in range(2):
        assert written(processor, echo, n=10, assistant_model=draft) == written(
            ck.ConflictProcessor(MODEL, MEMORY, "cad"), echo, n=10
        )


def test_drafts_that_are_drawn_need_to_be_told_where_the_answer_begins() -> None:
    echo = [0, 5, 6, 7, 9, 5, 6, 7, 9, 5, 6]
    mode: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "prompt_lookup_num_tokens": 3}
    told = ck.ConflictProcessor(MODEL, MEMORY, "cad", prompt_length=len(echo))
    torch.manual_seed(0)
    assert 1 <= len(written(told, echo, n=10, **mode)[0]) <= 10
    torch.manual_seed(0)
    with pytest.raises(PrefixError, match="draft that was drawn.*prompt_length="):
        written(ck.ConflictProcessor(MODEL, MEMORY, "cad"), echo, n=10, **mode)


def test_one_prompt_with_two_memories_is_refused() -> None:
    two = ck.ConflictProcessor(MODEL, [MEMORY, [0, 30, 31, 32]])
    modes: list[dict[str, Any]] = [
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 2},
    ]
    for mode in modes:
        with pytest.raises(InvalidParameterError, match="1 prompt for 2 rows of memory_ids"):
            written(two, PROMPT, **mode)
    with pytest.raises(InvalidParameterError, match="in calls of its own"):
        written(two, PROMPT, PROMPT)
    same = ck.ConflictProcessor(MODEL, [MEMORY, MEMORY], "cad")
    alone = written(ck.ConflictProcessor(MODEL, MEMORY, "cad"), PROMPT)
    assert written(same, PROMPT, PROMPT) == alone * 2


def test_generations_that_are_no_longer_used_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "_MOST_GENERATIONS", 2)
    processor = ck.ConflictProcessor(MODEL, MEMORY, "grd")

    def call(*ids: int) -> None:
        processor(torch.tensor([ids]), next_logits(MODEL, ids))

    call(0, 5)
    call(0, 6)
    call(0, 5, 9)
    call(0, 7)  # the least recently used of the three is that of [0, 6]
    call(0, 5, 9, 9)
    with pytest.raises(PrefixError, match="one by one"):
        call(0, 6, 9)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))],
    ids=["copy", "pickle"],
)
def test_a_copy_writes_the_same_and_remembers_nothing(copied: Any) -> None:
    controller = ck.Controller(ck.methods.build("grd"), when="jsd > 0.01")
    processor = ck.ConflictProcessor(MODEL, MEMORY, controller)
    said = written(processor, PROMPT)
    twin = copied(processor)
    assert twin.stats.forwards == 0
    assert written(twin, PROMPT) == said
    assert twin.stats == processor.stats
