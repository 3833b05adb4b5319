"""`Model.ask(..., cache=...)`: what was read before is not read again, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest

import conflictkit as ck
from conflictkit.errors import InvalidParameterError
from conflictkit.prompt_cache import PromptCache
from tests.tiny import byte_tokenizer, llama

DOCUMENTS = ["Nobody knows, and nobody will ever know.", "They said that it was so, and left."]
QUESTIONS = ["Who knows?", "What is it that they said?", "Why so?"]


@pytest.fixture(scope="module")
def model() -> ck.Model:
    return ck.load(llama(300), tokenizer=byte_tokenizer())


def alike(found: Any, wanted: Any) -> None:
    assert found.text == wanted.text
    assert found.score == pytest.approx(wanted.score, rel=1e-4, abs=1e-4)
    for mine, other in zip(found.trace.tokens, wanted.trace.tokens, strict=True):
        assert mine.scores == pytest.approx(other.scores, rel=1e-3, abs=1e-3)


def test_questions_and_documents_in_any_pairing(model: ck.Model) -> None:
    kept, short = PromptCache(), {"max_new_tokens": 6}
    for question in QUESTIONS:
        for document in (*DOCUMENTS, None):
            wanted = model.ask(question, document, **short)
            alike(model.ask(question, document, cache=kept, **short), wanted)
    # The document of the second question is not read again, nor anything of a question alone.
    assert 0 < kept.tokens_read < kept.tokens_reused
    before = kept.tokens_read
    for method in ("cad", "grd", "plain", "memory"):
        asked: Any = (QUESTIONS, [DOCUMENTS[0], None, DOCUMENTS[1]], method)
        several = model.ask_batch(*asked, cache=kept, compare=True, **short)
        plain = model.ask_batch(*asked, compare=True, **short)
        for found, wanted in zip(several, plain, strict=True):
            alike(found, wanted)
            assert found.plain_answer == wanted.plain_answer
            assert found.memory_answer == wanted.memory_answer
        # What is counted is what was read: the answers, but for their last tokens.
        stats = several[0].stats
        assert stats.context_tokens + stats.memory_tokens <= 2 * 2 * 6
    assert kept.tokens_read == before


def test_passages_streams_and_samples(model: ck.Model) -> None:
    kept, asked = PromptCache(), (QUESTIONS[1], DOCUMENTS)
    for options in (
        {"per_passage": True},
        {"temperature": 1.0, "seed": 3, "n": 2},
        {"num_beams": 3},
        {"drafts": "auto"},
    ):
        wanted = model.ask(*asked, max_new_tokens=6, **options)
        alike(model.ask(*asked, max_new_tokens=6, cache=kept, **options), wanted)
    pieces = model.stream(*asked, max_new_tokens=6, cache=kept)
    assert "".join(pieces) == model.ask(*asked, max_new_tokens=6).text
    assert kept.tokens_reused > 2 * kept.tokens_read


@pytest.mark.parametrize("given", ["1 GiB", 1 << 30, PromptCache, {}])
def test_something_else_than_a_cache_is_refused_by_name(model: ck.Model, given: Any) -> None:
    with pytest.raises(InvalidParameterError, match="cache must be a PromptCache"):
        model.ask(QUESTIONS[0], DOCUMENTS[0], cache=given)
