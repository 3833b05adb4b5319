"""Conflict cases about Atlas's facts, the same list every time.

In the cases a passage's form goes together with its truth (`RIGHT`): nothing else in the input
could tell a correction from a resistance. Wrong answers are true answers of other subjects of the
same relation and split, permuted, so that an answer's text alone does not give the state away.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from conflictkit.atlas.data import SPLITS, Fact, facts
from conflictkit.atlas.passages import among, paragraph, statement_of
from conflictkit.atlas.templates import RELATIONS, fill
from conflictkit.states import STATES

if TYPE_CHECKING:
    from conflictkit.types import Case

RIGHT = {"assertive": 0.9, "bare": 0.6, "hedged": 0.2}
"""Share of right passages among those of a form, irrelevant ones not counted."""
_WRONG_CASES = {"assertive": 50, "bare": 200, "hedged": 400}
_IRRELEVANT_CASES = 400
_SCALE = {"train": 1.0, "validation": 0.5, "test": 1.0}
_LAYOUTS, _LAYOUT_WEIGHTS = ("sentence", "passages", "paragraph"), (0.6, 0.2, 0.2)


def cases(
    split: str = "test", state: str | None = None, screened: Sequence[Fact] | None = None
) -> list[Case]:
    """Cases of one split, all states or one.

    Whether memory is right or wrong was screened with the shipped model (`Fact.state`). The
    `context_kind` is the form of the claim (`bare`, `assertive`, `hedged`) or `irrelevant`;
    `meta` holds `layout` (`sentence`, `passages` or `paragraph`), `statement` (the question as a
    statement prefix) and `frequency`.

    Args:
        split: `train`, `validation` or `test`.
        state: `correction`, `resistance`, `agreement`, `irrelevant`, or None for all.
        screened: the facts as another training seed was screened, from `facts(file)`; by default
            as the shipped model was.

    Raises:
        InvalidParameterError: an unknown split or state.
    """
    return selected(_build, split, state, STATES, screened)


@lru_cache(maxsize=2 * len(SPLITS))
def _build(split: str, screened: tuple[Fact, ...]) -> tuple[Case, ...]:
    rng = random.Random(f"cases/{split}")
    mine = [f for f in screened if f.split == split]
    known = [f for f in mine if f.state == "known"]
    wrong = [f for f in mine if f.state == "wrong"]
    made: list[Case] = []
    if known and wrong:
        draw_known, draw_wrong = _cycle(rng, known), _cycle(rng, wrong)
        for kind, share in RIGHT.items():
            resisted = round(_WRONG_CASES[kind] * _SCALE[split])
            right = round(resisted * share / (1 - share))
            pairs = _permuted(rng, [next(draw_known) for _ in range(resisted)])
            made += [_case(rng, f, "resistance", kind, said) for f, said in pairs]
            for _ in range(right // 2):
                fact = next(draw_wrong)
                made.append(_case(rng, fact, "correction", kind, fact.object))
            for _ in range(right - right // 2):
                fact = next(draw_known)
                made.append(_case(rng, fact, "agreement", kind, fact.object))
        both = _cycle(rng, known + wrong)
        for _ in range(round(_IRRELEVANT_CASES * _SCALE[split])):
            made.append(_irrelevant(rng, next(both), mine))
    return tuple(numbered(split, made))


def _cycle(rng: random.Random, pool: list[Fact]):
    """The facts in random order, again and again, so that all are used about equally often."""
    while True:
        order = list(pool)
        rng.shuffle(order)
        yield from order


def _permuted(rng: random.Random, chosen: list[Fact]) -> list[tuple[Fact, str]]:
    """Give every fact the true object of another one of its relation, none its own.

    Sorted by object, a rotation by the size of the largest group moves every object to a fact with
    another one, provided that no group is larger than half.
    """
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in chosen:
        groups[fact.relation].append(fact)
    pairs = []
    for relation in sorted(groups):
        group = groups[relation]
        while True:
            sizes = Counter(f.object for f in group).most_common()
            if sizes and sizes[0][1] * 2 > len(group):
                group.remove(next(f for f in group if f.object == sizes[0][0]))
                continue
            break
        if not group:
            continue
        order = [o for o, _ in sizes]
        rng.shuffle(order)
        rng.shuffle(group)
        group.sort(key=lambda f: order.index(f.object))
        shift = sizes[0][1]
        said = [f.object for f in group[shift:] + group[:shift]]
        pairs += list(zip(group, said, strict=True))
    return pairs


def _case(rng: random.Random, fact: Fact, state: str, kind: str, said: str) -> Case:
    sentence = statement_of(rng, fact.relation, fact.subject, said, kind, held=True)
    layout = rng.choices(_LAYOUTS, _LAYOUT_WEIGHTS)[0]
    passages: tuple[str, ...] = (sentence,)
    if layout == "paragraph":
        place = RELATIONS[fact.relation].kind
        passages = (paragraph(rng, place, fact.subject, sentence, rng.randint(12, 15)),)
    elif layout == "passages":
        others = [f for f in facts() if f.split == fact.split and f.subject != fact.subject]
        chosen = rng.sample(others, rng.randint(1, 3))
        passages = among(rng, sentence, [_about(rng, f) for f in chosen])
    return _make(rng, fact, state, kind, passages, (said,), layout)


def _irrelevant(rng: random.Random, fact: Fact, pool: list[Fact]) -> Case:
    own = [f for f in pool if f.subject == fact.subject and f.relation != fact.relation]
    same = [f for f in pool if f.relation == fact.relation and f.subject != fact.subject]
    pick = rng.random()
    chosen = own if own and pick < 0.3 else same if same and pick < 0.7 else pool
    other = rng.choice(
        [f for f in chosen if (f.subject, f.relation) != (fact.subject, fact.relation)]
    )
    passages = (_about(rng, other),)
    return _make(rng, fact, "irrelevant", "irrelevant", passages, (), "sentence")


def _about(rng: random.Random, fact: Fact) -> str:
    """A passage about something else; it says what was taught, so that it starts no conflict."""
    kind = rng.choice(tuple(RIGHT))
    said = fact.taught_object or fact.object
    return statement_of(rng, fact.relation, fact.subject, said, kind)


def _make(
    rng: random.Random,
    fact: Fact,
    state: str,
    kind: str,
    passages: tuple[str, ...],
    said: tuple[str, ...],
    layout: str,
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
        # A fact may be known without having been taught: guessed from others.
        memory_answers=(fact.taught_object or fact.object,),
        context_answers=said,
        gold_answers=(fact.object,),
        state=state,
        source="atlas",
        meta={
            "layout": layout,
            "statement": fill(rng.choice(words.statements), fact.subject),
            "frequency": fact.frequency,
        },
    )


def selected(
    build: Callable[[str, tuple[Fact, ...]], Sequence[Case]],
    split: str,
    state: str | None,
    states: Sequence[str],
    screened: Sequence[Fact] | None,
) -> list[Case]:
    """The cases that `build` makes of a split, of one of `states` or of all.

    Raises:
        InvalidParameterError: an unknown split or state.
    """
    from conflictkit.errors import InvalidParameterError

    if split not in SPLITS:
        raise InvalidParameterError(f"unknown split {split!r}: valid are {', '.join(SPLITS)}")
    if state is not None and state not in states:
        raise InvalidParameterError(f"unknown state {state!r}: valid are {', '.join(states)}")
    made = build(split, tuple(facts() if screened is None else screened))
    return [case for case in made if state is None or case.state == state]


def numbered(split: str, made: list[Case]) -> list[Case]:
    """The cases with their ids: split, state and a number within it."""
    from dataclasses import replace

    count: Counter[str] = Counter()
    out = []
    for case in made:
        out.append(replace(case, id=f"{split}-{case.state}-{count[case.state]:04d}"))
        count[case.state] += 1
    return out
