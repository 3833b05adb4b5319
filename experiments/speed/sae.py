"""An edit through some features of a large autoencoder: their rows alone, against all of it.

A random JumpReLU autoencoder of 131,072 features and width 2,304 (Gemma Scope's size at Gemma 2 2B)
edits one position, the rows of k features alone and through the whole encoder and decoder, in turn
(A B A B ...). Both change the stream alike, to 1e-5 of its size.

Run: python experiments/speed/sae.py [--pairs 15]
Writes results/sae.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import conflictkit as ck
from conflictkit.interventions.sae import SAE

FEATURES, WIDTH = 131_072, 2_304
CHOSEN = (50, 500)
OUT = Path(__file__).parent / "results"


def autoencoder() -> SAE:
    """Random, a few per mille of the features on."""
    torch.manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH), dim=-1)
    return SAE(
        "random", "jumprelu", 0, "blocks.0.hook_resid_post", "", "", decoder.T.clone(), decoder,
        torch.zeros(FEATURES), torch.zeros(WIDTH), torch.full((FEATURES,), 2.5),
    )  # fmt: skip


def by_rows(few: SAE, split: int, values: Tensor) -> Tensor:
    """The first `split` features out, the others up to 3."""
    codes = few.code(values)
    change = torch.cat([-codes[..., :split], (3 - codes[..., split:]).clamp_min(0)], -1)
    return values + few.change(change, values)


def by_all(sae: SAE, ids: Tensor, split: int, values: Tensor) -> Tensor:
    """The same through every feature's code and row."""
    codes = sae.code(values)
    change = torch.zeros_like(codes)
    change[..., ids[:split]] = -codes[..., ids[:split]]
    change[..., ids[split:]] = (3 - codes[..., ids[split:]]).clamp_min(0)
    return values + sae.change(change, values)


def seconds(call: Callable[[], Tensor]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    """Measure, write, and say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="counted pairs of each size")
    count = parser.parse_args().pairs
    sae = autoencoder()
    values = torch.randn(1, 1, WIDTH)
    rows: dict[str, Any] = {}
    for k in CHOSEN:
        ids = torch.randperm(FEATURES)[:k]
        few = sae.select(ids.tolist())
        ways = (
            lambda few=few, k=k: by_rows(few, k // 2, values),
            lambda ids=ids, k=k: by_all(sae, ids, k // 2, values),
        )
        apart = float((ways[0]() - ways[1]()).abs().max() / values.abs().max())
        pairs = [tuple(seconds(way) for way in ways) for _ in range(count)]
        rows[str(k)] = {
            "bytes": few.bytes, "bytes_of_all": sae.bytes, "apart": apart,
            "milliseconds": 1e3 * statistics.median(one for one, _ in pairs),
            "milliseconds_of_all": 1e3 * statistics.median(one for _, one in pairs),
            "ratio_median": statistics.median(a / b for a, b in pairs),
        }  # fmt: skip
        print(k, rows[str(k)], flush=True)
    figures = {
        "features": FEATURES, "width": WIDTH, "pairs": count, "chosen": rows,
        "python": platform.python_version(), "torch": torch.__version__,
        "conflictkit": ck.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }  # fmt: skip
    OUT.mkdir(exist_ok=True)
    (OUT / "sae.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
