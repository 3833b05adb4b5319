"""The compiled step: the tokens of the packed one, without a look at the host, and out of the way
when it is done.

Where compiling itself does not matter the step is taken as it was written: `torch.compile` hands
back what it is given.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import conflictkit as ck
from conflictkit import engine, methods
from conflictkit._hf_compiled import IDLE, ROOM, StaticStep, Steps
from conflictkit.controller import Controller
from conflictkit.errors import UnsupportedError
from conflictkit.plan import open_streams
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from conflictkit.together import Together
from tests.anatomy import families
from tests.engine import reference
from tests.engine.riding import FAR, built, near, opened, said, some
from tests.tiny import byte_tokenizer, gpt2, llama

VOCAB = 40
ROWS = reference.pairs(3, VOCAB, [(9, 4), (3, 7), (14, 2)])
TORCH_COMPILE = torch.compile


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled: the step is taken as it was written."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are captured, and guarded, but run as they are."""

    def capture(step: Any, *, mode: Any = None, **options: Any) -> Any:
        return TORCH_COMPILE(step, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", capture)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run_of(model: Any, rule: str, rows: Any, steps: Steps | None, **options: Any) -> Stepper:
    control = Controller(methods.parse(rule))
    prompts = {name: [row[name] for row in rows] for name in rows[0]}
    names = options.pop("names", None)
    streams = open_streams(model, control, prompts, pad_id=2, names=names)
    end_ids = options.pop("end_ids", (1,))
    road = options.pop("road", "packed")
    return Stepper(streams, control, Decoding(**{"max_new_tokens": 8, **options}),
                   end_ids=end_ids, decode=str, steps=steps, road=road)  # fmt: skip


def check(model: Any, rule: str, rows: Any, steps: Steps, **options: Any) -> list[Any]:
    """The same answers and records as in a packed run."""
    run = run_of(model, rule, rows, steps, **options)
    found = engine.generate(run)
    wanted = engine.generate(run_of(model, rule, rows, None, **options))
    for mine, other in zip(found, wanted, strict=True):
        assert [one.ids for one in mine] == [one.ids for one in other]
        assert [one.finish_reason for one in mine] == [one.finish_reason for one in other]
        for one, two in zip(mine, other, strict=True):
            assert one.score == pytest.approx(two.score, rel=1e-4, abs=1e-4)
            for this, that in zip(one.records, two.records, strict=True):
                assert this.scores == pytest.approx(that.scores, rel=1e-3, abs=1e-3)
    stats, plain = found[0][0].stats, wanted[0][0].stats
    assert stats.road == "compiled"
    assert (stats.forwards, stats.passes) == (plain.forwards, plain.passes)
    return found


def static_of(run: Stepper | Together) -> StaticStep:
    together = run._together if isinstance(run, Stepper) else run
    assert isinstance(together._static, StaticStep)
    return together._static


# The same answers

RUNS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "to the end": {"end_ids": ()},
    "sampled": {"temperature": 1.3, "seed": 6, "top_p": 0.9},
    "two each": {"temperature": 1.0, "seed": 7, "n": 2},
    "beams": {"num_beams": 3, "n": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.usefixtures("written")
def test_answers_are_those_of_the_packed_step(build: Any, rows: int, how: str) -> None:
    steps = Steps()
    for rule in ("adacad", "cad", "grd", "plain"):
        check(build(VOCAB), rule, ROWS[:rows], steps, **RUNS[how])


REFUSED = ("bloom", "codegen", "falcon-40b", "falcon-7b", "gemma2", "gemma3", "gemma3n", "gpt-neo",
           "gpt-oss", "gptj", "llama4", "mistral", "mpt", "qwen3-next", "xglm",
           "deepseek-v3")  # fmt: skip
FAMILIES = [one for one in (*families.CONFIGS, *FAR) if one not in REFUSED]


def steps_of(model: Any, steps: Steps | None) -> tuple[str, list[Tensor]]:
    together = Together(opened(model, [(17, 12, 17), (5, 5, 4)]), steps=steps, room=6)
    draw, seen = torch.Generator().manual_seed(9), []
    for number in range(6):
        seen += together.step(torch.randint(3, 64, (3,), generator=draw)).values()
        if number == 2:
            together.select(torch.tensor([2, 0, 0]))
    return together.road, seen


@pytest.mark.parametrize(
    "name",
    some(FAMILIES, "llama", "opt", "olmo2"),
)
@pytest.mark.usefixtures("written")
def test_a_family_that_is_not_refused_computes_the_packed_logits(name: str) -> None:
    model = families.model(name) if name in families.CONFIGS else built(FAR[name]())
    road, found = steps_of(model, Steps())
    assert road == "compiled"
    near(found, steps_of(model, None)[1])


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("written")
def test_a_family_that_cannot_is_refused_by_name(name: str) -> None:
    model = families.model(name) if name in families.CONFIGS else built(FAR[name]())
    with pytest.raises(UnsupportedError, match=f"compile=True: {type(model).__name__} has"):
        steps_of(model, Steps())


@pytest.mark.usefixtures("written")
def test_rows_that_have_ended_stay_and_harm_nobody() -> None:
    apart = 0
    for seed in range(6):
        how: dict[str, Any] = {"temperature": 1.5, "seed": seed, "end_ids": range(8)}
        run = run_of(llama(VOCAB), "cad", ROWS, Steps(), **how)
        answers = said(run)
        assert answers == said(run_of(llama(VOCAB), "cad", ROWS, None, **how))
        assert run.streams["context"].batch == 3
        apart += len({len(one[0]) for one in answers}) > 1
    assert apart


@pytest.mark.usefixtures("written")
def test_three_streams_step_together() -> None:
    model = ck.load(llama(300), tokenizer=byte_tokenizer())
    asked: dict[str, Any] = {"max_new_tokens": 9, "per_passage": True}
    documents = ["Nobody knows.", "They said so, and more."]
    found = model.ask("Who?", documents, "adacad", compile=True, **asked)
    wanted = model.ask("Who?", documents, "adacad", **asked)
    assert (found.text, found.stats.road) == (wanted.text, "compiled")
    assert found.passage_cost == wanted.passage_cost
    assert found.trace
    assert wanted.trace
    for mine, other in zip(found.trace.tokens, wanted.trace.tokens, strict=True):
        assert mine.scores == pytest.approx(other.scores, rel=1e-3, abs=1e-3)


# Steps that were compiled before


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("left", ["what it was", "NaN"])
def test_the_next_run_takes_a_step_over_and_nothing_of_the_last_one(left: str) -> None:
    model, steps = llama(VOCAB), Steps()
    long = [{name: [*ids, *range(3, 33)] for name, ids in row.items()} for row in ROWS]
    first = run_of(model, "cad", long, steps, max_new_tokens=20, end_ids=())
    said(first)
    static = static_of(first)
    assert not steps._idle
    del first
    gc.collect()
    assert steps._idle == [static]
    if left == "NaN":
        for one in static._tensors():
            one.fill_(float("nan") if one.is_floating_point() else True)
    run = run_of(model, "adacad", ROWS, steps, end_ids=())
    assert said(run) == said(run_of(model, "adacad", ROWS, None, end_ids=()))
    assert static_of(run) is static
    other = run_of(model, "adacad", ROWS[:2], steps)
    said(other)
    assert static_of(other) is not static
    alone = run_of(model, "plain", ROWS, steps)
    said(alone)
    assert static_of(alone) is not static


@pytest.mark.usefixtures("written")
def test_a_model_of_another_precision_by_now_gets_a_step_of_its_own() -> None:
    model, steps = built(families.CONFIGS["llama"]()), Steps()
    said(run_of(model, "cad", ROWS, steps))
    gc.collect()
    check(model.double(), "cad", ROWS, steps)


@pytest.mark.usefixtures("written")
def test_a_step_that_another_thread_takes_meanwhile_is_left_to_it() -> None:
    class Wanted(StaticStep):
        """Gone as soon as somebody looks at its size."""

        def __getattribute__(self, name: str) -> Any:
            if name == "rows" and self in steps._idle:
                steps._idle.remove(self)
            return super().__getattribute__(name)

    model, steps = llama(64), Steps()
    Together(opened(model, [(4,), (3,)]), steps=steps, room=2).step(torch.tensor([5]))
    gc.collect()
    (one,) = steps._idle
    one.__class__ = Wanted
    again = Together(opened(model, [(4,), (3,)]), steps=steps, room=2)
    again.step(torch.tensor([5]))
    assert static_of(again) is not one


@pytest.mark.usefixtures("written")
def test_runs_at_once_hold_steps_of_their_own() -> None:
    steps = Steps()
    first = Together(opened(llama(64), [(9, 6), (4, 3)]), steps=steps, room=5)
    first.step(torch.tensor([3, 9]))
    del first  # its step waits for the next run
    made = [(llama(64), 5), (llama(64), 7), (llama(64, seed=1), 5)]
    several, plain = (
        [Together(opened(model, [(9, n), (4, 3)]), steps=own, room=5) for model, n in made]
        for own in (steps, None)
    )
    for number in range(5):
        tokens = torch.tensor([3 + number, 9])
        for one, other in zip(several, plain, strict=True):
            near([*one.step(tokens).values()], [*other.step(tokens).values()])
    assert len({id(static_of(one)) for one in several}) == 3


@pytest.mark.usefixtures("written")
def test_models_do_not_share_a_step() -> None:
    steps = Steps()
    for seed in (0, 1, 0):
        check(llama(VOCAB, seed=seed), "cad", ROWS, steps)


@pytest.mark.usefixtures("written")
def test_of_many_steps_the_latest_wait() -> None:
    model, steps = llama(64), Steps()
    for rows in range(1, IDLE + 3):
        together = Together(opened(model, [(4,) * rows]), steps=steps, room=2)
        together.step(torch.full((rows,), 5))
        del together
    assert [one.rows for one in steps._idle] == [*range(3, IDLE + 3)]


@pytest.mark.usefixtures("written")
def test_threads_with_one_model_wait_for_each_other() -> None:
    model, steps, found = llama(VOCAB), Steps(), dict[int, Any]()
    before = settings_of(model)
    how: dict[str, Any] = {"max_new_tokens": 6, "end_ids": ()}
    ways: list[tuple[str, Any, str]] = [
        ("cad", steps, "packed"), ("adacad", None, "packed"), ("adacad", steps, "packed"),
        ("grd", None, "sequential"),
    ]  # fmt: skip
    wanted = [said(run_of(model, rule, ROWS, None, **how)) for rule, *_ in ways]

    def work(number: int) -> None:
        rule, own, road = ways[number]
        more = {} if own else {"road": road}
        for _ in range(6):
            run = run_of(model, rule, ROWS, own, **more, **how)
            found.setdefault(number, []).append((said(run), run.stats().road))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(ways))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for number, (_, own, road) in enumerate(ways):
        assert found[number] == [(wanted[number], "compiled" if own else road)] * 6
    assert settings_of(model) == before


# Room


@pytest.mark.parametrize(("length", "room", "capacity"), [
    (9, 5, ROOM), (ROOM - 6, 6, ROOM), (ROOM - 6, 7, 2 * ROOM), (ROOM, 1, 2 * ROOM),
])  # fmt: skip
@pytest.mark.usefixtures("written")
def test_as_many_tokens_fit_as_there_is_room_for(length: int, room: int, capacity: int) -> None:
    model = llama(64)
    lengths = [(length, 4), (5, 3)]
    one = Together(opened(model, lengths), steps=Steps(), room=room)
    other = Together(opened(model, lengths))
    for number in range(room):
        tokens = torch.tensor([3 + number, 9])
        near([*one.step(tokens).values()], [*other.step(tokens).values()])
    assert static_of(one).capacities == (capacity, ROOM)


@pytest.mark.usefixtures("written")
def test_an_answer_may_fill_its_room_to_the_last_position() -> None:
    model = llama(VOCAB)
    rows = reference.pairs(3, VOCAB, [(ROOM - 30, 4)])
    steps, seen = Steps(), set()
    for extra in (0, 0, 1, 1):  # the context prompt has ROOM - 25 tokens
        run = run_of(model, "cad", rows, steps, max_new_tokens=25 + extra, end_ids=())
        packed = run_of(model, "cad", rows, None, max_new_tokens=25 + extra, end_ids=())
        assert said(run) == said(packed)
        assert static_of(run).capacities == ((1 + extra) * ROOM, ROOM)
        seen.add(id(static_of(run)))
    assert len(seen) == 2


# Nothing else is touched


def settings_of(model: Any) -> tuple[Any, ...]:
    from transformers import AttentionInterface

    names = [name for name in AttentionInterface._global_mapping if name.startswith("static")]
    return model.config.to_json_string(), model.config._attn_implementation_internal, names


def test_the_model_is_as_it_was_afterwards_and_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = llama(VOCAB)
    before, seen = settings_of(model), []
    assert before[2] == []

    def fails(_: Any, **__: Any) -> Callable[[Tensor], Tensor]:
        def step(_: Tensor) -> Tensor:
            seen.append(settings_of(model)[1:])
            raise RuntimeError("no")

        return step

    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", fails)
        with pytest.raises(RuntimeError, match="no"):
            said(run_of(model, "cad", ROWS, Steps()))
    ((name, names),) = seen
    assert names == [name]
    assert name.startswith("static")
    assert settings_of(model) == before
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    check(model, "cad", ROWS, Steps())
    assert settings_of(model) == before


SYNCS = (
    "item", "tolist", "cpu", "numpy", "nonzero",
    "__bool__", "__int__", "__float__", "__index__",
)  # fmt: skip


@contextmanager
def no_looks_at_the_host() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the step waits for the device")

    with pytest.MonkeyPatch.context() as patched:
        for name in SYNCS:
            patched.setattr(torch.Tensor, name, refuse)
        yield


@pytest.mark.usefixtures("written")
def test_a_step_does_not_look_at_the_host() -> None:
    together = Together(opened(llama(64), [(9, 5), (4, 3)]), steps=Steps(), room=8)
    other = Together(opened(llama(64), [(9, 5), (4, 3)]))
    together.step(torch.tensor([5, 6]))
    other.step(torch.tensor([5, 6]))
    tokens = torch.tensor([7, 8])
    with no_looks_at_the_host():
        found = [together.step(tokens) for _ in range(3)]
    near([*found[2].values()], [*[other.step(tokens) for _ in range(3)][2].values()])
