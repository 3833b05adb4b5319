"""Beams against every answer there is, and against transformers' beam search."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from conflictkit import engine, methods
from conflictkit.sampling import Decoding
from tests.engine import reference
from tests.engine.test_engine import stepper
from tests.tiny import gpt2, llama

SMALL = 6


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names(edits=False))
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_wide_beams_find_the_best_of_all_answers(name, penalty):
    model, rule = llama(SMALL, seed=3), methods.build(name)
    rows = reference.pairs(1, SMALL, [(4, 3), (2, 2)])
    width, length = SMALL**2, 3
    decoding = Decoding(max_new_tokens=length, num_beams=width, length_penalty=penalty, n=4)
    made = engine.generate(stepper(model, rows, rule, decoding, ends=(1,)))
    for row, found in zip(rows, made, strict=True):
        everything = reference.every_answer(
            model, rule, row["context"], row["memory"], length, {1}, SMALL
        )
        ranked = sorted(everything, key=lambda answer: -answer[0] / answer[1] ** penalty)
        for generation, (total, _, ids) in zip(found, ranked, strict=False):
            assert generation.score == pytest.approx(total, abs=1e-4)
            assert generation.ids == ids


class _Exact(LogitsProcessor):
    """Stateless: re-reads both streams of every row at each call."""

    def __init__(self, model, rule, rows, width):
        self.model, self.rule, self.rows, self.width = model, rule, rows, width
        self.longest = max(len(row["context"]) for row in rows)

    def __call__(self, input_ids, scores):
        mixed = []
        for number, ids in enumerate(input_ids.tolist()):
            row = self.rows[number // self.width]
            said = ids[self.longest :]
            mixed.append(
                reference.scores(self.model, self.rule, row["context"], row["memory"], said)
            )
        return torch.stack(mixed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "cad", "adacad", "coiecd", "ck-plug", "grd", "auto"])
@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize(("width", "ends"), [(2, (1,)), (3, (1, 9, 11)), (4, (5,))])
def test_beams_are_those_of_transformers(name, build, width, ends):
    vocab = 14
    model, rule = build(vocab, seed=2), methods.build(name)
    rows = reference.pairs(3, vocab, [(5, 3), (2, 4)])
    longest = max(len(row["context"]) for row in rows)
    ids = torch.tensor([[2] * (longest - len(r["context"])) + r["context"] for r in rows])
    mask = torch.tensor(
        [[0] * (longest - len(r["context"])) + [1] * len(r["context"]) for r in rows]
    )
    expected = model.generate(
        ids,
        attention_mask=mask,
        num_beams=width,
        num_return_sequences=2,
        max_new_tokens=7,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=2,
        logits_processor=LogitsProcessorList([_Exact(model, rule, rows, width)]),
    )[:, longest:].tolist()
    decoding = Decoding(max_new_tokens=7, num_beams=width, n=2)
    made = engine.generate(stepper(model, rows, rule, decoding, ends=ends))
    found = [generation.ids for row in made for generation in row]
    for want, got in zip(expected, found, strict=True):
        stop = next((place for place, token in enumerate(want) if token in ends), len(want))
        assert list(got) == want[:stop]


@pytest.mark.parametrize("top", [None, 3])
def test_events_of_beams_end_with_the_end_token(top):
    vocab = 14
    model, rule = llama(vocab, seed=2), methods.build("plain")
    row = reference.pairs(3, vocab, [(5, 3)])[0]
    run = stepper(
        model, [row], rule, Decoding(max_new_tokens=6, num_beams=3), ends=(9, 11, 4), top=top
    )
    events = list(engine.stream(run))
    again = stepper(model, [row], rule, Decoding(max_new_tokens=6, num_beams=3), ends=(9, 11, 4))
    best = engine.generate(again)[0][0]
    assert best.finish_reason == "eos"
    assert tuple(event.token for event in events[:-1]) == best.ids
    assert events[-1].token in (9, 11, 4)
    assert events[-1].finish_reason == "eos"
    assert all((event.record is None) == (top is None) for event in events)


def test_beam_records_belong_to_the_answer_they_stand_beside():
    vocab = 14
    model, rule = llama(vocab, seed=2), methods.build("cad")
    row = reference.pairs(3, vocab, [(5, 3)])[0]
    decoding = Decoding(max_new_tokens=6, num_beams=3, n=3)
    made = engine.generate(stepper(model, [row], rule, decoding, ends=(1,)))
    for generation in made[0]:
        tokens = [record.id for record in generation.records]
        assert tokens[: len(generation.ids)] == list(generation.ids)
        for position, record in enumerate(generation.records):
            logits = reference.next_logits(model, row["context"] + tokens[:position])
            assert record.tops["context"][0][0] == int(logits.argmax())
            assert record.tops["context"][0][1] == pytest.approx(
                float(logits.softmax(-1).max()), abs=1e-5
            )
