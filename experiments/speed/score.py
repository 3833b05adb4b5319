"""What scoring a corpus costs beside the two forward passes that it cannot do without.

A random Llama scores rows of a file (context, question, answer), and in turn (A B A B ...) makes
nothing but two bare passes over the same tokens in the same batches, with the logits of the answer
alone. Where scoring stays below what is asked, the profiler says what takes the time.

Run: python experiments/speed/score.py [--shape 0.15B] [--pairs 5]
Writes results/score.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from store import OUT, machine, ratios, seconds, spread, write
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from worlds import SHAPES

import conflictkit as ck
from conflictkit.scoring import Row, Scorer, score_file

ASKED = 0.9
QUESTION, ANSWER = 20, 8


def tokenizer(vocab: int) -> Any:
    """A token for each of some words, and the few that prompts are made of."""
    specials = ["<s>", "</s>", "<pad>", "<unk>"]
    words = [*specials, "Question:", "Answer:", *(f"w{n}" for n in range(vocab - 6))]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", padding_side="left",
    )  # fmt: skip


def corpus(rows: int, context: int, vocab: int) -> list[Row]:
    """Rows of random words, all of one length."""
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(vocab - 6)}" for _ in range(count))

    return [Row(words(QUESTION), (words(context),), words(ANSWER)) for _ in range(rows)]


def texts(model: Any, rows: list[Row]) -> dict[str, torch.Tensor]:
    """Stream -> `[rows, length]` tokens that scoring reads."""
    ready = [Scorer(model).prepare(row) for row in rows]
    return {
        name: torch.tensor([[*one.prompts[name].ids, *(one.answer or ())[:-1]] for one in ready])
        for name in ("context", "memory")
    }


@torch.no_grad()
def bare(model: Any, read: dict[str, torch.Tensor], batch: int) -> None:
    """Two passes over the same tokens."""
    for parts in zip(*(ids.split(batch) for ids in read.values()), strict=True):
        for ids in parts:
            model(ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=ANSWER)


def main() -> None:
    """Measure, write, and say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", default="0.15B", choices=list(SHAPES))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=500, help="tokens")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    hf = shape.model("cpu")
    model = ck.load(hf, tokenizer=tokenizer(shape.vocab))
    rows = corpus(options.rows, options.context, shape.vocab)
    read = texts(model, rows)
    tokens = sum(ids.numel() for ids in read.values())
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        lines = [
            {"question": one.question, "context": one.contexts[0], "answer": one.answer}
            for one in rows
        ]
        source.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")

        def scored() -> None:
            out = Path(folder) / "scores.jsonl"
            score_file(model, source, out, batch_size=options.batch, overwrite=True)

        times: dict[str, list[float]] = {"scored": [], "bare": []}
        for number in range(options.pairs + 1):
            pair = seconds(scored), seconds(lambda: bare(hf, read, options.batch))
            if number:  # the first pair is slower
                for name, one in zip(times, pair, strict=True):
                    times[name].append(one)
            print(f"score: {number} of {options.pairs}: {pair[1] / pair[0]:.3f}", flush=True)
        share = ratios(times["bare"], times["scored"])
        figures: dict[str, Any] = {
            "shape": options.shape,
            "rows": options.rows,
            "batch": options.batch,
            "tokens": tokens,
            "tokens_per_second": spread([tokens / one for one in times["scored"]]),
            "tokens_per_second_bare": spread([tokens / one for one in times["bare"]]),
            "scored_over_bare": share,
            "seconds": times,
            "machine": machine(),
        }
        if share["median"] < ASKED:
            figures["profile"] = {
                "scored": profile(scored),
                "bare": profile(lambda: bare(hf, read, options.batch)),
            }
    write(options.out / "score.json", figures)
    print(f"tokens/s relative to two bare passes: {share['median']:.3f} (asked: {ASKED})")


def profile(call: Any) -> dict[str, float]:
    """Seconds that the ten most expensive operations take by themselves."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU]) as found:
        call()
    events = sorted(found.key_averages(), key=lambda one: -one.self_cpu_time_total)
    return {one.key: one.self_cpu_time_total / 1e6 for one in events[:10]}


if __name__ == "__main__":
    main()
