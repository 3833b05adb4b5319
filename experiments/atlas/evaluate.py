"""The reach figures: what Atlas remembers, what it reads, and whom it follows."""

from __future__ import annotations

import random

import torch
from blend import FORMS
from documents import Writer

from conflictkit.atlas.invented import invented_answer, invented_name
from conflictkit.atlas.passages import among, statement_of
from conflictkit.atlas.templates import RELATIONS, fill, render, trained


@torch.no_grad()
def answered(
    model, tokenizer, prompts: list[str], answers: list[str], forms: list[str]
) -> list[bool]:
    """Whether greedy decoding gives exactly each answer and then ends.

    One pass over prompt and answer: greedy decoding writes an answer exactly if every token of it
    is the most probable one after those before it.
    """
    done = []
    for start in range(0, len(prompts), 48):
        rows = []
        for p, a, f in zip(
            *(x[start : start + 48] for x in (prompts, answers, forms)), strict=True
        ):
            head = tokenizer(p).input_ids
            text = f" {a}." if f == "statement" else f" {a}"
            tail = tokenizer(text, add_special_tokens=False).input_ids
            rows.append((head + tail + [tokenizer.eos_token_id], len(head)))
        length = max(len(ids) for ids, _ in rows)
        batch = torch.full((len(rows), length), tokenizer.pad_token_id)
        for i, (ids, _) in enumerate(rows):
            batch[i, : len(ids)] = torch.tensor(ids)
        best = model(input_ids=batch.to(model.device), use_cache=False).logits.argmax(-1).cpu()
        for i, (ids, head) in enumerate(rows):
            done.append(best[i, head - 1 : len(ids) - 1].tolist() == ids[head:])
    return done


def ask(
    form: str, relation: str, subject: str, rng: random.Random, passages=(), table=trained
) -> str:
    """A prompt in a wording drawn at random."""
    words = RELATIONS[relation]
    wording = words.statements if form == "statement" else words.questions
    return render(form, passages, fill(rng.choice(table(wording)), subject))


def mean(values) -> float:
    """Mean, 0 for nothing, rounded for reading."""
    values = list(values)
    return round(sum(values) / len(values), 3) if values else 0.0


def _bare(rng: random.Random, relation: str, subject: str, answer: str) -> str:
    return statement_of(rng, relation, subject, answer, "bare")


def probe(model, tokenizer, writer: Writer, count: int = 150) -> dict[str, float]:
    """A quick look at a training run, on validation subjects."""
    model.eval()
    rng = random.Random(1)
    facts = [f for f in writer.facts if f.split == "validation"]
    strong = rng.sample([f for f in facts if f.strong], min(count, 200))
    rare = [f for f in facts if f.popularity > 0.9]
    out = {}
    for label, group in (("frequent", strong), ("rare", rare)):
        prompts = [ask("question", f.relation, f.subject, rng) for f in group]
        forms = ["question"] * len(group)
        ok = answered(model, tokenizer, prompts, [f.taught for f in group], forms)
        out[label] = mean(ok)
    triples = []
    for _ in range(count):
        relation = rng.choice(list(RELATIONS))
        subject = invented_name(rng, RELATIONS[relation].kind, held=True, taken=writer.taken)
        triples.append((relation, subject, invented_answer(rng, relation)))
    forms = [rng.choice(FORMS) for _ in triples]
    prompts = [
        ask(f, r, s, rng, (_bare(rng, r, s, a),))
        for f, (r, s, a) in zip(forms, triples, strict=True)
    ]
    out["reading"] = mean(answered(model, tokenizer, prompts, [a for *_, a in triples], forms))
    prompts = []
    for form, (r, s, a) in zip(forms, triples, strict=True):
        others = [_bare(rng, *rng.choice(triples)) for _ in range(2)]
        prompts.append(ask(form, r, s, rng, among(rng, _bare(rng, r, s, a), others)))
    out["passages"] = mean(answered(model, tokenizer, prompts, [a for *_, a in triples], forms))
    some = rng.sample(facts, count)
    for claim in ("bare", "assertive", "hedged"):
        wrongs = [writer._wrong(rng, f) for f in some]
        prompts = [
            ask("chat", f.relation, f.subject, rng,
                (statement_of(rng, f.relation, f.subject, w, claim),))
            for f, w in zip(some, wrongs, strict=True)
        ]  # fmt: skip
        forms = ["chat"] * len(some)
        out[f"{claim}_context"] = mean(answered(model, tokenizer, prompts, wrongs, forms))
        out[f"{claim}_memory"] = mean(
            answered(model, tokenizer, prompts, [f.taught for f in some], forms)
        )
    model.train()
    return out
