"""Answers that copy: what drafts save where Atlas quotes a sentence, against one plain stream.

Atlas is asked to quote the sentence about an invented subject whose name no training document has.
Counted are questions that AdaCAD, without drafts, answers with words of the passages, at least 20
tokens of them. Each is then answered in turn (A B C ..., A B C ...), prefills included, by
    generate: transformers, greedily, the context stream alone
    lookup:   the same with prompt lookup
    plain:    conflictkit, the context stream alone
    adacad:   conflictkit, both streams, no drafts
    drafted:  the same with drafts='auto'

Run: python experiments/speed/copying.py [--questions 60] [--rounds 3]
Writes results/copying.json beside this file.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import LOOKUP
from store import OUT, machine, ratios, spread, write
from worlds import watched

import conflictkit as ck
from conflictkit import engine, methods
from conflictkit.atlas.invented import invented_answer, invented_name
from conflictkit.atlas.passages import among, paragraph, statement_of
from conflictkit.atlas.templates import QUOTE_REQUESTS, RELATIONS, name, trained
from conflictkit.controller import Controller
from conflictkit.plan import open_streams
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper

SHORTEST = 20
ROOM = 64
SEED = 20


@dataclass(frozen=True)
class Said:
    """What one way made of a question."""

    ids: tuple[int, ...]
    tokens: int
    passes: int
    seconds: float
    accepted: int = 0


def questions(rng: random.Random) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Requests to quote, with their passages."""
    while True:
        relation = rng.choice(list(RELATIONS))
        kind = RELATIONS[relation].kind
        subject = invented_name(rng, kind, held=True)
        sentence = _claim(rng, relation, subject)
        layout = rng.choice(("sentence", "paragraph", "passages"))
        passages: tuple[str, ...] = (sentence,)
        if layout == "paragraph":
            passages = (paragraph(rng, kind, subject, sentence, rng.randint(6, 14)),)
        elif layout == "passages":
            others = [rng.choice(list(RELATIONS)) for _ in range(rng.choice((1, 2, 3)))]
            told = [
                _claim(rng, one, invented_name(rng, RELATIONS[one].kind, held=True))
                for one in others
            ]
            passages = among(rng, sentence, told)
        topic = RELATIONS[relation].topic.replace("{s}", name(subject))
        yield rng.choice(trained(QUOTE_REQUESTS)).replace("{t}", topic), passages


def _claim(rng: random.Random, relation: str, subject: str) -> str:
    kind = rng.choice(("bare", "assertive", "hedged"))
    return statement_of(rng, relation, subject, invented_answer(rng, relation), kind)


def ours(model: Any, prompts: Mapping[str, Any], method: str, drafts: int | None = 0) -> Said:
    """conflictkit, from token ids to token ids."""
    control = Controller(methods.build(method))
    ids = {stream: [list(prompt.ids)] for stream, prompt in prompts.items()}
    ends = (model.tokenizer.eos_token_id,)
    with watched(model.model, "cpu") as watch:
        began = time.perf_counter()
        streams = open_streams(model.model, control, ids, pad_id=model.tokenizer.pad_token_id)
        run = Stepper(
            streams, control, Decoding(max_new_tokens=ROOM), end_ids=ends, decode=str, top=None,
            drafts=drafts,
        )  # fmt: skip
        ((made,),) = engine.generate(run)
        taken = time.perf_counter() - began
    tokens = len(made.ids) + (made.finish_reason == "eos")
    passes = watch.passes - len(streams)
    return Said(made.ids, tokens, passes, taken, made.stats.accepted)


def theirs(model: Any, prompts: Mapping[str, Any], **options: Any) -> Said:
    """transformers, from token ids to token ids."""
    ids = torch.tensor([prompts["context"].ids])
    with watched(model.model, "cpu") as watch:
        began = time.perf_counter()
        made = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=ROOM,
            **options,
        )  # fmt: skip
        taken = time.perf_counter() - began
    said = made[0, ids.shape[1] :].tolist()
    ended = bool(said) and said[-1] == model.tokenizer.eos_token_id
    return Said(tuple(said[:-1] if ended else said), len(said), watch.passes - 1, taken)


Asked = Mapping[str, Any]
WAYS: dict[str, Callable[[Any, Asked], Said]] = {
    "generate": theirs,
    "lookup": lambda model, asked: theirs(model, asked, prompt_lookup_num_tokens=LOOKUP),
    "plain": lambda model, asked: ours(model, {"context": asked["context"]}, "plain"),
    "adacad": lambda model, asked: ours(model, asked, "adacad"),
    "drafted": lambda model, asked: ours(model, asked, "adacad", None),
}


def chosen(model: Any, count: int) -> tuple[list[Asked], int]:
    """Prompts of the questions that are answered by copying, and how many were asked."""
    found: list[Asked] = []
    for asked, (question, passages) in enumerate(questions(random.Random(SEED)), 1):
        prompts = model.prompts(question, passages)
        said = WAYS["adacad"](model, prompts).ids
        text = model.tokenizer.decode(said, skip_special_tokens=True).strip()
        if len(said) >= SHORTEST and any(text in passage for passage in passages):
            found.append(prompts)
        if len(found) == count:
            return found, asked
        if asked > 20 * count:
            raise RuntimeError(f"only {len(found)} of {asked} questions are answered by copying")
    raise AssertionError("questions never end")


def main() -> None:
    """Measure, write, and say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3, help="counted turns of each question")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    model = ck.load("atlas")
    found, asked = chosen(model, options.questions)
    print(f"copying: {len(found)} of {asked} questions are answered by copying", flush=True)
    runs: dict[str, list[list[Said]]] = {way: [] for way in WAYS}
    for number, prompts in enumerate(found):
        turns = {way: [] for way in WAYS}
        for turn in range(options.rounds + 1):
            order = list(WAYS)[turn % len(WAYS) :] + list(WAYS)[: turn % len(WAYS)]
            for way in order:
                turns[way].append(WAYS[way](model, prompts))
        for way in WAYS:
            runs[way].append(turns[way][1:])  # the first turn is slower
        if number % 10 == 9:
            print(f"copying: {number + 1} of {len(found)}", flush=True)
    figures = _figures(runs)
    settings = {"questions": options.questions, "rounds": options.rounds, "seed": SEED}
    write(
        options.out / "copying.json",
        {**figures, "asked": asked, "shortest": SHORTEST, **settings, "machine": machine()},
    )
    for key in ("passes_per_token", "same_as_undrafted"):
        print(f"{key}: {figures[key]}")
    print(f"drafted over generate, same answers: {figures['drafted_over_generate_same']}")


def _figures(runs: dict[str, list[list[Said]]]) -> dict[str, Any]:
    """What the runs say: a question's ratio is the median of its rounds."""
    firsts = {way: [turns[0] for turns in every] for way, every in runs.items()}
    same = [a.ids == b.ids for a, b in zip(firsts["drafted"], firsts["generate"], strict=True)]

    def over(way: str, other: str, among: list[bool]) -> dict[str, Any] | None:
        each = [
            ratios([one.seconds for one in mine], [one.seconds for one in base])["median"]
            for mine, base, counts in zip(runs[way], runs[other], among, strict=True)
            if counts
        ]
        return spread(each) if each else None

    every = [True] * len(same)
    return {
        "counted": len(same),
        "answer_tokens": spread([one.tokens for one in firsts["drafted"]]),
        "passes_per_token": {
            way: sum(one.passes for one in said) / sum(one.tokens for one in said)
            for way, said in firsts.items()
        },
        "accepted_per_pass": sum(one.accepted for one in firsts["drafted"])
        / sum(one.passes for one in firsts["drafted"]),
        "same_as_undrafted": sum(
            all(one.ids == turns[0].ids for one in mine)
            for mine, turns in zip(runs["drafted"], runs["adacad"], strict=True)
        ),
        "same_as_generate": sum(same),
        "drafted_over_generate_same": over("drafted", "generate", same),
        "over_generate": {way: over(way, "generate", every) for way in runs},
        "drafted_over_plain": over("drafted", "plain", every),
        "drafted_over_adacad": over("drafted", "adacad", every),
        "seconds": {
            way: spread([one.seconds for turns in said for one in turns])
            for way, said in runs.items()
        },
    }


if __name__ == "__main__":
    main()
