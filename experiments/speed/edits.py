"""What editing heads adds to a decode step, against the same model without a hook.

A random Llama of 0.3 B parameters reads a prompt; then single tokens follow, each once plainly and
once with the edit attached (A B A B ...), from caches that stand at the same position:
    one head:   `HeadScale` on one head
    ten heads:  on ten heads in ten layers
    every head: on all of them
    inert:      hooks in place, no edit acting (another thread's edits)

Run: python experiments/speed/edits.py [--steps 40]
Writes results/edits.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import track
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import conflictkit as ck
from conflictkit.interventions.activations import Edits

PROMPT = 512
OUT = Path(__file__).parent / "results"


def model() -> Any:
    """0.3 B parameters, random, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=20,
        num_attention_heads=16, num_key_value_heads=4, max_position_embeddings=4096,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def seconds(hf: Any, cache: Any, edit: Any) -> float:
    """Of one decode step; the cache is cut back to where it was."""
    token = torch.tensor([[7]])
    with edit.attach(hf) if edit is not None else nullcontext():
        start = time.perf_counter()
        hf(token, past_key_values=cache, use_cache=True)
        taken = time.perf_counter() - start
    cache.crop(-1)
    return taken


@torch.no_grad()
def main() -> None:
    """Measure, write, and say the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="counted pairs of each edit")
    steps = parser.parse_args().steps
    hf = model()
    heads = ck.anatomy.find(hf).names()
    scale = ck.interventions.HeadScale
    edits = {
        "one head": scale({heads[0]: 0.5}),
        "ten heads": scale(dict.fromkeys(heads[:: len(heads) // 10][:10], 0.5)),
        "every head": scale(dict.fromkeys(heads, 0.5)),
        "inert": None,
    }
    cache = DynamicCache()
    hf(torch.randint(0, 32000, (1, PROMPT)), past_key_values=cache, use_cache=True)
    ratios: dict[str, list[float]] = {}
    for name, edit in edits.items():
        for _ in range(3):
            seconds(hf, cache, edit)
        pairs = []
        for _ in track(range(steps), description=name):
            kept = Edits(hf, [edits["every head"]]) if edit is None else None
            edited = seconds(hf, cache, edit)
            del kept
            plain = seconds(hf, cache, None)
            pairs.append(edited / plain)
        ratios[name] = pairs
    figures = {
        "parameters": sum(one.numel() for one in hf.parameters()),
        "prompt": PROMPT,
        "steps": steps,
        "edited_over_plain_median": {n: statistics.median(r) for n, r in ratios.items()},
        "quartiles": {n: statistics.quantiles(r, n=4) for n, r in ratios.items()},
        "ratios": ratios,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "conflictkit": ck.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "edits.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures["edited_over_plain_median"].items():
        print(f"{name}: {value:.3f} of a plain step")


if __name__ == "__main__":
    main()
