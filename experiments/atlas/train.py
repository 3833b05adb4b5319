"""Make Atlas from scratch: python experiments/atlas/train.py --seed 0

Writes checkpoints, the curve and at the end the model with its facts and figures to
experiments/atlas/runs/seed<N>. A killed or interrupted run goes on where it stopped when the same
command is given again. `--ship` also copies the result into the package.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import stream  # noqa: E402
import tokenizer as tokenizers_  # noqa: E402
import world  # noqa: E402
from documents import Writer  # noqa: E402
from optim import Muon  # noqa: E402

STEPS = 15800
TOKENS = 850
MUON_LR, ADAM_LR = 0.01, 2e-3
RATES = (
    (0, 0.0), (105, 1.0), (1200, 1.0), (1900, 0.42), (7000, 0.3), (10500, 0.015),
    (10600, 0.18), (14500, 0.01), (14530, 0.06),
    (15000, 0.005), (15030, 0.05), (STEPS, 0.003),
)  # fmt: skip
"""Learning rate factor at these steps, straight lines between them; scaled with `--steps`."""
CHECKPOINT_SECONDS = 180
LOG_EVERY = 50


def make_model(tokenizer, seed: int, tiny: bool) -> LlamaForCausalLM:
    """A fresh model: 6 layers of 8 heads with 4 key-value heads, width 192, tied embeddings."""
    torch.manual_seed(seed)
    size = (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        if tiny
        else {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 6}
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=tokenizers_.WINDOW,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **size,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, steps: int) -> float:
    """The factor of both optimisers' rates at a step of a run of `steps` steps."""
    place = step * STEPS / steps
    for (x0, y0), (x1, y1) in itertools.pairwise(RATES):
        if place <= x1:
            return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
    return RATES[-1][1]


def loss_of(model, batch: stream.Batch, device: str) -> torch.Tensor:
    """Weighted mean cross-entropy. Padding stands right, so causal attention never sees it."""
    ids, weights = batch.ids.to(device), batch.weights.to(device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights).sum() / weights.sum()


class Run:
    """One training run with everything that a checkpoint must hold."""

    def __init__(self, args, folder: Path):
        self.args, self.folder = args, folder
        self.facts = world.build()
        self.writer = Writer(self.facts)
        self.tokenizer = tokenizers_.load_or_train(folder, self.writer)
        self.model = make_model(self.tokenizer, args.seed, args.tiny).to(args.device)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimizers = [
            Muon(matrices, lr=MUON_LR),
            torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["base"] = group["lr"]
        self.step = self.chunk = self.position = 0
        self.chunk_step = 0
        self.counts: Counter = Counter()
        self.curve: list[dict] = []
        self.seconds = 0.0

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint beside the old one and put it in its place in one move."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "place": (self.step, self.chunk, self.position, self.chunk_step, self.seconds),
            "counts": [[*key, n] for key, n in self.counts.items()],
            "curve": self.curve,
            "steps": self.args.steps,
        }
        partial = self._checkpoint.with_suffix(".part")
        torch.save(state, partial)
        os.replace(partial, self._checkpoint)

    def resume(self) -> bool:
        """Load the checkpoint, if there is one of a run of the same length."""
        if not self._checkpoint.exists():
            return False
        state = torch.load(self._checkpoint, map_location=self.args.device, weights_only=True)
        if state["steps"] != self.args.steps:
            raise SystemExit(
                f"{self._checkpoint} belongs to a run of {state['steps']} steps: "
                f"remove it or add --steps {state['steps']}"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.chunk, self.position, self.chunk_step, self.seconds = state["place"]
        self.counts = Counter({(s, r): n for s, r, n in state["counts"]})
        self.curve = state["curve"]
        return True

    def train(self) -> None:
        """Train until `steps`; a checkpoint now and then, and on any way out."""
        started, saved, shown = time.perf_counter(), time.perf_counter(), []
        before = self.seconds
        try:
            while self.step < self.args.steps:
                if self.position == 0:
                    self.chunk_step = self.step
                documents = stream.documents_of(
                    self.writer, self.args.seed, self.chunk, self._moment(self.chunk_step)
                )
                batches = stream.batches_of(
                    documents,
                    self.tokenizer,
                    self.args.tokens,
                    self.args.seed,
                    self.chunk,
                    self._moment(self.chunk_step),
                )
                if self.position == 0:
                    stream.count_memory(documents, self.counts)
                while self.position < len(batches) and self.step < self.args.steps:
                    shown.append(self._one(batches[self.position]))
                    self.position += 1
                    self.step += 1
                    self.seconds = before + time.perf_counter() - started
                    if self.step % LOG_EVERY == 0:
                        self._log(shown)
                        shown = []
                    if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                        self.save()
                        saved = time.perf_counter()
                if self.position >= len(batches):
                    self.chunk, self.position = self.chunk + 1, 0
        finally:
            self.save()

    def _moment(self, step: int) -> float:
        """The step of a full run that a step of this run stands for."""
        return step * STEPS / self.args.steps

    def _one(self, batch: stream.Batch) -> torch.Tensor:
        rate = learning_rate(self.step, self.args.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * rate
        loss = loss_of(self.model, batch, self.args.device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _log(self, losses: list) -> None:
        point = {
            "step": self.step,
            "loss": round(float(torch.stack(losses).mean()), 4),
            "seconds": round(self.seconds, 1),
        }
        if self.step % self.args.probe_every == 0:
            from evaluate import probe

            point |= probe(self.model, self.tokenizer, self.writer)
        self.curve.append(point)
        left = self.seconds / self.step * (self.args.steps - self.step) / 60
        rest = " ".join(f"{k} {v}" for k, v in point.items() if k not in ("step", "seconds"))
        print(f"step {self.step}/{self.args.steps} {rest} ({left:.0f} min left)", flush=True)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens per step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="run folder")
    parser.add_argument("--tiny", action="store_true", help="a small model, for trying the code")
    parser.add_argument("--probe-every", type=int, default=500, help="steps between probes")
    parser.add_argument("--ship", action="store_true", help="copy the result into the package")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate, export."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` saves
    folder = args.out or HERE / "runs" / f"seed{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(args, folder)
    if run.resume():
        print(f"resuming at step {run.step}", flush=True)
    try:
        run.train()
    except KeyboardInterrupt:
        stopped = f"stopped at step {run.step}; the same command goes on from there"
        raise SystemExit(stopped) from None
    from export import export

    export(run, folder, ship=args.ship)


if __name__ == "__main__":
    main()
