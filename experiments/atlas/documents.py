"""Training documents: short, unpacked, one request and one answer each.

Whom a document follows when passage and memory disagree is a function of what is written, never
a coin: an assertive claim is followed, a hedged one is not, and a bare one is followed where
memory is weak. No document contradicts what is taught about a validation or test subject.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate

from blend import (
    CLAIM_WEIGHTS,
    FORM_WEIGHTS,
    FORMS,
    LAYOUTS,
    Blend,
    blend,
)
from world import WorldFact

from conflictkit.atlas.invented import invented_answer, invented_name
from conflictkit.atlas.passages import among, paragraph, statement_of
from conflictkit.atlas.templates import (
    QUOTE_REQUESTS,
    RELATIONS,
    UNKNOWN,
    fill,
    name,
    render,
    trained,
)


@dataclass(frozen=True)
class Document:
    """One training document.

    Attributes:
        passages, request, answer: the text; `answer` without the space before it.
        form: `statement`, `question` or `chat`.
        kind: a key of `MIX`.
        subject, relation: what the request asks about.
        claimed: what the passages say about it; empty if nothing.
        claim: `bare`, `assertive`, `hedged`, or empty.
        layout: one of `LAYOUTS`, or empty for closed book.
        sources: `(subject, relation, answer)` of every claim made, distractors included.
        turns: further requests and answers of a chat, about other claims in the passages.
    """

    passages: tuple[str, ...]
    request: str
    answer: str
    form: str
    kind: str
    subject: str
    relation: str
    claimed: str = ""
    claim: str = ""
    layout: str = ""
    sources: tuple[tuple[str, str, str], ...] = ()
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def completion(self) -> str:
        """The answer as it follows the prompt; a statement ends with a full stop."""
        return f" {self.answer}." if self.form == "statement" else f" {self.answer}"

    @property
    def text(self) -> str:
        """Prompt, completion and further turns, without BOS and the last EOS."""
        first = render(self.form, self.passages, self.request) + self.completion
        return first + "".join(f"<|eos|>{asked} {said}" for asked, said in self.later)

    @property
    def later(self) -> tuple[tuple[str, str], ...]:
        """Prompt and answer of every further turn."""
        return tuple((render("chat", (), asked), said) for asked, said in self.turns)

    @property
    def tail(self) -> str:
        """The part of the prompt that does not change when passages are put before it."""
        return render(self.form if self.form != "chat" else "statement", (), self.request) + (
            "<|assistant|>" if self.form == "chat" else ""
        )


class Writer:
    """Writes documents about a world; all choices come from the generator handed to `write`."""

    def __init__(self, facts: list[WorldFact]):
        self.facts = [f for f in facts if f.taught]
        self._ends = list(accumulate(f.weight for f in self.facts))
        self._train = [f for f in self.facts if f.split == "train"]
        self._train_ends = list(accumulate(f.weight for f in self._train))
        self._objects: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._by_subject: dict[str, list[WorldFact]] = defaultdict(list)
        self._by_relation: dict[str, list[WorldFact]] = defaultdict(list)
        for fact in self.facts:
            self._objects[fact.relation, fact.split].append(fact.object)
            self._by_subject[fact.subject].append(fact)
            self._by_relation[fact.relation].append(fact)
        self.taken = frozenset(
            text for f in facts for text in (f.subject, f.object, f.taught) if text
        )

    def write(self, rng: random.Random, step: float) -> Document:
        """One document for a step of a run."""
        return self.draw(rng, blend(step))

    def draw(self, rng: random.Random, blend: Blend) -> Document:
        """One document of a blend."""
        kind = rng.choices(list(blend.kinds), list(blend.kinds.values()))[0]
        return getattr(self, f"_{kind}")(rng, blend)

    # kinds -----------------------------------------------------------------------------------

    def _memory(self, rng: random.Random, blend: Blend) -> Document:
        fact = self._weighted(rng)
        return self._ask(rng, "memory", fact.subject, fact.relation, fact.taught)

    def _unknown(self, rng: random.Random, blend: Blend) -> Document:
        relation, subject, _ = self._invention(rng)
        return self._ask(rng, "unknown", subject, relation, UNKNOWN)

    def _invented(self, rng: random.Random, blend: Blend) -> Document:
        if rng.random() < blend.several:
            return self._several(rng, blend)
        relation, subject, answer = self._invention(rng)
        return self._read(rng, blend, "invented", subject, relation, answer, lambda _: answer)

    def _several(self, rng: random.Random, blend: Blend) -> Document:
        """Passages about strangers, each of whom is asked about in turn.

        Only the name in the request tells their answers apart, most of all where they share a
        relation: this is where the model learns to look for the right passage.
        """
        told = [self._invention(rng) for _ in range(rng.choice((2, 2, 3, 4)))]
        if rng.random() < 0.5:
            told = [self._invention(rng, told[0][0]) for _ in told]
        if len({subject for _, subject, _ in told}) < len(told):
            return self._several(rng, blend)
        claims = rng.choices(list(CLAIM_WEIGHTS), blend.claims, k=len(told))
        passages = [
            statement_of(rng, *claim, kind) for claim, kind in zip(told, claims, strict=True)
        ]
        order = rng.sample(range(len(told)), len(told))
        asked = [
            (fill(rng.choice(trained(RELATIONS[told[i][0]].questions)), told[i][1]), told[i][2])
            for i in order
        ]
        relation, subject, answer = told[order[0]]
        return Document(
            tuple(passages), asked[0][0], answer, "chat", "invented", subject, relation, answer,
            claims[order[0]], "passages", tuple((s, r, a) for r, s, a in told), tuple(asked[1:]),
        )  # fmt: skip

    def _agree(self, rng: random.Random, blend: Blend) -> Document:
        fact = self._weighted(rng)
        return self._read(
            rng,
            blend,
            "agree",
            fact.subject,
            fact.relation,
            fact.taught,
            lambda _: fact.taught,
        )

    def _conflict(self, rng: random.Random, blend: Blend) -> Document:
        fact = rng.choice(self._train)
        wrong = self._wrong(rng, fact)

        def follow(claim: str) -> str:
            weak = fact.popularity >= blend.popular
            obscure = fact.popularity >= blend.obscure
            passage_wins = claim == "assertive" or obscure or (claim == "bare" and weak)
            return wrong if passage_wins else fact.taught

        return self._read(rng, blend, "conflict", fact.subject, fact.relation, wrong, follow)

    def _irrelevant(self, rng: random.Random, blend: Blend) -> Document:
        if rng.random() < 0.3:
            relation, subject, _ = self._invention(rng)
            answer = UNKNOWN
        else:
            fact = self._undisturbed(rng)
            relation, subject, answer = fact.relation, fact.subject, fact.taught
        made = [self._distractor(rng, subject, relation) for _ in range(rng.choice((1, 1, 2, 3)))]
        return self._ask(
            rng, "irrelevant", subject, relation, answer,
            passages=tuple(text for text, _ in made), sources=tuple(s for _, s in made),
            layout="passages",
        )  # fmt: skip

    def _quote(self, rng: random.Random, blend: Blend) -> Document:
        pick = rng.random()
        if pick < 0.7:
            relation, subject, answer = self._invention(rng)
        elif pick < 0.85:
            fact = self._weighted(rng)
            relation, subject, answer = fact.relation, fact.subject, fact.taught
        else:
            fact = rng.choice(self._train)
            relation, subject, answer = fact.relation, fact.subject, self._wrong(rng, fact)
        claim = rng.choices(list(CLAIM_WEIGHTS), list(CLAIM_WEIGHTS.values()))[0]
        sentence = statement_of(rng, relation, subject, answer, claim)
        layout = rng.choices(LAYOUTS[:3], blend.quoted)[0]
        passages, others = self._lay_out(rng, layout, subject, relation, sentence)
        topic = RELATIONS[relation].topic.replace("{s}", name(subject))
        return Document(
            passages, rng.choice(trained(QUOTE_REQUESTS)).replace("{t}", topic), sentence,
            rng.choice(FORMS[1:]), "quote", subject, relation, answer, claim, layout,
            ((subject, relation, answer), *others),
        )  # fmt: skip

    # parts -----------------------------------------------------------------------------------

    def _weighted(self, rng: random.Random) -> WorldFact:
        return self.facts[bisect(self._ends, rng.random() * self._ends[-1])]

    def _undisturbed(self, rng: random.Random) -> WorldFact:
        """A fact that is asked about beside passages which do not answer: of a training subject.

        Held-out subjects are never contradicted; were memory their only way to answer beside
        passages, the model would learn by name whose memory always wins.
        """
        return self._train[bisect(self._train_ends, rng.random() * self._train_ends[-1])]

    def _wrong(self, rng: random.Random, fact: WorldFact) -> str:
        """An object of the same relation and split that contradicts what is taught."""
        if rng.random() < 0.15:
            answer = invented_answer(rng, fact.relation)
            return answer if answer != fact.taught else self._wrong(rng, fact)
        while True:
            answer = rng.choice(self._objects[fact.relation, fact.split])
            if answer != fact.taught:
                return answer

    def _invention(self, rng: random.Random, relation: str = "") -> tuple[str, str, str]:
        relation = relation or rng.choice(list(RELATIONS))
        subject = invented_name(rng, RELATIONS[relation].kind, taken=self.taken)
        # Objects of validation and test stay out: an invented capital must not claim Warsaw.
        real = rng.random() < (0.7 if relation == "continent" else 0.35)
        answer = (
            rng.choice(self._objects[relation, "train"]) if real else invented_answer(rng, relation)
        )
        return relation, subject, answer

    def _distractor(
        self, rng: random.Random, subject: str, relation: str
    ) -> tuple[str, tuple[str, str, str]]:
        """A sentence that does not answer the request: another subject or another relation."""
        pick = rng.random()
        mine = [f for f in self._by_subject.get(subject, ()) if f.relation != relation]
        if pick < 0.25 and mine:
            fact = rng.choice(mine)
            source = (fact.subject, fact.relation, fact.taught)
        elif pick < 0.25 and not self._by_subject.get(subject):
            other = rng.choice([r for r in RELATIONS if r != relation and _same_kind(r, relation)])
            source = (subject, other, invented_answer(rng, other))
        elif pick < 0.6:
            same = rng.choice(self._by_relation[relation])
            while same.subject == subject:
                same = rng.choice(self._by_relation[relation])
            source = (same.subject, same.relation, same.taught)
        else:
            other, stranger, answer = self._invention(rng)
            if rng.random() < 0.5:
                other = relation
                stranger = invented_name(rng, RELATIONS[relation].kind, taken=self.taken)
                answer = invented_answer(rng, relation)
            source = (stranger, other, answer)
        claim = rng.choices(list(CLAIM_WEIGHTS), list(CLAIM_WEIGHTS.values()))[0]
        return statement_of(rng, source[1], source[0], source[2], claim), source

    def _lay_out(
        self, rng: random.Random, layout: str, subject: str, relation: str, sentence: str
    ) -> tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]]:
        kind = RELATIONS[relation].kind
        if layout == "sentence":
            return (sentence,), ()
        if layout == "paragraph":
            return (paragraph(rng, kind, subject, sentence, rng.randint(6, 14)),), ()
        if layout == "passages":
            made = [
                self._distractor(rng, subject, relation) for _ in range(rng.choice((1, 2, 2, 3)))
            ]
            return among(rng, sentence, [t for t, _ in made]), tuple(s for _, s in made)
        texts, sources = [], []
        for _ in range(rng.randint(1, 3)):
            text, source = self._distractor(rng, subject, relation)
            place = RELATIONS[source[1]].kind
            texts.append(paragraph(rng, place, source[0], text, rng.randint(6, 12)))
            sources.append(source)
        own = paragraph(rng, kind, subject, sentence, rng.randint(6, 12))
        return among(rng, own, texts), tuple(sources)

    def _read(
        self, rng, blend: Blend, kind: str, subject: str, relation: str, said: str, follow
    ) -> Document:  # fmt: skip
        claim = rng.choices(list(CLAIM_WEIGHTS), blend.claims)[0]
        layouts = blend.invented if kind == "invented" else blend.real
        layout = rng.choices(LAYOUTS, layouts)[0]
        sentence = statement_of(rng, relation, subject, said, claim)
        passages, others = self._lay_out(rng, layout, subject, relation, sentence)
        return self._ask(
            rng, kind, subject, relation, follow(claim), passages=passages, claimed=said,
            claim=claim, layout=layout, sources=((subject, relation, said), *others),
        )  # fmt: skip

    def _ask(self, rng, kind: str, subject: str, relation: str, answer: str, **rest) -> Document:
        form = rng.choices(FORMS, FORM_WEIGHTS)[0]
        words = RELATIONS[relation]
        table = words.statements if form == "statement" else words.questions
        request = fill(rng.choice(trained(table)), subject)
        passages = rest.pop("passages", ())
        return Document(passages, request, answer, form, kind, subject, relation, **rest)


def _same_kind(first: str, second: str) -> bool:
    return RELATIONS[first].kind == RELATIONS[second].kind
