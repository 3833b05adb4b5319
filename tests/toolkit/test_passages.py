"""Passages read one by one: against a float64 re-reading of every prefix without cache."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

import conflictkit as ck
from conflictkit.errors import ContextTooLongError, EmptyInputError, InvalidParameterError
from tests.tiny import byte_tokenizer, gpt2, llama

VOCAB = 300
QUESTION = "Who?"
DOCUMENTS = ["Nobody knows.", "It was Ann, of course.", "Bo did."]
SHORT = {"max_new_tokens": 6, "per_passage": True}


@pytest.fixture(scope="module", params=[llama, gpt2], ids=["llama", "gpt2"])
def model(request):
    return ck.load(request.param(VOCAB), tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def exact(model):
    return copy.deepcopy(model.model).double()


def prompt(model, question, passage=None):
    """The prompt's tokens, from its text as the documentation words it."""
    text = f"{passage}\n\n" if passage is not None else ""
    return model.tokenizer(f"{text}Question: {question}\nAnswer:")["input_ids"]


def logprobs(exact, ids, said, banned=()):
    with torch.no_grad():
        logits = exact(torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1]
    logits[list(banned)] = -math.inf
    return logits.log_softmax(-1)


def divergence(p, q):
    """Jensen-Shannon, as its definition has it."""
    p, q = p.exp(), q.exp()
    middle = (p + q) / 2
    terms = [torch.where(x > 0, x * (x / middle).log(), 0.0).sum() for x in (p, q)]
    return float(sum(terms) / 2)


def check(model, exact, answer, question, documents, banned=()):
    """Every number of an answer's passages, re-derived."""
    prompts = [prompt(model, question), *(prompt(model, question, one) for one in documents)]
    names = ["memory", *(f"passage {n}" for n in range(1, len(documents) + 1))]
    said, sums = [], [0.0] * len(names)
    assert answer.trace.tokens
    for token in answer.trace.tokens:
        rows = [logprobs(exact, ids, said, banned) for ids in prompts]
        found = token.passages
        own = [float(row[token.id]) for row in rows]
        assert found.names == tuple(names)
        assert found.logprobs == pytest.approx(own, abs=2e-4)
        assert found.probabilities == pytest.approx([math.exp(x) for x in own], abs=2e-5)
        matrix = [[divergence(p, q) for q in rows] for p in rows]
        for line, expected in zip(found.jsd, matrix, strict=True):
            assert line == pytest.approx(expected, abs=2e-5)
        for row, top in zip(rows, found.tops, strict=True):
            assert top[0].probability == pytest.approx(float(row.exp().max()), abs=2e-5)
        best = max(own[1:])
        clear = abs(math.exp(best) - math.exp(own[0])) > 1e-4
        if clear:
            winner = names[1 + own[1:].index(best)] if best > own[0] else "memory"
            assert winner in found.agrees_with
        if token.kind != "end":
            sums = [total + value for total, value in zip(sums, own, strict=True)]
        said.append(token.id)
    if answer.text:
        assert answer.trace.passages.logprobs == pytest.approx(sums, abs=1e-3)


@pytest.mark.parametrize("method", ["adacad", "plain", "memory", "grd"])
def test_every_number_is_that_of_a_float64_reading(model, exact, method):
    answer = model.ask(QUESTION, documents=DOCUMENTS, method=method, **SHORT)
    check(model, exact, answer, QUESTION, DOCUMENTS)


def test_sampled_answers_and_beams_carry_their_own_numbers(model, exact):
    for options in ({"temperature": 1.5, "seed": 3, "n": 2}, {"num_beams": 3, "n": 3}):
        answer = model.ask(QUESTION, DOCUMENTS, **SHORT, **options)
        for one in (answer, *answer.alternatives):
            check(model, exact, one, QUESTION, DOCUMENTS)


def test_a_forbidden_token_leaves_every_source(model, exact):
    plain = model.ask(QUESTION, DOCUMENTS, "plain", **SHORT)
    banned = plain.trace.tokens[0].id

    def forbid(_, logits):
        logits[:, banned] = -math.inf
        return logits

    answer = model.ask(QUESTION, DOCUMENTS, "plain", processors=[forbid], **SHORT)
    check(model, exact, answer, QUESTION, DOCUMENTS, banned=[banned])


def test_rows_with_different_numbers_of_passages_stay_independent(model, exact):
    questions = [QUESTION, "What is it that they said?", "Why so?"]
    rows = [DOCUMENTS, "One only.", ["Because.", "For no reason at all."]]
    batch = model.ask_batch(questions, documents=rows, **SHORT)
    for question, documents, answer in zip(questions, rows, batch, strict=True):
        passages = [documents] if isinstance(documents, str) else documents
        check(model, exact, answer, question, passages)
        assert answer.text == model.ask(question, documents, **SHORT).text
    beams = model.ask_batch(questions, rows, num_beams=2, **SHORT)
    for question, documents, answer in zip(questions, rows, beams, strict=True):
        passages = [documents] if isinstance(documents, str) else documents
        check(model, exact, answer, question, passages)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.0, "seed": 1}])
def test_reading_the_passages_changes_nothing_else(model, options):
    plain = model.ask(QUESTION, DOCUMENTS, max_new_tokens=6, **options)
    apart = model.ask(QUESTION, documents=DOCUMENTS, **SHORT, **options)
    assert (apart.text, apart.stats) == (plain.text, plain.stats)
    assert apart.score == pytest.approx(plain.score, abs=1e-4)
    # Pass by pass the same rows are computed together, to the last bit.
    options |= {"road": "sequential"}
    plain = model.ask(QUESTION, DOCUMENTS, max_new_tokens=6, **options)
    apart = model.ask(QUESTION, documents=DOCUMENTS, **SHORT, **options)
    one, other = plain.to_dict(), apart.to_dict()
    assert other.pop("passages")
    for token in other["tokens"]:
        assert token.pop("passages")
    assert one == other


def test_what_the_passages_cost_is_counted_apart(model):
    reads = []
    hook = model.model.register_forward_pre_hook(lambda *_: reads.append(1))
    try:
        answer = model.ask(QUESTION, DOCUMENTS, "adacad", **SHORT)
    finally:
        hook.remove()
    steps = len(answer.trace.tokens)
    assert answer.passage_cost["forwards"] == 3 * steps
    assert len(reads) == answer.stats.passes + 3  # the passages' prompts; the rest rides along
    prompts = sum(len(prompt(model, QUESTION, one)) for one in DOCUMENTS)
    assert answer.passage_cost["tokens"] == prompts + 3 * (steps - 1)
    assert answer.to_dict()["passages"]["cost"] == answer.passage_cost


def test_the_uncontrolled_answers_do_not_read_the_passages(model):
    reads = []
    hook = model.model.register_forward_pre_hook(lambda *_: reads.append(1))
    try:
        answer = model.ask(QUESTION, DOCUMENTS, "adacad", compare=True, **SHORT)
    finally:
        hook.remove()
    own = answer.stats.forwards + answer.passage_cost["forwards"]
    assert len(reads) - own <= 2 * SHORT["max_new_tokens"]


def test_one_passage_has_nobody_to_contradict(model, exact):
    answer = model.ask(QUESTION, documents=["It was Ann."], **SHORT)
    check(model, exact, answer, QUESTION, ["It was Ann."])
    summary = answer.to_dict()["passages"]
    assert summary["max_disagreement"] is None
    assert summary["max_jsd"] == [[0.0]]
    assert summary["memory_sides_with"] == []
    context = [token.context_top for token in answer.trace.tokens]
    alone = [token.passages.tops[1] for token in answer.trace.tokens]
    assert [[c.id for c in top] for top in alone] == [[c.id for c in top] for top in context]


def test_duplicates_tie_and_do_not_differ(model):
    answer = model.ask(QUESTION, ["It was Ann.", "Bo did.", "It was Ann."], **SHORT)
    for token in answer.trace.tokens:
        assert token.passages.jsd[1][3] == pytest.approx(0.0, abs=1e-6)
        named = token.passages.agrees_with
        assert ("passage 1" in named) == ("passage 3" in named)
    assert answer.trace.passages.counts[1] == answer.trace.passages.counts[3]


def test_twenty_passages(exact, model):
    documents = [f"No {n}." for n in range(20)]
    long = {"max_new_tokens": 2, "per_passage": True, "truncate": True}
    answer = model.ask(QUESTION, documents, **long)
    check(model, exact, answer, QUESTION, documents)
    assert len(answer.to_dict()["passages"]["passages"]) == 20


def test_a_stream_of_text_ends_in_the_same_answer(model):
    stream = model.stream(QUESTION, documents=DOCUMENTS, **SHORT)
    assert "".join(stream) == stream.answer.text
    assert stream.answer == model.ask(QUESTION, DOCUMENTS, **SHORT)
    assert stream.answer.trace.passages is not None


def test_the_window_holds_for_every_passage(model):
    long = "word " * 80
    with pytest.raises(ContextTooLongError):
        model.ask(QUESTION, ["Short.", long], **SHORT)
    cut = model.ask(QUESTION, ["Short.", long], truncate=True, **SHORT)
    assert cut.truncated
    read = cut.passage_cost["tokens"] - 2 * (len(cut.trace.tokens) - 1)
    second = read - len(prompt(model, QUESTION, "Short."))
    room = model.window - SHORT["max_new_tokens"]
    assert room - len("word ") < second <= room


def test_the_json_is_strict_and_says_what_the_trace_says(model):
    answer = model.ask(QUESTION, DOCUMENTS, **SHORT)
    data = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    first, token = data["tokens"][0]["passages"], answer.trace.tokens[0].passages
    assert first["agrees_with"] == list(token.agrees_with)
    assert first["memory_probability"] == token.probabilities[0]
    assert [one["name"] for one in first["passages"]] == ["passage 1", "passage 2", "passage 3"]
    assert [one["probability"] for one in first["passages"]] == list(token.probabilities[1:])
    assert [one["jsd_memory"] for one in first["passages"]] == [line[0] for line in token.jsd[1:]]
    assert first["jsd"] == [list(line[1:]) for line in token.jsd[1:]]
    assert first["passages"][2]["top"][0]["id"] == token.tops[3][0].id
    assert data["passages"]["follows"] == list(answer.trace.passages.follows)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"per_passage": True}, InvalidParameterError, r"there are none: pass documents="),
        ({"per_passage": 1, "documents": ["a"]}, InvalidParameterError, "True or False"),
        ({"per_passage": True, "documents": ["a"], "trace": False}, InvalidParameterError, "trace"),
        ({"context": "a", "documents": ["b"]}, InvalidParameterError, "only one"),
        ({"documents": []}, EmptyInputError, "list of passages is empty"),
        ({"documents": ["a", " "], "per_passage": True}, EmptyInputError, "context 2 is empty"),
        ({"documents": [{"text": "a"}]}, InvalidParameterError, "holds dict"),
    ],
)
def test_bad_input_is_a_named_error(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.ask(QUESTION, **arguments)


def test_a_closed_book_row_of_a_batch_is_named(model):
    with pytest.raises(InvalidParameterError, match="row 2 has none"):
        model.ask_batch(["a?", "b?"], ["c", None], per_passage=True)
