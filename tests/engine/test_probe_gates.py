"""Gates on a probe, step by step: every family, every kind, beams against every answer there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conflictkit import engine, methods
from conflictkit.controller import Controller
from conflictkit.errors import InvalidParameterError, UnsupportedError
from conflictkit.gates import Gate
from conflictkit.per_row import PerRow
from conflictkit.plan import open_streams
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from conflictkit.types import Step
from tests.anatomy.families import VOCAB, model
from tests.engine import reference
from tests.probed import KINDS, decisions, hooks, look, probe_of, score
from tests.tiny import llama

SIZES = [(9, 4), (3, 7), (14, 2)]
TOKENS = 6


def gated(hf: Any, *place: Any, seed: int = 0, spec: str = "cad?alpha=2", **parts: Any) -> Any:
    """A method behind a gate on a probe of this place."""
    probe = probe_of(hf, *place, seed=seed)
    return Controller(methods.parse(spec), Gate("probe", ">", 0.5, probe=probe, **parts))


def generate(
    hf: Any, control: Any, rows: list[dict[str, Any]], ends: Any = (), **options: Any
) -> Any:
    prompts = {name: [row[name] for row in rows] for name in ("context", "memory")}
    use_cache = options.pop("use_cache", True)
    streams = open_streams(hf, control, prompts, pad_id=2, use_cache=use_cache)
    most: Any = {"max_new_tokens": TOKENS} | options
    decoding = Decoding(**most)
    return engine.generate(Stepper(streams, control, decoding, end_ids=ends, decode=str, top=1))


def written(hf: Any, control: Any, row: dict[str, Any]) -> tuple[list[int], list[float], list[int]]:
    """The greedy answer by plain passes, the probe's score before every token, and its gate."""
    said: list[int] = []
    scores: list[float] = []
    while len(said) < TOKENS:
        value, logits = score(hf, control.gate.probe, [*row["context"], *said])
        scores.append(value)
        if decisions(scores, control.gate)[-1]:
            memory = reference.next_logits(hf, [*row["memory"], *said])
            logits = control.rule.combine(logits[None], memory).logits[0]
        said.append(int(logits.argmax()))
    return said, scores, [int(one) for one in decisions(scores, control.gate)]


def same(made: Any, wanted: tuple[list[int], list[float], list[int]]) -> None:
    assert list(made.ids) == wanted[0]
    told = [record.scores["probe"] for record in made.records]
    assert told == pytest.approx(wanted[1], abs=1e-5)
    assert [record.scores["active"] for record in made.records] == wanted[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt-neox", "falcon-7b"])
def test_a_probe_reads_what_a_plain_pass_shows(name: str, kind: str) -> None:
    hf, rows = model(name), reference.pairs(4, VOCAB, SIZES)
    before = hooks(hf)
    control = gated(hf, kind, 1)
    wanted = [written(hf, control, row) for row in rows]
    assert {one for _, _, actives in wanted for one in actives} == {0, 1}
    made = generate(hf, control, rows)
    for (answer,), one in zip(made, wanted, strict=True):
        same(answer, one)
    assert made[0][0].stats.forwards == 2 * TOKENS
    assert made[0][0].stats.edits == 0
    del made
    assert hooks(hf) == before
    same(generate(hf, control, rows[1:2], use_cache=False)[0][0], wanted[1])


@pytest.mark.parametrize("parts", [{"at": "prompt"}, {"release": 0.25}, {}], ids=str)
def test_beams_are_the_best_of_all_answers(parts: dict[str, Any]) -> None:
    hf = llama(6, seed=3)
    rows = reference.pairs(1, 6, [(4, 3), (2, 2)])
    control = gated(hf, "residual", 1, seed=2, **parts)
    made = generate(hf, control, rows, (1,), max_new_tokens=3, num_beams=36, n=4)
    met = set()
    for row, found in zip(rows, made, strict=True):
        ranked = sorted(every(hf, control, row, 3), reverse=True)
        for answer, (mean, total, ids, actives) in zip(found, ranked, strict=False):
            assert answer.score / max(1, len(answer.records)) == pytest.approx(mean, abs=1e-4)
            assert answer.score == pytest.approx(total, abs=1e-4)
            assert answer.ids == ids
            assert [record.scores["active"] for record in answer.records] == actives
            met |= set(actives)
    assert met == {0, 1}


def every(hf: Any, control: Any, row: dict[str, Any], most: int) -> list[Any]:
    """(mean and sum of log-probabilities, ids without the end token 1, gate) of every answer."""
    done, frontier = [], [(0.0, (), ())]
    for length in range(1, most + 1):
        longer = []
        for total, said, scores in frontier:
            value, logits = score(hf, control.gate.probe, [*row["context"], *said])
            values = (*scores, value)
            actives = [int(one) for one in decisions(values, control.gate)]
            if actives[-1]:
                memory = reference.next_logits(hf, [*row["memory"], *said])
                logits = control.rule.combine(logits[None], memory).logits[0]
            for token, own in enumerate(logits.log_softmax(-1).tolist()):
                now = total + own
                if token == 1 or length == most:
                    ids = said if token == 1 else (*said, token)
                    done.append((now / length, now, ids, actives))
                else:
                    longer.append((now, (*said, token), values))
        frontier = longer
    return done


def test_rows_may_have_different_probes_and_none() -> None:
    hf, rows = model("llama"), reference.pairs(8, VOCAB, [*SIZES, (6, 6)])
    controls = [
        gated(hf, "residual", 0),
        gated(hf, "mlp", 1, seed=1, spec="interpolate?weight=0.3", at="prompt"),
        Controller(methods.parse("cad"), "jsd > 0.3"),
        gated(hf, "residual", 0, seed=5),
    ]
    alone = [generate(hf, one, [row])[0][0] for one, row in zip(controls, rows, strict=True)]
    for options in ({}, {"num_beams": 2}):
        if options:
            alone = [generate(hf, one, [row], **options)[0][0]
                     for one, row in zip(controls, rows, strict=True)]  # fmt: skip
        together = generate(hf, PerRow.of(controls), rows, **options)
        for (answer,), other in zip(together, alone, strict=True):
            assert answer.ids == other.ids
            for mine, theirs in zip(answer.records, other.records, strict=True):
                assert mine.scores.keys() == theirs.scores.keys()
                assert mine.scores == pytest.approx(theirs.scores, abs=1e-4)
        assert ["probe" in row[0].records[0].scores for row in together] == [
            True,
            True,
            False,
            True,
        ]
    same(generate(hf, PerRow.of(controls), rows)[0][0], written(hf, controls[0], rows[0]))
    same(generate(hf, PerRow.of(controls), rows)[3][0], written(hf, controls[3], rows[3]))


def test_a_statistic_is_that_of_what_a_plain_pass_shows() -> None:
    """Beside a probe of the same place, in rows of their own."""
    hf, rows = model("llama"), reference.pairs(4, VOCAB, SIZES)
    plain = generate(hf, Controller(methods.parse("plain")), rows)
    wanted = []
    for row, (answer,) in zip(rows, plain, strict=True):
        values = [look(hf, [*row["context"], *answer.ids[:n]], "residual", 1)[0]
                  for n in range(TOKENS)]  # fmt: skip
        ratios = [float(x.abs().sum() / x.norm()) for x in values]
        wanted.append([(len(x) ** 0.5 - one) / (len(x) ** 0.5 - 1)
                       for x, one in zip(values, ratios, strict=True)])  # fmt: skip
    bound = sorted(wanted[1])[TOKENS // 2] - 1e-4
    shut = [gated(hf, "residual", 1), Controller(methods.parse("cad"), "hoyer@residual.1 > 2")]
    for told, control, place in ((wanted[0], shut[1], 0), (wanted[2], shut[1], 2)):
        made = generate(hf, PerRow.of([control, shut[0]]), [rows[place], rows[1]])
        assert made[0][0].ids == plain[place][0].ids
        for record, value in zip(made[0][0].records, told, strict=True):
            assert record.scores["hoyer@residual.1"] == pytest.approx(value, abs=1e-5)
            assert "probe" not in record.scores
        same(made[1][0], written(hf, shut[0], rows[1]))
    # A contrast of strength 0 writes what plain does, and says when it acts.
    idle = Controller(methods.parse("cad?alpha=0"), f"hoyer@residual.1 > {bound}")
    (made,) = generate(hf, idle, rows[1:2])[0]
    actives = [record.scores["active"] for record in made.records]
    assert actives == [float(value > bound) for value in wanted[1]]
    assert set(actives) == {0.0, 1.0}
    assert made.stats.forwards == 2 * TOKENS
    assert hooks(hf) == 0


def test_a_gated_edit_is_the_edited_model_where_the_context_stream_says_so() -> None:
    """The probe reads the stream that is not edited."""
    hf, row = model("llama"), reference.pairs(7, VOCAB, SIZES)[0]
    control = gated(hf, "residual", 1, seed=3, spec="ph3?heads=1.2")
    part = slice(2 * 8, 3 * 8)
    projection = hf.get_submodule("model.layers.1.self_attn.o_proj")
    assert projection.in_features == 4 * 8

    def scaled(_: Any, arguments: tuple[torch.Tensor, ...]) -> Any:
        values = arguments[0].clone()
        values[..., part] = 0
        return (values,)

    said: list[int] = []
    scores: list[float] = []
    while len(said) < TOKENS:
        value, logits = score(hf, control.gate.probe, [*row["context"], *said])
        scores.append(value)
        if decisions(scores, control.gate)[-1]:
            handle = projection.register_forward_pre_hook(scaled)
            logits = look(hf, [*row["context"], *said], "residual", 1)[1]
            handle.remove()
        said.append(int(logits.argmax()))
    actives = [int(one) for one in decisions(scores, control.gate)]
    assert set(actives) == {0, 1}
    made = generate(hf, control, [row])[0][0]
    same(made, (said, scores, actives))
    assert made.stats.forwards == 2 * TOKENS  # context and edited


def test_control_that_waits_for_a_marker_asks_behind_it() -> None:
    hf, rows = model("llama"), reference.pairs(4, VOCAB, SIZES)
    probe = probe_of(hf)
    plain = generate(hf, Controller(methods.parse("plain")), rows[:1])[0][0].ids
    scores = [score(hf, probe, [*rows[0]["context"], *plain[:n]])[0] for n in range(3)]
    place = next(n for n in (1, 2) if (scores[n] > 0.5) != (scores[0] > 0.5))
    gate = Gate("probe", ">", 0.5, at="prompt", probe=probe)
    control = Controller(methods.parse("cad"), gate, start_after=plain[:place])
    made = generate(hf, control, rows[:1])[0][0]
    actives = [record.scores["active"] for record in made.records]
    assert actives == [0] * place + [float(scores[place] > 0.5)] * (TOKENS - place)


def test_a_place_that_is_not_there_is_refused_before_anything_is_read() -> None:
    hf, rows = model("llama"), reference.pairs(4, VOCAB, SIZES)
    control = gated(hf)
    object.__setattr__(control.gate.probe, "layer", 9)
    with pytest.raises(InvalidParameterError, match="a probe reads residual of layer 9"):
        generate(hf, control, rows)
    assert hooks(hf) == 0


def test_an_mlp_that_does_not_tell_rows_apart_is_refused() -> None:
    hf, rows = model("opt"), reference.pairs(4, VOCAB, SIZES)
    probe = probe_of(model("llama"), "mlp", 0)
    control = Controller(methods.parse("cad"), Gate("probe", ">", 0.5, probe=probe))
    with pytest.raises(UnsupportedError, match="mlp.0: this model's MLPs see the positions of all"):
        generate(hf, control, rows)


def test_a_step_without_activations_is_refused() -> None:
    gate = Gate("probe", ">", 0.5, probe=probe_of(model("llama")))
    step = Step.from_logits({"context": torch.randn(2, 5), "memory": torch.randn(2, 5)})
    for one in (gate, Gate.parse("probe > 0.5")):
        with pytest.raises(InvalidParameterError, match="reads activations.*probe=FILE"):
            one(step, one.initial(2))
