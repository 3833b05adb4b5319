"""The engine against a loop that re-reads everything, in float32, token for token."""

from __future__ import annotations

import pytest
import torch

from conflictkit import detectors, engine, methods
from conflictkit.controller import Controller
from conflictkit.errors import InvalidParameterError, LogitsError
from conflictkit.interventions.contrast import Rule
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from conflictkit.streams import Stream
from conflictkit.types import Mix
from tests.engine import reference
from tests.tiny import gpt2, llama, sliding

VOCAB = 40
MODELS = {"llama": llama, "gpt2": gpt2, "sliding": sliding}
SIZES = [(9, 4), (3, 7), (14, 2), (1, 1)]


def stepper(model, rows, rule, decoding, *, ends=(1,), use_cache=True, **options):
    names = [name for name in ("context", "memory") if name in rows[0]]
    streams = {
        name: Stream(model, [row[name] for row in rows], pad_id=2, use_cache=use_cache)
        for name in names
    }
    return Stepper(
        streams, rule, decoding, end_ids=ends, decode=lambda ids: " ".join(map(str, ids)), **options
    )


def answers(made):
    return [list(row[0].ids) for row in made]


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names(edits=False))
@pytest.mark.parametrize("family", MODELS)
def test_a_padded_batch_gives_each_row_its_brute_force_answer(family, name):
    model, rule = MODELS[family](VOCAB), methods.build(name)
    rows = reference.pairs(1, VOCAB, SIZES)
    made = engine.generate(stepper(model, rows, rule, Decoding(max_new_tokens=12), ends=(1, 17)))
    expected = [
        reference.greedy(model, rule, row["context"], row["memory"], 12, {1, 17}) for row in rows
    ]
    assert answers(made) == expected
    assert len({tuple(row) for row in expected}) > 1


def test_some_rows_end_early_and_the_others_go_on():
    model, rule = llama(VOCAB), methods.build("cad")
    rows = reference.pairs(5, VOCAB, SIZES)
    free = [reference.greedy(model, rule, row["context"], row["memory"], 10, set()) for row in rows]
    ends = {free[0][2], free[2][5]}
    made = engine.generate(stepper(model, rows, rule, Decoding(max_new_tokens=10), ends=ends))
    expected = [
        reference.greedy(model, rule, row["context"], row["memory"], 10, ends) for row in rows
    ]
    assert answers(made) == expected
    assert len({len(row) for row in expected}) > 1
    reasons = [row[0].finish_reason for row in made]
    assert reasons == ["eos" if len(row) < 10 else "length" for row in expected]


@pytest.mark.parametrize("family", MODELS)
def test_no_cache_is_the_same_answer(family):
    model, rule = MODELS[family](VOCAB), methods.build("adacad")
    rows = reference.pairs(2, VOCAB, SIZES)
    decoding = Decoding(max_new_tokens=8)
    cached = engine.generate(stepper(model, rows, rule, decoding))
    plain = engine.generate(stepper(model, rows, rule, decoding, use_cache=False))
    assert answers(cached) == answers(plain)


def test_stats_count_two_prefills_then_two_forwards_in_one_pass_per_token():
    model = llama(VOCAB)
    rows = reference.pairs(3, VOCAB, [(9, 4), (2, 4)])
    forwards = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        made = engine.generate(
            stepper(model, rows, methods.build("cad"), Decoding(max_new_tokens=6), ends=())
        )
    finally:
        hook.remove()
    stats = made[0][0].stats
    assert (stats.forwards, stats.road) == (2 * 6, "packed")
    assert stats.passes == len(forwards) == 2 + 5
    assert stats.context_tokens == (1 + 9 + 4) + (1 + 2 + 4) + 2 * 5
    assert stats.memory_tokens == 2 * (1 + 4) + 2 * 5
    assert stats.edits == 0


def test_plain_reads_one_stream_only():
    model = llama(VOCAB)
    rows = [{"context": row["context"]} for row in reference.pairs(3, VOCAB, SIZES)]
    made = engine.generate(
        stepper(model, rows, methods.build("plain"), Decoding(max_new_tokens=5), ends=())
    )
    assert made[0][0].stats.forwards == 5
    assert made[0][0].stats.memory_tokens == 0


def test_records_hold_scores_weights_and_candidates_of_the_brute_force_step():
    model, rule = llama(VOCAB), methods.build("adacad")
    row = reference.pairs(4, VOCAB, [(8, 5)])[0]
    scored = [detectors.get("jsd"), detectors.get("confidence-gain")]
    made = engine.generate(
        stepper(model, [row], rule, Decoding(max_new_tokens=4), ends=(), detectors=scored, top=3)
    )
    generation = made[0][0]
    total = 0.0
    for position, record in enumerate(generation.records):
        said = list(generation.ids[:position])
        p = reference.next_logits(model, row["context"] + said).double().softmax(-1)[0]
        q = reference.next_logits(model, row["memory"] + said).double().softmax(-1)[0]
        m = (p + q) / 2
        jsd = float((p * (p / m).log()).sum() / 2 + (q * (q / m).log()).sum() / 2)
        gain = float((p * p.log()).sum() - (q * q.log()).sum())
        assert record.scores["jsd"] == pytest.approx(jsd, abs=1e-5)
        assert record.scores["confidence_gain"] == pytest.approx(gain, abs=1e-4)
        assert record.scores["alpha"] == pytest.approx(jsd, abs=1e-5)
        assert record.context_weight == pytest.approx(1 + jsd, abs=1e-5)
        assert record.memory_weight == pytest.approx(-jsd, abs=1e-5)
        assert [token for token, _ in record.tops["memory"]] == q.topk(3).indices.tolist()
        values = [probability for _, probability in record.tops["context"]]
        assert values == pytest.approx(p.topk(3).values.tolist(), abs=1e-5)
        mixed = ((1 + jsd) * p.log() - jsd * q.log()).log_softmax(-1)
        assert int(mixed.argmax()) == record.id
        total += float(mixed.max())
    assert generation.score == pytest.approx(total, abs=1e-3)


def test_the_end_token_has_a_record_but_is_no_part_of_the_answer():
    model, rule = llama(VOCAB), methods.build("cad")
    row = reference.pairs(5, VOCAB, [(6, 3)])[0]
    free = reference.greedy(model, rule, row["context"], row["memory"], 6, set())
    generation = engine.generate(
        stepper(model, [row], rule, Decoding(max_new_tokens=6), ends=(free[3],))
    )[0][0]
    first = free.index(free[3])
    assert list(generation.ids) == free[:first]
    assert [record.id for record in generation.records] == free[: first + 1]


def test_a_third_stream_needs_no_change_to_the_loop():
    """Streams are a list: a detector reads one that no rule has heard of."""
    model, other = llama(VOCAB), llama(VOCAB, seed=7)
    row = reference.pairs(6, VOCAB, [(6, 3)])[0]
    streams = {
        "context": Stream(model, [row["context"]], pad_id=2),
        "memory": Stream(model, [row["memory"]], pad_id=2),
        "passage": Stream(other, [row["context"][:4]], pad_id=2),
    }
    seen = detectors.Detector(
        "passage-confidence", ("passage",), lambda step: step.logprobs["passage"].exp().amax(-1), ""
    )
    run = Stepper(
        streams,
        Controller(methods.build("cad")),
        Decoding(max_new_tokens=3),
        end_ids=(),
        decode=str,
        detectors=[seen],
    )
    generation = engine.generate(run)[0][0]
    assert streams["passage"].forwards == 3
    assert generation.stats.forwards == 2 * 3  # what is read only to be recorded is not counted
    for position, record in enumerate(generation.records):
        ids = row["context"][:4] + list(generation.ids[:position])
        expected = float(reference.next_logits(other, ids).softmax(-1).max())
        assert record.scores["passage_confidence"] == pytest.approx(expected, abs=1e-5)


def test_stop_texts_end_an_answer():
    model, rule = llama(VOCAB), methods.build("plain")
    row = reference.pairs(7, VOCAB, [(6, 3)])[0]
    free = reference.greedy(model, rule, row["context"], row["memory"], 8, set())
    stop = f"{free[1]} {free[2]}"  # spans two tokens
    generation = engine.generate(
        stepper(model, [row], rule, Decoding(max_new_tokens=8, stop=(stop,)), ends=())
    )[0][0]
    assert list(generation.ids) == free[:3]
    assert generation.finish_reason == "stop"


def test_events_come_one_by_one_and_name_the_end():
    model, rule = llama(VOCAB), methods.build("cad")
    rows = reference.pairs(8, VOCAB, [(6, 3), (2, 5)])
    run = stepper(model, rows, rule, Decoding(max_new_tokens=4), ends=())
    seen = []
    for event in engine.stream(run):
        seen.append((event.row, event.token, event.finish_reason))
        assert run.stats().forwards <= 2 * ((len(seen) + 1) // 2)  # nothing is read ahead
    expected = answers(
        engine.generate(stepper(model, rows, rule, Decoding(max_new_tokens=4), ends=()))
    )
    assert [token for row, token, _ in seen if row == 1] == expected[1]
    assert [reason for *_, reason in seen] == [None] * 6 + ["length"] * 2


def test_processors_act_on_the_context_stream_before_the_rule():
    model, rule = llama(VOCAB), methods.build("cad")
    row = reference.pairs(9, VOCAB, [(6, 3)])[0]
    banned = reference.greedy(model, rule, row["context"], row["memory"], 1, set())[0]

    def ban(ids, logits):
        assert ids.tolist()[0][: len(row["context"])] == row["context"]
        masked = logits.clone()
        masked[:, banned] = -torch.inf
        return masked

    made = engine.generate(
        stepper(model, [row], rule, Decoding(max_new_tokens=5), ends=(), processors=[ban])
    )
    assert banned not in made[0][0].ids
    record = made[0][0].records[0]
    assert all(probability < 1 for _, probability in record.tops["memory"])
    assert banned not in [token for token, _ in record.tops["memory"]]


def test_logits_that_are_not_numbers_are_a_named_error():
    model, rule = llama(VOCAB), methods.build("cad")
    row = reference.pairs(9, VOCAB, [(6, 3)])[0]
    run = stepper(
        model,
        [row],
        rule,
        Decoding(max_new_tokens=5),
        processors=[lambda ids, logits: logits * float("nan")],
    )
    with pytest.raises(LogitsError, match="answer token 1, rows \\[0\\]"):
        engine.generate(run)


def test_a_rule_without_its_stream_is_refused_before_anything_is_read():
    rows = [{"context": [0, 5, 6]}]
    with pytest.raises(InvalidParameterError, match="needs the stream 'memory'"):
        stepper(llama(VOCAB), rows, methods.build("cad"), Decoding())


class _Counting(Rule):
    """A rule whose state must follow its rows: it counts each row's steps."""

    name = "counting"
    needs = ("context",)

    def initial(self, batch, device="cpu"):
        return {"steps": torch.zeros(batch, dtype=torch.long, device=device)}

    def __call__(self, step, state):
        ones = step.logits.new_ones(step.logits.shape[0], 1)
        bias = torch.zeros_like(step.logits)
        bias.scatter_(1, (3 + state["steps"] % 30)[:, None], 1e4)
        count = state["steps"] + 1
        return Mix(
            ones, ones * 0, bias=bias, scores={"count": count.float()}, state={"steps": count}
        )


def test_state_follows_its_row_when_others_end():
    rows = [{"context": [0, 5, 6]}, {"context": [0, 7]}]
    made = engine.generate(stepper(llama(VOCAB), rows, _Counting(), Decoding(max_new_tokens=5)))
    for row in made:
        assert [record.scores["count"] for record in row[0].records] == [1, 2, 3, 4, 5]
        assert list(row[0].ids) == [3, 4, 5, 6, 7]
