"""What greedy answers bear: python experiments/atlas/noise.py

Noise of the same size in every direction, as a share of the stream's variance behind a layer, at
every position; and the share of greedy answers that stay, to the questions that the card of the
autoencoders asks. What an autoencoder leaves out has to do less than that. Writes
results/noise.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import world  # noqa: E402
from documents import Writer  # noqa: E402
from measure_sae import activations, answers  # noqa: E402

import conflictkit as ck  # noqa: E402
from conflictkit import anatomy  # noqa: E402

LAYERS = (1, 2, 3, 4)
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)


class Noise:
    """Adds noise of variance `size` in every direction to the stream behind a layer."""

    def __init__(self, layer: torch.nn.Module, seed: int) -> None:
        self.size = 0.0
        self.generator = torch.Generator().manual_seed(seed)
        self.hook = layer.register_forward_hook(self._add)

    def _add(self, _: Any, __: Any, out: Any) -> Any:
        values = out[0] if isinstance(out, tuple) else out
        made = values + torch.randn(values.shape, generator=self.generator) * self.size**0.5
        return (made, *out[1:]) if isinstance(out, tuple) else made


def main() -> None:
    """Measure every layer at every share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "noise.json")
    args = parser.parse_args()
    model = ck.load("atlas")
    cases = ck.atlas.cases("test")[::5]
    plain = {closed: answers(model, cases, closed) for closed in (True, False)}
    held, _ = activations(model, Writer(world.build()), LAYERS, 50_000)
    rows = []
    for layer in LAYERS:
        spread = float(held[layer].var(0, correction=0).mean())
        noise = Noise(anatomy.find(model.model).layers[layer], args.seed)
        for share in SHARES:
            row: dict[str, Any] = {"layer": layer, "share": share, "answers": len(cases)}
            noise.size = share * spread
            for closed, name in ((True, "closed"), (False, "with_context")):
                made = answers(model, cases, closed)
                same = sum(a == b for a, b in zip(made, plain[closed], strict=True))
                row[name] = same / len(cases)
            rows.append(row)
            print(json.dumps(row), flush=True)
        noise.hook.remove()
    told = {"command": "python experiments/atlas/noise.py", "seed": args.seed, "rows": rows}
    args.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
