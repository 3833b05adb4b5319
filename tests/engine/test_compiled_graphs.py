"""What is compiled: once for a shape, to the packed answers; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import conflictkit as ck
from conflictkit._hf_compiled import ROOM, Steps, _capacity, check_static
from conflictkit.detectors.probe import LayerProbe
from conflictkit.errors import InvalidParameterError, UnsupportedError
from conflictkit.interventions import HeadScale
from conflictkit.together import Together
from tests.anatomy import families
from tests.engine.riding import FAR, built, opened
from tests.engine.test_compiled import ROWS, RUNS, VOCAB, check, graphs, no_looks_at_the_host
from tests.probed import probe_of
from tests.tiny import byte_tokenizer, gpt2, llama, recurrent, sliding

__all__ = ["graphs"]

QUESTION, CONTEXT = "What is it that they said?", "Because. For no reason at all."
SHORT: dict[str, Any] = {"max_new_tokens": 8}


def asked(seed: int = 4) -> ck.Model:
    return ck.load(llama(300, seed=seed), tokenizer=byte_tokenizer())


# With torch's own compiler


@pytest.mark.slow
def test_compiled_answers_are_the_packed_ones() -> None:
    steps = Steps()
    for rule in ("adacad", "cad", "grd"):
        for how in ("greedy", "to the end", "sampled"):
            check(llama(VOCAB), rule, ROWS, steps, **RUNS[how])
        check(llama(VOCAB), rule, ROWS[:1], steps, **RUNS["beams"])
    assert len(steps._idle) == 1  # three rows each, compiled once
    check(gpt2(VOCAB), "adacad", ROWS[:1], Steps())


@pytest.mark.slow
def test_atlas_says_the_same_compiled() -> None:
    atlas, asked = ck.load("atlas"), ("What is the capital of Sweden?", "It is Oslo.", "adacad")
    wanted = atlas.ask(*asked, max_new_tokens=8)
    found = atlas.ask(*asked, max_new_tokens=8, compile=True)
    assert (found.text, found.stats.road) == (wanted.text, "compiled")


# Graphs


@pytest.mark.slow
@pytest.mark.usefixtures("graphs")
def test_nothing_is_compiled_twice() -> None:
    model = asked()
    model.ask(QUESTION, CONTEXT, compile=True, **SHORT)
    questions = ["Who?", QUESTION, "Why so? " * 9]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for question, n in zip(questions, (3, 30, 12), strict=True):
            for method in ("adacad", "cad?alpha=2"):
                one = model.ask(question, CONTEXT, method, max_new_tokens=n, compile=True)
                other = model.ask(question, CONTEXT, method, max_new_tokens=n)
                assert one.text == other.text
        # Another size is another graph.
        asked_at_once = (questions[:2], [CONTEXT] * 2)
        found = model.ask_batch(*asked_at_once, compile=True, **SHORT)
        wanted = model.ask_batch(*asked_at_once, **SHORT)
        assert [one.text for one in found] == [one.text for one in wanted]


@pytest.mark.slow
@pytest.mark.usefixtures("graphs")
def test_a_graph_does_not_look_at_the_host() -> None:
    together = Together(opened(llama(64), [(9, 5), (4, 3)]), steps=Steps(), room=8)
    together.step(torch.tensor([5, 6]))
    tokens = torch.tensor([7, 8])
    with no_looks_at_the_host():
        together.step(tokens)


@pytest.mark.slow
@pytest.mark.usefixtures("graphs")
def test_one_graph_holds_the_whole_step() -> None:
    torch._dynamo.utils.counters.clear()
    check(llama(VOCAB), "cad", ROWS, Steps())
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.usefixtures("graphs")
def test_sizes_of_one_model_do_not_count_for_each_other() -> None:
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for number in range(4):
            model = llama(64, seed=number % 2)
            for rows in (1, 2, 3):
                Together(opened(model, [(4,) * rows]), steps=Steps(), room=2).step(
                    torch.full((rows,), 5)
                )


@given(st.integers(1, 40_000))
def test_few_capacities_serve_all_lengths(length: int) -> None:
    found = _capacity(length)
    assert length <= found < max(length + ROOM, 1.25 * length)
    assert len({_capacity(one) for one in range(1, 32_768, 64)}) <= 28


# What is refused


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told() -> None:
    from torch._inductor import config

    model = asked(seed=9)
    settings = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with (
        config.patch(settings),
        pytest.raises(UnsupportedError, match="compile=True: torch cannot compile Llama"),
    ):
        model.ask(QUESTION, CONTEXT, compile=True, **SHORT)
    assert model.ask(QUESTION, CONTEXT, **SHORT).text


@pytest.mark.parametrize("road", ["padded", "sequential"])
def test_another_road_cannot_be_asked_for_too(road: Any) -> None:
    with pytest.raises(InvalidParameterError, match="compile=True is a road of its own: leave out"):
        asked().ask(QUESTION, CONTEXT, compile=True, road=road)


def check_refused(model: Any, why: str) -> None:
    with pytest.raises(UnsupportedError, match=f"compile=True: .*{why}"):
        check_static(model)
    with pytest.raises(UnsupportedError, match=why):
        Together(opened(model, [(5,), (3,)], VOCAB), steps=Steps(), room=3)


def test_a_model_that_cannot_be_compiled_is_refused_by_name() -> None:
    check_refused(sliding(VOCAB), "sliding windows")
    check_refused(recurrent(VOCAB), "cannot be kept in a fixed place")
    check_refused(built(families.CONFIGS["llama"](), attn_implementation="eager"), "'sdpa'")
    compiled = torch.compile(llama(VOCAB), backend="eager")
    with pytest.raises(UnsupportedError, match="compile=True: .* is compiled already"):
        check_static(compiled)


@pytest.mark.slow
@pytest.mark.usefixtures("graphs")
def test_what_torch_cannot_compile_is_refused_by_name() -> None:
    model = built(FAR["ctrl"]())
    with pytest.raises(UnsupportedError, match="compile=True"):
        Together(opened(model, [(5,), (3,)]), steps=Steps(), room=3).step(torch.tensor([5]))


def test_edited_and_probed_runs_are_refused_by_name() -> None:
    model = asked()
    why = "activations are edited"
    with pytest.raises(UnsupportedError, match=why):
        model.ask(QUESTION, CONTEXT, "decore", heads="0.1+1.2", compile=True, **SHORT)
    prompt = model.prompts(QUESTION, CONTEXT)["context"].ids
    probe: LayerProbe = probe_of(model.model, "residual", 1, seed=2, prompt=prompt)
    with pytest.raises(UnsupportedError, match=why):
        model.ask(QUESTION, CONTEXT, "cad", when="probe > 0.5", probe=probe, compile=True, **SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.usefixtures("graphs")
def test_an_edit_that_is_attached_acts_or_is_refused_by_name(warm: bool) -> None:
    model = asked()
    if warm:
        model.ask(QUESTION, CONTEXT, compile=True, **SHORT)
    with HeadScale({(0, 1): -4.0, (1, 0): -6.0}).attach(model.model):
        wanted = model.ask(QUESTION, CONTEXT, **SHORT).text
        try:
            found = model.ask(QUESTION, CONTEXT, compile=True, **SHORT).text
        except UnsupportedError:
            return
    assert found == wanted


@pytest.mark.parametrize("options", [
    {"compile": "yes"}, {"compile": 1}, {"compile": None}, {"compile": True, "drafts": 3},
])  # fmt: skip
def test_options_that_do_not_go_together_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match="compile"):
        asked().ask(QUESTION, CONTEXT, **SHORT, **options)
