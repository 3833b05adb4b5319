"""Drawing tokens: the right distribution, and rows that do not touch each other."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from conflictkit import engine, methods
from conflictkit.errors import InvalidParameterError
from conflictkit.sampling import Chooser, Decoding, first_argmax
from tests.engine import reference
from tests.engine.test_engine import answers, stepper
from tests.tiny import gpt2, llama

VOCAB = 40


def test_draws_follow_the_warped_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -torch.inf]])
    decoding = Decoding(temperature=0.7, top_k=4, top_p=0.95, seed=11)
    draws = 20_000
    chooser = Chooser(decoding, draws)
    # Rows of one call start from one seed; give each a seed of its own.
    chooser._generators = [torch.Generator().manual_seed(number) for number in range(draws)]
    tokens = chooser.choose(logits.expand(draws, -1))
    scaled = (logits[0].double() / 0.7).softmax(-1)
    scaled[4:] = 0  # top-k
    order = scaled / scaled.sum()
    kept, mass = [], 0.0
    for token in order.argsort(descending=True).tolist():
        if mass < 0.95 and order[token] > 0:
            kept.append(token)
        mass += float(order[token])
    expected = torch.zeros(6, dtype=torch.float64)
    expected[kept] = order[kept] / order[kept].sum()
    counts = torch.bincount(tokens, minlength=6)
    assert counts[expected == 0].sum() == 0
    alive = expected > 0
    result = chisquare(counts[alive].numpy(), (expected[alive] * draws).numpy())
    assert result.pvalue > 1e-3


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_row_draws_the_same_alone_and_in_company(build):
    model, rule = build(VOCAB), methods.build("adacad")
    rows = reference.pairs(1, VOCAB, [(9, 4), (3, 7), (14, 2)])
    decoding = Decoding(max_new_tokens=10, temperature=1.0, seed=(5, 9, 5))
    together = answers(engine.generate(stepper(model, rows, rule, decoding)))
    alone = []
    for row, seed in zip(rows, (5, 9, 5), strict=True):
        one = Decoding(max_new_tokens=10, temperature=1.0, seed=seed)
        alone += answers(engine.generate(stepper(model, [row], rule, one)))
    assert together == alone


def test_rows_with_the_same_question_do_not_draw_the_same():
    model, rule = llama(VOCAB), methods.build("adacad")
    rows = reference.pairs(1, VOCAB, [(9, 4)]) * 4
    for seed in (5, None):
        decoding = Decoding(max_new_tokens=10, temperature=1.5, seed=seed)
        made = answers(engine.generate(stepper(model, rows, rule, decoding)))
        assert len({tuple(row) for row in made}) == 4


def test_a_seed_for_every_row_or_none():
    rows = reference.pairs(1, VOCAB, [(9, 4), (3, 7)])
    decoding = Decoding(max_new_tokens=2, temperature=1.0, seed=(1, 2, 3))
    with pytest.raises(InvalidParameterError, match="3 seeds for 2 rows"):
        engine.generate(stepper(llama(VOCAB), rows, methods.build("plain"), decoding))


def test_a_tiny_temperature_is_nearly_greedy():
    scores = torch.tensor([[0.5, 3.0, -1.0, 2.9, -torch.inf]])
    for temperature in (1e-4, 1e-38, 1e-40):
        chooser = Chooser(Decoding(temperature=temperature, seed=1), 1)
        assert chooser.choose(scores).tolist() == [1]


def test_seeds_decide_and_samples_of_one_row_differ():
    model, rule = llama(VOCAB), methods.build("cad")
    rows = reference.pairs(1, VOCAB, [(9, 4), (3, 7)])
    many = Decoding(max_new_tokens=10, temperature=1.5, seed=5, n=3)
    made = engine.generate(stepper(model, rows, rule, many))
    texts = [[generation.ids for generation in row] for row in made]
    again = engine.generate(stepper(model, rows, rule, many))
    assert texts == [[generation.ids for generation in row] for row in again]
    assert all(len(set(row)) == 3 for row in texts)
    for extra in range(3):
        seeds = (5 + extra, 5 + 3 + extra)
        one = Decoding(max_new_tokens=10, temperature=1.5, seed=seeds)
        single = engine.generate(stepper(model, rows, rule, one))
        assert [row[0].ids for row in single] == [row[extra] for row in texts]


def test_without_a_seed_torch_decides():
    model, rule = llama(VOCAB), methods.build("cad")
    rows = reference.pairs(1, VOCAB, [(9, 4)])
    decoding = Decoding(max_new_tokens=10, temperature=2.0)
    seen = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seen.append(answers(engine.generate(stepper(model, rows, rule, decoding))))
    assert seen[0] == seen[1] != seen[2]


def test_ties_go_to_the_lowest_index():
    scores = torch.tensor([[0.0, 3.0, 3.0, 1.0], [-torch.inf, -torch.inf, 2.0, 2.0]])
    assert first_argmax(scores).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"stop": ("\n", "\udcff")}, "stop"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"num_beams": True}, "num_beams"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams"),
        ({"num_beams": 2, "n": 3}, "n=3"),
        ({"n": 2}, "n > 1"),
        ({"stop": ("",)}, "stop"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": (1, -1)}, "seed"),
        ({"top_k": 3}, "temperature above 0"),
        ({"top_p": 0.5}, "temperature above 0"),
        ({"length_penalty": 0.5}, "num_beams above 1"),
        ({"num_beams": 2, "length_penalty": 1e3}, "length_penalty"),
    ],
)
def test_bad_options_are_refused_by_name(options, name):
    with pytest.raises(InvalidParameterError, match=name):
        Decoding(**options)
