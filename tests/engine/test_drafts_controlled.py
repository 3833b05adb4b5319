"""Drafts under rules that remember, gates, probes and edits; and in `Model.ask`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit import detectors, methods
from conflictkit.atlas.cases import cases
from conflictkit.controller import Controller
from conflictkit.errors import InvalidParameterError
from conflictkit.gates import Gate
from conflictkit.interventions.contrast import Rule
from conflictkit.interventions.directions import Directions
from conflictkit.per_row import PerRow
from conflictkit.stepping import Host
from conflictkit.together import Road
from conflictkit.types import Mix
from tests.engine.drafted import (
    TOKENS,
    VOCAB,
    actives,
    continued,
    ids_of,
    made,
    make,
    repeating,
    run_of,
    same,
    texts_of,
)
from tests.engine.riding import some
from tests.engine.test_roads import SPECS, spec_of
from tests.probed import KINDS, Passes, hooks, probe_of
from tests.tiny import byte_tokenizer, gpt2, llama

FREE: dict[str, Any] = {"end_ids": ()}
COOL: dict[str, Any] = {"temperature": 0.7, "seed": 5, **FREE}
ROADS: tuple[Road, ...] = ("packed", "padded", "sequential")


class Counting(Rule):
    """Writes 3, 4, ... in loops, each row's longer than the last row's; a row that was asked
    once too often, or for another, writes something else."""

    name = "counting"
    needs = ("context",)

    def initial(self, batch: int, device: torch.device | str = "cpu") -> Any:
        steps = torch.zeros(batch, dtype=torch.long, device=device)
        return {"steps": steps, "row": torch.arange(batch, device=device)}

    def __call__(self, step: Any, state: Any) -> Mix:
        ones, steps = step.logits.new_ones(step.logits.shape[0], 1), state["steps"]
        tokens = 3 + steps % (2 + state["row"])
        bias = torch.zeros_like(step.logits).scatter_(1, tokens[:, None], 1e4)
        after = torch.full_like(steps, -1) if step.previous is None else step.previous
        return Mix(
            ones, ones * 0, bias=bias, scores={"steps": steps.float(), "previous": after.float()},
            state={**state, "steps": steps + 1},
        )  # fmt: skip


@pytest.mark.parametrize("drafts", [1, 3, None])
def test_what_a_rule_remembers_goes_on_at_its_rows_pace(drafts: int | None) -> None:
    hf, rows, control = llama(VOCAB, seed=4), repeating(0), Controller(Counting())
    found = made(hf, control, rows, drafts, **FREE)
    assert found[0][0].stats.accepted > TOKENS
    for row, (one,) in enumerate(found):
        wanted = [3 + step % (2 + row) for step in range(TOKENS)]
        assert list(one.ids) == wanted
        assert [record.scores["steps"] for record in one.records] == list(range(TOKENS))
        # The token before, not one that was drafted.
        assert [record.scores["previous"] for record in one.records] == [-1, *wanted[:-1]]


def control_of(what: str, hf: Any, rows: Any) -> Controller:
    said = made(hf, "plain", rows, max_new_tokens=8, **FREE)[0][0].ids
    rule = methods.parse
    return {
        "decides once": lambda: Controller(rule("grd")),
        "decides late": lambda: Controller(rule("grd?gate=confidence"), "jsd > 0.2"),
        "gate": lambda: Controller(rule("cad?alpha=2"), "jsd > 0.15"),
        "hysteresis": lambda: Controller(rule("cad?alpha=2"), "jsd > 0.25 until 0.1"),
        "prompt": lambda: Controller(rule("cad?alpha=2"), "jsd > 0.2 at prompt"),
        "strength": lambda: Controller(rule("cad?alpha=2"), strength="jsd"),
        "marker": lambda: Controller(rule("cad?alpha=2"), start_after=said[2:4]),
        "marker, then prompt": lambda: Controller(
            rule("interpolate?weight=0.2"), "jsd > 0.2 at prompt", start_after=said[1:2]
        ),
        "gated edit": lambda: Controller(rule(SPECS["ph3"]), "jsd > 0.2 until 0.1"),
        "half an edit": lambda: Controller(rule(SPECS["ph3"]), strength=0.5),
    }[what]()


CONTROLS = (
    "decides once", "decides late", "gate", "hysteresis", "prompt", "strength", "marker",
    "marker, then prompt", "gated edit", "half an edit",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", some(CONTROLS, "decides late", "hysteresis", "marker"))
def test_controllers_act_where_they_would(what: str) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    control, accepted, met = control_of(what, hf, rows), 0, set()
    for decoding in (FREE, COOL):
        wanted = made(hf, control, rows, **decoding)
        accepted += same(made(hf, control, rows, 3, **decoding), wanted).accepted
        met |= actives(wanted)
    assert accepted
    assert met == ({0, 1} if control.when or control.start_after else set())


@pytest.mark.slow
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("what", CONTROLS)
def test_controllers_act_where_they_would_by_every_road(what: str, road: Road) -> None:
    for seed, hf in enumerate((llama(VOCAB, seed=4), gpt2(VOCAB, seed=4)), 1):
        rows = repeating(seed)
        control = control_of(what, hf, rows)
        for decoding in (FREE, COOL, {**COOL, "temperature": 1.3, "n": 2, "end_ids": (1,)}):
            wanted = made(hf, control, rows, **decoding)
            for drafts in (1, None):
                same(made(hf, control, rows, drafts, road, **decoding), wanted)


def test_a_marker_is_not_written_by_asking_a_row_again() -> None:
    """`3 3` never stands in an answer that goes 3 4 3 4 while other rows are asked alone."""
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    plain = made(hf, "plain", rows, **COOL)
    for row, (one,) in list(enumerate(plain))[1:3]:
        twice = {(token, token) for token in one.ids}
        never = [pair for pair in twice if pair not in set(pairwise(one.ids))]
        for marker in (*never[:2], one.ids[3:5]):
            controls = [Controller(methods.parse("cad?alpha=0"), start_after=marker)] * 4
            (found,) = made(hf, PerRow.of(controls), rows, 3, **COOL)[row]
            assert found.ids == one.ids
            told = [record.scores["active"] for record in found.records]
            starts = controls[0].uncontrolled(one.ids)
            assert told == [float(place >= starts) for place in range(TOKENS)]


@pytest.mark.slow
@pytest.mark.parametrize("road", some(ROADS, "packed"))
def test_a_batch_of_several_methods(road: Road) -> None:
    hf, rows = llama(VOCAB, seed=4), [*repeating(0), *repeating(1)]
    specs = ("cad", SPECS["ph3"], SPECS["juice"], "grd", "plain", SPECS["decore"], SPECS["caa"])
    controls = [Controller(methods.parse(spec)) for spec in specs]
    controls.append(Controller(methods.parse("arr"), "jsd > 0.2 until 0.1"))
    control = PerRow.of(controls)
    for decoding in (FREE, COOL):
        wanted = made(hf, control, rows, **decoding)
        assert same(made(hf, control, rows, None, road, **decoding), wanted).accepted
        alone = made(hf, controls[3], rows[3:4], 3, **decoding)
        if decoding is FREE:
            assert ids_of(alone)[0] == ids_of(wanted)[3]


def test_what_cannot_be_drafted_is_refused() -> None:
    hf, rows = llama(VOCAB), repeating(0)
    host = Host(torch.tensor([[3]]), 2, (), lambda ids, _: torch.zeros(len(ids), dtype=torch.bool))
    refused: list[dict[str, Any]] = [
        {"num_beams": 2}, {"processors": [lambda _, logits: logits]}, {"host": host},
    ]  # fmt: skip
    for options in refused:
        with pytest.raises(InvalidParameterError, match="chosen token by token: leave out beams"):
            run_of(hf, "cad", rows, 2, **options)
        assert run_of(hf, "cad", rows, None, **options).drafter is None  # no draft is worth it
        assert run_of(hf, "cad", rows, 0, **options).drafter is None
    assert run_of(hf, "cad", rows, 0).drafter is None
    assert run_of(hf, "cad", rows, None).drafter is not None


# Probes

REST: list[dict[str, Any]] = [{}, {"at": "prompt"}]


@pytest.mark.parametrize("kind", some(KINDS, "residual"))
@pytest.mark.parametrize(
    "parts",
    [{"release": 0.3}, *(pytest.param(one, marks=pytest.mark.slow) for one in REST)],
    ids=str,
)
def test_probes_read_what_they_would(parts: dict[str, Any], kind: str) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    before = hooks(hf)
    gate = Gate("probe", ">", 0.5, probe=probe_of(hf, kind, 1, seed=2), **parts)
    control, accepted, met = Controller(methods.parse("cad?alpha=2"), gate), 0, set()
    for decoding in (FREE, COOL):
        wanted = made(hf, control, rows, **decoding)
        accepted += same(made(hf, control, rows, 3, **decoding), wanted).accepted
        met |= actives(wanted)
    assert (accepted > 0, met) == (True, {0, 1})
    del wanted
    assert hooks(hf) == before


@pytest.mark.slow
@pytest.mark.parametrize("road", ROADS)
def test_probes_of_several_rows_by_every_road(road: Road) -> None:
    for hf in (llama(VOCAB, seed=4), gpt2(VOCAB, seed=4)):
        rows = repeating(2)
        probes = [probe_of(hf, kind, layer, seed=layer) for layer, kind in enumerate(("mlp",) * 2)]
        rule = methods.parse
        control = PerRow.of([
            Controller(rule("cad?alpha=2"), Gate("probe", ">", 0.5, probe=probes[0])),
            Controller(rule(SPECS["ph3"]), Gate("probe", "<", 0.5, probe=probes[1])),
            Controller(rule("grd"), "hoyer@residual.1 > 0.2"),
            Controller(rule("adacad")),
        ])  # fmt: skip
        for decoding in (FREE, COOL, {**COOL, "n": 2}):
            wanted = made(hf, control, rows, **decoding)
            for drafts in (1, 5, None):
                same(made(hf, control, rows, drafts, road, **decoding), wanted)


@pytest.mark.parametrize("use_cache", [True, False])
def test_probes_look_as_far_back_as_drafts_are_long(
    use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    gate = Gate("probe", ">", 0.5, probe=probe_of(hf, "residual", 0, seed=2))
    control = Controller(methods.parse("cad?alpha=2"), gate)
    most = {**FREE, "max_new_tokens": 40}
    wanted = made(hf, control, rows, **most)
    texts = texts_of(rows, wanted)
    make(monkeypatch, lambda ids, most: continued(ids, texts)[:most])
    stats = same(made(hf, control, rows, 32, use_cache=use_cache, **most), wanted)
    assert stats.accepted == 4 * (32 + 5)
    assert stats.passes == 2 + 2 * (1 if use_cache else 2)


# Edits

_VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(2))
_STEERED = f"alpha=3&directions={Directions({1: _VECTOR})}"
PLACED = {
    f"{name} {where}": f"{name}?{_STEERED}&positions={where}"
    for name in ("caa", "refusal-region") for where in ("last_prompt", "generated", "all")
}  # fmt: skip


EDITED = some((*PLACED, "spare generated", "spare all"), "caa last_prompt", "spare generated")


@pytest.mark.parametrize("what", EDITED)
def test_edits_act_at_their_places(what: str, tmp_path: Path) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    spare = f"{spec_of('spare', tmp_path)}&positions={what.partition(' ')[2]}"
    spec, accepted = PLACED.get(what, spare), 0
    for decoding in (FREE, COOL):
        wanted = made(hf, spec, rows, **decoding)
        stats = same(made(hf, spec, rows, 3, **decoding), wanted)
        accepted += stats.accepted
        if "last_prompt" in what:
            assert stats.edits == wanted[0][0].stats.edits == len(rows)
    assert accepted
    assert ids_of(wanted) != ids_of(made(hf, "plain", rows, **COOL))


@pytest.mark.parametrize("name", some(SPECS, "juice", "attention-steering"))
def test_edits_with_drafts_that_are_right_or_wrong(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    wanted = made(hf, SPECS[name], rows, **FREE)
    texts = texts_of(rows, wanted)

    def draft(ids: list[int], most: int) -> list[int]:
        found = continued(ids, texts)[:most]
        wrong = len(ids) % 5  # of some drafts all, of others the end
        return [one if place < wrong else (one + 1) % VOCAB for place, one in enumerate(found)]

    make(monkeypatch, draft)
    for road in ROADS:
        assert same(made(hf, SPECS[name], rows, 4, road, **FREE), wanted).accepted > TOKENS


def test_what_is_recorded_beside_the_rule_is_the_same() -> None:
    """Detectors, streams that only they read, and comparisons of streams."""
    hf, rows = llama(VOCAB, seed=4), repeating(0)
    rows = [{**row, "passage_0": row["context"][:3], "passage_1": [0, 5, 6]} for row in rows]
    names = ("context", "memory", "passage_0", "passage_1")
    scored = [detectors.get("jsd"), detectors.get("confidence-gain")]
    options: dict[str, Any] = {"names": names, "detectors": scored, "compare": names, **COOL}
    wanted = made(hf, "arr", rows, **options)
    found = made(hf, "arr", rows, None, **options)
    assert same(found, wanted).accepted
    for (mine,), (other,) in zip(found, wanted, strict=True):
        for one, two in zip(mine.records, other.records, strict=True):
            assert one.comparison is not None
            assert two.comparison is not None
            assert one.comparison.names == two.comparison.names == names
            assert one.comparison.logprobs == pytest.approx(two.comparison.logprobs, abs=1e-3)
            for left, right in zip(one.comparison.jsd, two.comparison.jsd, strict=True):
                assert left == pytest.approx(right, abs=1e-3)
    assert run_of(hf, "arr", rows, None, **options).top == 2


# Model.ask


@pytest.fixture(scope="module")
def model() -> ck.Model:
    return ck.load(llama(300), tokenizer=byte_tokenizer())


QUESTIONS = ["Who said ab ab ab?", "Why why why why?", "What?", "Who?"]
CONTEXTS = ["Nobody said ab ab ab ab.", None, ["Because why because.", "For no reason."], "x x x"]


@pytest.mark.parametrize("drafts", [pytest.param(2, marks=pytest.mark.slow), "auto"])
def test_asking_with_drafts_is_asking(model: ck.Model, drafts: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 14, "compare": True}
    for decoding in ({}, {"temperature": 1.0, "seed": 3, "n": 2}):
        given = (QUESTIONS, CONTEXTS, "adacad")
        plain = model.ask_batch(*given, road="sequential", **options, **decoding)
        found = model.ask_batch(*given, drafts=drafts, **options, **decoding)
        for one, two in zip(found, plain, strict=True):
            for name in ("text", "finish_reason", "plain_answer", "memory_answer"):
                assert getattr(one, name) == getattr(two, name)
            others = [[other.text for other in each.alternatives] for each in (one, two)]
            assert others[0] == others[1]
            assert one.trace is not None
            assert two.trace is not None
            for mine, theirs in zip(one.trace.tokens, two.trace.tokens, strict=True):
                assert mine.scores == pytest.approx(theirs.scores, abs=1e-3)


@pytest.mark.parametrize("stops", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stream_with_drafts_comes_in_the_same_pieces(model: ck.Model, stops: bool) -> None:
    for question, context in zip(QUESTIONS, CONTEXTS, strict=True):
        given: Any = (question, context, "cad")
        options: dict[str, Any] = {"max_new_tokens": 14, "temperature": 0.5, "seed": 1}
        text = model.ask(*given, **options).text
        end = text[len(text) // 2 :][:2] if stops else None
        plain, drafted = (
            model.stream(*given, drafts=drafts, stop=end, **options) for drafts in (0, "auto")
        )
        assert list(drafted) == list(plain)
        assert drafted.answer.text == plain.answer.text
        assert drafted.answer.finish_reason == plain.answer.finish_reason


@pytest.mark.parametrize("drafts", ["x", -1, 33, True, 2.5, None, "4"])
def test_bad_numbers_of_drafts_are_refused(model: ck.Model, drafts: Any) -> None:
    with pytest.raises(InvalidParameterError, match="drafts must be 'auto' or from 0 to 32, not"):
        model.ask("Who?", "They.", "cad", drafts=drafts)


def test_drafts_are_refused_where_something_else_chooses(model: ck.Model) -> None:
    several: list[dict[str, Any]] = [{"num_beams": 2}, {"processors": [lambda _, logits: logits]}]
    for options in several:
        for ask in (model.ask, model.stream):
            with pytest.raises(InvalidParameterError, match="by token: leave out beams"):
                ask("Who?", "They.", "cad", drafts=2, **options)
        plain = model.ask("Who?", "They.", "cad", max_new_tokens=5, **options)
        quiet = model.ask("Who?", "They.", "cad", max_new_tokens=5, drafts="auto", **options)
        assert quiet.text == plain.text


@pytest.mark.slow
def test_atlas_answers_as_without_drafts_in_fewer_passes() -> None:
    atlas, saved = ck.load("atlas"), 0
    for one in cases("test")[::95][:20]:
        for method in ("cad", "grd"):
            answers, counts = [], []
            for options in ({"road": "sequential"}, {}, {"drafts": "auto"}):
                with Passes(atlas.model) as passes:
                    given: Any = (one.question, list(one.contexts), method)
                    answers.append(atlas.ask(*given, max_new_tokens=24, **options))
                counts.append(passes.count)
            assert len({answer.text for answer in answers}) == 1
            saved += counts[1] - counts[2]
            assert counts[2] <= counts[1] <= counts[0]
    assert saved > 0
