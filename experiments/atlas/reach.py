"""The reach figures of a finished model, measured on subjects whose conflicts it never saw.

Used by the export at the end of a run and by the slow tests on the shipped model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from evaluate import answered, ask

from conflictkit.atlas.invented import invented_answer, invented_name
from conflictkit.atlas.passages import among, paragraph, statement_of
from conflictkit.atlas.templates import (
    QUOTE_REQUESTS,
    RELATIONS,
    UNKNOWN,
    held_out,
    name,
    render,
    trained,
)

FORMS = ("statement", "question", "chat")
CLAIMS = ("bare", "assertive", "hedged")


@dataclass(frozen=True)
class Known:
    """What the figures need of a fact: `strength` is its rank, 0 most frequent to 1."""

    subject: str
    relation: str
    object: str
    taught: str
    strength: float
    known: bool


def share(hits: Sequence[bool]) -> dict:
    """A share with its count and 95 % Wilson interval."""
    n, k = len(hits), sum(hits)
    if n == 0:
        return {"value": None, "n": 0}
    z, p = 1.96, k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "value": round(p, 4),
        "n": n,
        "low": round(max(0.0, middle - half), 4),
        "high": round(min(1.0, middle + half), 4),
    }


class Reach:
    """Measures one model; `facts` are the taught facts of one split."""

    def __init__(self, model, tokenizer, facts: Sequence[Known], seed: int = 3):
        self.model, self.tokenizer, self.facts = model.eval(), tokenizer, list(facts)
        self.seed = seed
        self.taken = frozenset(t for f in facts for t in (f.subject, f.object, f.taught))

    def _hits(self, prompts, answers, forms) -> list[bool]:
        return answered(self.model, self.tokenizer, prompts, answers, forms)

    def recall(self) -> dict:
        """Closed-book recall of what was taught, by frequency, form and wording."""
        rng = random.Random(self.seed)
        out = {}
        groups = {
            "question_frequent_half": [f for f in self.facts if f.strength < 0.5],
            "question_rarest_tenth": [f for f in self.facts if f.strength >= 0.9],
            "question_all": self.facts,
        }
        for label, group in groups.items():
            asked = [f for f in group for _ in range(3)]
            prompts = [ask("question", f.relation, f.subject, rng) for f in asked]
            forms = ["question"] * len(asked)
            out[label] = share(self._hits(prompts, [f.taught for f in asked], forms))
        for form in FORMS:
            for label, table in (("trained", trained), ("held_out", held_out)):
                asked = [f for f in self.facts for _ in range(2)]
                prompts = [ask(form, f.relation, f.subject, rng, table=table) for f in asked]
                hits = self._hits(prompts, [f.taught for f in asked], [form] * len(asked))
                out[f"{form}_{label}_wordings"] = share(hits)
        return out

    def _invented(self, rng: random.Random) -> tuple[str, str, str]:
        relation = rng.choice(list(RELATIONS))
        subject = invented_name(rng, RELATIONS[relation].kind, held=True, taken=self.taken)
        return relation, subject, invented_answer(rng, relation)

    def reading(self, count: int = 300) -> dict:
        """Reading about invented subjects whose names no training document used."""
        rng = random.Random(self.seed + 1)
        out, everything = {}, []
        for layout in (*CLAIMS, "paragraph", "passages"):
            prompts, answers, forms = [], [], []
            for i in range(count):
                relation, subject, answer = self._invented(rng)
                claim = layout if layout in CLAIMS else rng.choice(CLAIMS)
                text = statement_of(rng, relation, subject, answer, claim)
                passages: tuple[str, ...] = (text,)
                if layout == "paragraph":
                    kind = RELATIONS[relation].kind
                    passages = (paragraph(rng, kind, subject, text, 12),)
                elif layout == "passages":
                    strangers = [self._invented(rng) for _ in range(2)]
                    others = [statement_of(rng, r, s, a, "bare") for r, s, a in strangers]
                    passages = among(rng, text, others)
                forms.append(FORMS[i % 3])
                prompts.append(ask(forms[-1], relation, subject, rng, passages))
                answers.append(answer)
            hits = self._hits(prompts, answers, forms)
            everything += hits
            out[layout] = share(hits)
        return {"all": share(everything), **out}

    def manners(self, count: int = 300) -> dict:
        """Quoting, saying unknown, and ignoring passages about something else."""
        rng = random.Random(self.seed + 2)
        quotes, texts = [], []
        while len(quotes) < count:
            relation, subject, answer = self._invented(rng)
            text = statement_of(rng, relation, subject, answer, rng.choice(CLAIMS))
            if len(self.tokenizer(text, add_special_tokens=False).input_ids) < 20:
                continue
            topic = RELATIONS[relation].topic.replace("{s}", name(subject))
            request = rng.choice(trained(QUOTE_REQUESTS)).replace("{t}", topic)
            quotes.append(render("chat", (text,), request))
            texts.append(text)
        strange = [self._invented(rng)[:2] for _ in range(count)]
        forms = [FORMS[i % 3] for i in range(count)]
        closed = [ask(f, r, s, rng) for f, (r, s) in zip(forms, strange, strict=True)]
        strong = [f for f in self.facts if f.strength < 0.5]
        asked = [rng.choice(strong) for _ in range(count)]
        beside = []
        for form, fact in zip(forms, asked, strict=True):
            other = rng.choice([f for f in self.facts if f.subject != fact.subject])
            claim = rng.choice(CLAIMS)
            text = statement_of(rng, other.relation, other.subject, other.taught, claim)
            beside.append(ask(form, fact.relation, fact.subject, rng, (text,)))
        return {
            "quote": share(self._hits(quotes, texts, ["chat"] * count)),
            "unknown": share(self._hits(closed, [UNKNOWN] * count, forms)),
            "irrelevant": share(self._hits(beside, [f.taught for f in asked], forms)),
        }

    def conflict(self, count: int = 600) -> dict:
        """Whom plain greedy decoding follows when one sentence contradicts what was taught."""
        rng = random.Random(self.seed + 3)
        asked = rng.sample(self.facts, min(count, len(self.facts)))
        objects = {r: [f.object for f in self.facts if f.relation == r] for r in RELATIONS}
        out: dict = {}
        for claim in CLAIMS:
            wrong = [rng.choice([o for o in objects[f.relation] if o != f.taught]) for f in asked]
            forms = [FORMS[i % 3] for i in range(len(asked))]
            prompts = [
                ask(form, f.relation, f.subject, rng,
                    (statement_of(rng, f.relation, f.subject, w, claim),))
                for form, f, w in zip(forms, asked, wrong, strict=True)
            ]  # fmt: skip
            context = self._hits(prompts, wrong, forms)
            memory = self._hits(prompts, [f.taught for f in asked], forms)
            out[claim] = {"context": share(context), "memory": share(memory)}
            for form in FORMS:
                part = [h for h, f in zip(context, forms, strict=True) if f == form]
                out[claim][f"context_{form}"] = share(part)
            for label, strong in (("strong_memory", True), ("weak_memory", False)):
                part = [
                    h for h, f in zip(context, asked, strict=True) if (f.strength < 0.5) == strong
                ]
                out[claim][f"context_{label}"] = share(part)
        return out

    def divergence(self, count: int = 200) -> dict:
        """AUROC of the JSD between the streams, conflict against agreement, known facts only.

        The score of a prompt is its maximum over the tokens of the plain greedy answer.
        """
        rng = random.Random(self.seed + 4)
        known = [f for f in self.facts if f.known]
        if len({f.object for f in known}) < 2:
            return {"all": None, "n": 0}  # an untrained model knows nothing
        objects = {r: [f.object for f in known if f.relation == r] for r in RELATIONS}
        scores: dict[str, dict[bool, list[float]]] = {}
        for claim in CLAIMS:
            scores[claim] = {True: [], False: []}
            for differs in (True, False):
                asked = [rng.choice(known) for _ in range(count)]
                open_book, closed = [], []
                for i, fact in enumerate(asked):
                    others = [o for o in objects[fact.relation] if o != fact.taught] or [UNKNOWN]
                    said = rng.choice(others) if differs else fact.taught
                    text = statement_of(rng, fact.relation, fact.subject, said, claim)
                    draw = rng.getrandbits(32)
                    form = FORMS[1 + i % 2]
                    open_book.append(
                        ask(form, fact.relation, fact.subject, random.Random(draw), (text,))
                    )
                    closed.append(ask(form, fact.relation, fact.subject, random.Random(draw)))
                scores[claim][differs] = max_jsd(self.model, self.tokenizer, open_book, closed)
        out = {c: auroc(scores[c][True], scores[c][False]) for c in CLAIMS}
        pooled = {d: [s for c in CLAIMS for s in scores[c][d]] for d in (True, False)}
        return {"all": auroc(pooled[True], pooled[False]), **out, "n": 2 * count * len(CLAIMS)}

    def all(self) -> dict:
        """Every figure."""
        return {
            "recall": self.recall(),
            "reading": self.reading(),
            "manners": self.manners(),
            "conflict": self.conflict(),
            "divergence": self.divergence(),
        }


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive score is above a negative one, ties counted half."""
    from sklearn.metrics import roc_auc_score

    labels = [1] * len(positive) + [0] * len(negative)
    return round(float(roc_auc_score(labels, [*positive, *negative])), 4)


@torch.no_grad()
def max_jsd(model, tokenizer, open_book: Sequence[str], closed: Sequence[str]) -> list[float]:
    """Largest Jensen-Shannon divergence (nats) over the tokens of the plain greedy answers."""
    out = []
    for start in range(0, len(open_book), 40):
        prompts = list(open_book[start : start + 40])
        batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
        width = batch.input_ids.shape[1]
        answers = model.generate(**batch, max_new_tokens=16, do_sample=False)[:, width:].cpu()
        for prompt, bare, answer in zip(prompts, closed[start:], answers, strict=False):
            ids = answer.tolist()
            stop = tokenizer.eos_token_id
            end = ids.index(stop) + 1 if stop in ids else len(ids)
            rows = []
            for text in (prompt, bare):
                head = tokenizer(text).input_ids
                full = torch.tensor([head + ids[:end]], device=model.device)
                logits = model(input_ids=full, use_cache=False).logits[0, len(head) - 1 : -1]
                rows.append(logits.float().log_softmax(-1).cpu())
            p, q = rows
            m = torch.logaddexp(p, q) - math.log(2)
            jsd = 0.5 * ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1))
            out.append(float(jsd.max()))
    return out
