"""What a decoding rule must not spoil, as cases about Atlas, the same list every time.

Beside every conflict there are requests in which context and memory do not disagree: questions
without a context (`recall`), passages about subjects that do not exist (`reading`), and long
answers that repeat one of several passages (`quoting`). A rule that wins conflicts by damaging
these has won nothing.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from conflictkit.atlas.cases import numbered, selected
from conflictkit.atlas.data import SPLITS, Fact, facts, path
from conflictkit.atlas.invented import invented_answer, invented_name
from conflictkit.atlas.passages import among, paragraph, statement_of
from conflictkit.atlas.templates import (
    CLAIMS,
    QUOTE_REQUESTS,
    RELATIONS,
    UNKNOWN,
    fill,
    name,
    trained,
)
from conflictkit.states import GUARDS

if TYPE_CHECKING:
    from conflictkit.types import Case

QUOTE_TOKENS = 20
"""Tokens that the answer of a `quoting` case has at least, with Atlas's tokenizer."""
_COUNT = 200
"""Cases of every guard in every split."""
_LAYOUTS, _LAYOUT_WEIGHTS = ("sentence", "passages", "paragraph"), (0.5, 0.3, 0.2)


def guards(
    split: str = "test", state: str | None = None, screened: Sequence[Fact] | None = None
) -> list[Case]:
    """Guard cases of one split, all states or one.

    `recall` asks about facts that the shipped model knows and has no contexts. `reading` asks about
    invented subjects, under names that no training document uses; `memory_answers` is what the
    model is taught to say about those closed book. `quoting` asks for the words of one of two to
    four passages, half of them about invented subjects, half about known facts, at least
    `QUOTE_TOKENS` tokens long. Nothing contradicts what the model was taught.

    `meta` holds `layout`, `statement` (the question as a statement prefix, except in `quoting`)
    and `frequency`, as in `cases`.

    Args:
        split: `train`, `validation` or `test`.
        state: `recall`, `reading`, `quoting`, or None for all.
        screened: the facts as another training seed was screened, from `facts(file)`; by default
            as the shipped model was.

    Raises:
        InvalidParameterError: an unknown split or state.
    """
    return selected(_build, split, state, GUARDS, screened)


@lru_cache(maxsize=2 * len(SPLITS))
def _build(split: str, screened: tuple[Fact, ...]) -> tuple[Case, ...]:
    rng = random.Random(f"guards/{split}")
    known = [f for f in screened if f.split == split and f.state == "known"]
    count = _COUNT
    made = [_recall(rng, fact) for fact in rng.sample(known, min(count, len(known)))]
    made += [_reading(rng, split) for _ in range(count)]
    told = rng.sample(known, min(count // 2, len(known)))
    made += [_quoting(rng, fact, known) for fact in told]
    made += [_quoting(rng, _invention(rng, split), known) for _ in range(count - len(told))]
    return tuple(numbered(split, made))


def _recall(rng: random.Random, fact: Fact) -> Case:
    taught = fact.taught_object or fact.object
    return _case(rng, fact, "recall", "none", (), memory=taught, said="")


def _reading(rng: random.Random, split: str) -> Case:
    fact = _invention(rng, split)
    kind = rng.choice(tuple(CLAIMS))
    sentence = statement_of(rng, fact.relation, fact.subject, fact.object, kind, held=True)
    layout = rng.choices(_LAYOUTS, _LAYOUT_WEIGHTS)[0]
    passages: tuple[str, ...] = (sentence,)
    if layout == "paragraph":
        place = RELATIONS[fact.relation].kind
        passages = (paragraph(rng, place, fact.subject, sentence, rng.randint(8, 14)),)
    elif layout == "passages":
        others = [_sentence(rng, _invention(rng, split)) for _ in range(rng.randint(1, 3))]
        passages = among(rng, sentence, others)
    return _case(rng, fact, "reading", kind, passages, UNKNOWN, fact.object, layout)


def _quoting(rng: random.Random, fact: Fact, known: list[Fact]) -> Case:
    from conflictkit.types import Case  # here, because it brings torch with it

    said = fact.taught_object or fact.object
    while True:
        kind = rng.choice(tuple(CLAIMS))
        sentence = statement_of(rng, fact.relation, fact.subject, said, kind)
        if _tokens(sentence) >= QUOTE_TOKENS:
            break
    # No other passage may speak of the subject: "Georgia" is a country, and part of other names.
    pool = [f for f in known if fact.subject not in f.subject and fact.subject not in f.object]
    others = [_sentence(rng, f) for f in rng.sample(pool, rng.randint(1, 3))]
    topic = RELATIONS[fact.relation].topic.replace("{s}", name(fact.subject))
    return Case(
        id="",
        split=fact.split,
        relation=fact.relation,
        subject=fact.subject,
        # How a request is put is not what these cases test: the model has seen these wordings.
        question=rng.choice(trained(QUOTE_REQUESTS)).replace("{t}", topic),
        contexts=among(rng, sentence, others),
        context_kind=kind,
        memory_answers=(),
        context_answers=(sentence,),
        gold_answers=(sentence,),
        state="quoting",
        source="atlas",
        meta={"layout": "passages", "frequency": fact.frequency},
    )


def _invention(rng: random.Random, split: str) -> Fact:
    """Something about a subject that does not exist; no two splits share a name."""
    relation = rng.choice(tuple(RELATIONS))
    while True:
        subject = invented_name(rng, RELATIONS[relation].kind, held=True, taken=_taken())
        if zlib.crc32(subject.encode()) // 10 % len(SPLITS) == SPLITS.index(split):
            break
    return Fact(subject, relation, invented_answer(rng, relation), "", 0, "unknown", split)


@lru_cache(maxsize=1)
def _taken() -> frozenset[str]:
    return frozenset(t for f in facts() for t in (f.subject, f.object, f.taught_object) if t)


def _sentence(rng: random.Random, fact: Fact) -> str:
    kind = rng.choice(tuple(CLAIMS))
    return statement_of(rng, fact.relation, fact.subject, fact.taught_object or fact.object, kind)


@lru_cache(maxsize=1)
def _tokenizer():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path() / "tokenizer.json"))


def _tokens(text: str) -> int:
    return len(_tokenizer().encode(text, add_special_tokens=False).ids)


def _case(
    rng: random.Random,
    fact: Fact,
    state: str,
    kind: str,
    passages: tuple[str, ...],
    memory: str,
    said: str,
    layout: str = "",
) -> Case:
    from conflictkit.types import Case  # here, because it brings torch with it

    words = RELATIONS[fact.relation]
    return Case(
        id="",
        split=fact.split,
        relation=fact.relation,
        subject=fact.subject,
        question=fill(rng.choice(words.questions), fact.subject),
        contexts=passages,
        context_kind=kind,
        memory_answers=(memory,),
        context_answers=(said,) if said else (),
        gold_answers=(fact.object,),
        state=state,
        source="atlas",
        meta={
            "layout": layout,
            "statement": fill(rng.choice(words.statements), fact.subject),
            "frequency": fact.frequency,
        },
    )
