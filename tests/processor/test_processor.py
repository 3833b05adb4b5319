"""What a processor is given, what it remembers, and what it refuses by name."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

import conflictkit as ck
from conflictkit import prefixes
from conflictkit.errors import (
    ContextTooLongError,
    EmptyInputError,
    InvalidParameterError,
    LogitsError,
    PrefixError,
    UnsupportedError,
)
from tests import tiny
from tests.engine.reference import next_logits
from tests.processor.exact import padded
from tests.processor.test_modes import GRD, ROWS, exact, generate, inputs, memory

MODEL = tiny.llama()
QUESTION = [0, 6, 7, 9]


def scores_of(ids: Tensor) -> Tensor:
    return torch.cat([next_logits(MODEL, row) for row in ids.tolist()])


def test_a_stream_finds_any_rows_of_ids_again() -> None:
    """Rows in any order and number, longer, shorter and branching, against reading them anew."""
    draw = torch.Generator().manual_seed(0)
    prompts = [[0, 6, 7], [0, 5, 9, 30, 11]]
    follower = prefixes.Follower(MODEL, prompts)
    tree = torch.randint(3, 6, (6, 5), generator=draw)  # few tokens: many common beginnings
    for _ in range(15):
        length = int(torch.randint(0, 6, (), generator=draw))
        groups = sorted([0, 1, *torch.randint(0, 2, (2,), generator=draw).tolist()])
        answers = tree[torch.randint(0, 6, (len(groups),), generator=draw), :length]
        logits, _, _ = follower.follow(answers, groups)
        for row, group in enumerate(groups):
            truth = next_logits(MODEL, [*prompts[group], *answers[row].tolist()])[0]
            torch.testing.assert_close(logits[row], truth, atol=2e-4, rtol=1e-4)


def test_an_interrupted_read_leaves_nothing_half_read(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION)
    ids = torch.tensor([[0, 5, 6, 7, 9]])
    processor(ids, scores_of(ids))
    longer = torch.tensor([[0, 5, 6, 7, 9, 8]])

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    scores = scores_of(longer)
    with monkeypatch.context() as patch:
        patch.setattr(type(MODEL), "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            processor(longer, scores)
    rule = ck.methods.build("adacad")
    truth = rule.combine(scores_of(longer), next_logits(MODEL, [*QUESTION, 8])).logits
    torch.testing.assert_close(processor(longer, scores_of(longer)), truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["plain", GRD])
def test_rows_that_are_left_alone_are_handed_on_bit_for_bit(method: str) -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION, method)
    ids = torch.tensor([[0, 5, 6, 7, 9]])
    scores = next_logits(MODEL, QUESTION) + 0.25 * torch.rand(40)  # same top: GRD stays undecided
    scores[0, int(next_logits(MODEL, QUESTION).argmax())] += 1
    assert torch.equal(processor(ids, scores), scores)
    assert processor(ids, scores.bfloat16()).dtype == torch.float32


def test_stats_count_what_the_memory_stream_read() -> None:
    processor = ck.ConflictProcessor(MODEL, memory())
    generate(MODEL, processor, n=3, eos_token_id=39)
    stats = processor.stats
    prompts = sum(map(len, memory()))
    assert (stats.forwards, stats.context_tokens, stats.memory_tokens) == (3, 0, prompts + 2 * 2)
    plain = ck.ConflictProcessor(MODEL, memory(), "plain")
    generate(MODEL, plain, n=3)
    assert plain.stats.forwards == 0


def test_answering_from_memory_keeps_forbidden_tokens_forbidden() -> None:
    processor = ck.ConflictProcessor(MODEL, memory(), "memory")
    free = generate(MODEL, processor)
    for row, ids in zip(ROWS, free[:, inputs()["input_ids"].shape[1] :].tolist(), strict=True):
        said: list[int] = []
        for token in ids:
            assert token == int(next_logits(MODEL, [*row["memory"], *said]).argmax())
            said.append(token)
            if token == 1:
                break
    taken = int(free[0, inputs()["input_ids"].shape[1]])
    made = generate(MODEL, processor, suppress_tokens=[taken], num_beams=2)
    assert taken not in made[:, inputs()["input_ids"].shape[1] :]


def test_beams_from_memory_alone_are_the_beams_of_the_question_alone() -> None:
    mode: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6, "pad_token_id": 2}
    alone = padded(memory())
    made = generate(MODEL, ck.ConflictProcessor(MODEL, memory(), "memory"), num_beams=3)
    truth = MODEL.generate(**alone, **mode)
    answers = made[:, inputs()["input_ids"].shape[1] :].tolist()
    assert answers == truth[:, alone["input_ids"].shape[1] :].tolist()


def test_one_method_per_prompt() -> None:
    both = generate(MODEL, ck.ConflictProcessor(MODEL, memory(), ["adacad", GRD]), num_beams=2)
    for row, method in enumerate(["adacad", GRD]):
        alone = generate(MODEL, ck.ConflictProcessor(MODEL, memory(), method), num_beams=2)
        width = min(both.shape[1], alone.shape[1])
        assert both[row, :width].tolist() == alone[row, :width].tolist()


def test_control_after_a_marker_starts_behind_it() -> None:
    plain = generate(MODEL, ck.ConflictProcessor(MODEL, memory(), "plain"))
    width = inputs()["input_ids"].shape[1]
    marker = plain[0, width : width + 2].tolist()
    processor = ck.ConflictProcessor(MODEL, memory(), "cad", start_after=marker)
    ids, said = inputs()["input_ids"], torch.tensor([marker, marker])
    for length in range(3):
        now = torch.cat([ids, said[:, :length]], 1)
        scores = torch.rand(2, 40, generator=torch.Generator().manual_seed(length))
        controlled = processor(now, scores)
        assert torch.equal(controlled, scores) == (length < 2)


# Calls with prefixes as no single generation would make them.


def test_generations_that_take_turns_and_threads_write_what_each_writes_alone() -> None:
    processor = ck.ConflictProcessor(MODEL, memory(), GRD)
    modes: list[dict[str, Any]] = [{"num_beams": 2}, {}, {"num_beams": 3}, {"use_cache": False}]
    made: dict[int, list] = {}

    def work(number: int) -> None:
        made[number] = MODEL.generate(
            **inputs(), logits_processor=[processor], max_new_tokens=5, **modes[number]
        ).tolist()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(modes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, mode in enumerate(modes):
        assert made[number] == generate(MODEL, exact(MODEL, GRD), n=5, **mode).tolist()


def test_two_generations_call_by_call() -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION, "adacad")
    rule = ck.methods.build("adacad")
    prompts, said = [[0, 5, 6, 7, 9], [0, 8, 8, 6, 7, 9]], [[11, 12, 13], [14, 15, 16]]
    for length in range(4):
        for prompt, answer in zip(prompts, said, strict=True):
            ids = torch.tensor([[*prompt, *answer[:length]]])
            truth = rule.combine(
                scores_of(ids), next_logits(MODEL, [*QUESTION, *answer[:length]])
            ).logits
            made = processor(ids, scores_of(ids))
            torch.testing.assert_close(made, truth, atol=1e-4, rtol=1e-4)


def call(processor: Any, *ids: int) -> Tensor:
    return processor(torch.tensor([ids]), torch.zeros(1, 40))


def test_made_up_logits_leave_nothing_behind() -> None:
    """Prompt lookup shows all-ones logits first, which GRD takes for an unsure context."""
    processor, rule = ck.ConflictProcessor(MODEL, QUESTION, GRD), ck.methods.parse(GRD)
    ids, longer = torch.tensor([[0, 5, 6, 7, 9]]), torch.tensor([[0, 5, 6, 7, 9, 8]])
    first, second = next_logits(MODEL, QUESTION), next_logits(MODEL, [*QUESTION, 8])
    surer, later = torch.zeros(1, 40), torch.zeros(1, 40)
    surer[0, first.argmin()] = later[0, second.argmin()] = 30.0
    processor(ids, torch.ones(1, 40))
    processor(ids, surer)
    made = processor(longer, later)
    assert torch.equal(made, later)  # it trusts the context from the first token on
    misled = rule.combine(torch.ones(1, 40), first).state
    assert not torch.equal(rule.combine(later, second, misled).logits, later)


def test_a_prompt_that_goes_on_is_not_taken_for_an_answer() -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION)
    call(processor, 0, 5, 6)
    with pytest.raises(PrefixError, match="prompt_length"):
        call(processor, 0, 5, 6, 7, 8)  # a longer prompt, or an answer with a step left out?


def test_a_prompt_that_is_also_an_answer_is_refused() -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION)
    call(processor, 0, 5, 6, 7)
    call(processor, 0, 5, 6)
    with pytest.raises(PrefixError, match="shorter one"):
        call(processor, 0, 5, 6, 7)


def test_a_prompt_length_settles_both() -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION, "cad", prompt_length=3)
    call(processor, 0, 5, 6)
    truth = ck.methods.build("cad").combine(
        torch.zeros(1, 40), next_logits(MODEL, [*QUESTION, 7, 8])
    )
    made = call(processor, 0, 5, 6, 7, 8)
    torch.testing.assert_close(made, truth.logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(PrefixError, match="prompt_length=3"):
        call(processor, 0, 5)


def test_a_rule_with_memory_refuses_tokens_it_never_saw() -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION, "grd", prompt_length=3)
    call(processor, 0, 5, 6)
    call(processor, 0, 5, 6, 7)
    with pytest.raises(PrefixError, match="never saw"):
        call(processor, 0, 5, 6, 8, 8)


def test_another_thread_may_not_go_on_with_an_answer() -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION)
    call(processor, 0, 5, 6)
    errors: list[Exception] = []

    def go_on() -> None:
        try:
            call(processor, 0, 5, 6, 7)
        except PrefixError as error:
            errors.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "_MOST_PREFIXES", 4)
    monkeypatch.setattr(prefixes, "_MOST_PROMPTS", 2)
    prompts = prefixes.Prompts(None)
    seen, rule = prefixes.Prefixes(prompts), ck.Controller(ck.methods.build("cad"))
    for token in range(9):
        place = seen.place(torch.tensor([[token, 1]]), [0], rule, torch.device("cpu"))
        seen.keep(place, {}, [0])
    assert len(seen._seen) == 4
    assert len(prompts._known) == 2


def test_rows_of_one_prompt_must_begin_alike() -> None:
    processor = ck.ConflictProcessor(MODEL, QUESTION)
    with pytest.raises(PrefixError, match="different beginnings"):
        processor(torch.tensor([[0, 5], [0, 6]]), torch.zeros(2, 40))


# What is handed over.


@pytest.mark.parametrize(
    "ids",
    [
        memory(),
        tuple(map(tuple, memory())),
        padded(memory()),
        {name: values.tolist() for name, values in padded(memory()).items()},
        {name: values.numpy() for name, values in padded(memory()).items()},
        padded(memory()) | {"attention_mask": padded(memory())["attention_mask"].bool()},
        [torch.tensor(row) for row in memory()],
    ],
    ids=[
        "lists",
        "tuples",
        "tensors and mask",
        "lists and mask",
        "arrays",
        "bools",
        "list of rows",
    ],
)
def test_memory_ids_in_every_usual_shape(ids: Any) -> None:
    assert ck.ConflictProcessor(MODEL, ids)._memory == memory()


@pytest.mark.parametrize(
    "ids",
    [
        QUESTION,
        torch.tensor(QUESTION),
        torch.tensor([QUESTION]),
        torch.tensor(QUESTION).numpy(),
        [torch.tensor(token) for token in QUESTION],
    ],
)
def test_one_row_of_memory_ids(ids: Any) -> None:
    assert ck.ConflictProcessor(MODEL, ids)._memory == [QUESTION]


@pytest.mark.parametrize(
    ("ids", "error", "says"),
    [
        ("Who?", InvalidParameterError, "tokenize"),
        (["Who?"], InvalidParameterError, "Who"),
        ([0, 5.5], InvalidParameterError, "5.5"),
        ([0, True], InvalidParameterError, "True"),
        ([5, [0, 5]], InvalidParameterError, "5 beside lists"),
        (torch.tensor([[5, 6, 2], [0, 5, 6]]).numpy(), InvalidParameterError, "attention_mask"),
        (None, InvalidParameterError, "memory_ids is missing"),
        (torch.rand(1, 3), InvalidParameterError, "whole numbers"),
        ([], EmptyInputError, "at least one token"),
        ([[0, 5], []], EmptyInputError, "every row"),
        ([0, 40], InvalidParameterError, "40 tokens"),
        ([0, -1], InvalidParameterError, "-1"),
        ([5] * 300, ContextTooLongError, "256"),
        ([[2, 2, 5], [0, 5, 6]], InvalidParameterError, "attention_mask"),
        (torch.tensor([[5, 6, 2], [0, 5, 6]]), InvalidParameterError, "attention_mask"),
        (
            {"input_ids": [[5, 2], [0, 5]], "attention_mask": [[1, 0], [1, 1]]},
            InvalidParameterError,
            "padding_side",
        ),
        (
            {"input_ids": [[5, 6, 7]], "attention_mask": [[1, 0, 1]]},
            InvalidParameterError,
            "padding_side",
        ),
        ({"input_ids": [[5]], "attention_mask": [[1, 1]]}, InvalidParameterError, "shape"),
        ({"input_ids": [[2]], "attention_mask": [[0]]}, EmptyInputError, "at least one"),
        ({"ids": [5]}, InvalidParameterError, "input_ids"),
    ],
)
def test_memory_ids_that_are_refused(ids: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ck.ConflictProcessor(MODEL, ids)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "adacat"}, ck.ConflictKitError, "adacad"),
        ({"method": "cad", "alhpa": 1.0}, ck.ConflictKitError, "alpha"),
        ({"method": ["cad", "grd"]}, InvalidParameterError, "2 entries in method for 1 rows"),
        ({"prompt_length": 0}, InvalidParameterError, "prompt_length"),
        ({"method": "cad", "start_after": "</think>"}, InvalidParameterError, "token ids"),
    ],
)
def test_options_that_are_refused(options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ck.ConflictProcessor(MODEL, QUESTION, **options)


def test_models_that_cannot_work_are_refused() -> None:
    sizes: dict[str, Any] = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
    pair = T5ForConditionalGeneration(T5Config(vocab_size=20, **sizes))
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        ck.ConflictProcessor(pair, [3, 4])
    with pytest.raises(InvalidParameterError, match="transformers model"):
        ck.ConflictProcessor(torch.nn.Linear(2, 2), [3, 4])


def test_calls_that_cannot_work_are_refused_before_a_token() -> None:
    processor = ck.ConflictProcessor(MODEL, [QUESTION, QUESTION])
    with pytest.raises(UnsupportedError, match="continuous batching"):
        processor(torch.tensor([5, 6]), torch.zeros(2, 40))
    with pytest.raises(UnsupportedError, match="inputs_embeds"):
        MODEL.generate(
            inputs_embeds=torch.rand(2, 3, 32), logits_processor=[processor], max_new_tokens=2
        )
    with pytest.raises(InvalidParameterError, match="3 rows"):
        processor(torch.tensor([[0, 5]] * 3), torch.zeros(3, 40))
    with pytest.raises(InvalidParameterError, match="41 tokens"):
        processor(torch.tensor([[0, 5]] * 2), torch.zeros(2, 41))
    with pytest.raises(InvalidParameterError, match="padding_side"):
        processor(torch.tensor([[9, 5, 2], [9, 5, 6]]), torch.zeros(2, 40))
    with pytest.raises(LogitsError, match="answer token 1"):
        processor(torch.tensor([[0, 9]] * 2), torch.full((2, 40), torch.nan))


def test_a_memory_stream_at_the_end_of_its_window_is_refused() -> None:
    model = tiny.gpt2()
    processor = ck.ConflictProcessor(model, [5] * 127)
    with pytest.raises(ContextTooLongError, match="128"):
        model.generate(
            torch.tensor([[0, 5]]), logits_processor=[processor], max_new_tokens=4, eos_token_id=39,
            pad_token_id=2, attention_mask=torch.ones(1, 2),
        )  # fmt: skip
