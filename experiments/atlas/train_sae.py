"""Sparse autoencoders of Atlas's middle layers: python experiments/atlas/train_sae.py

Reads documents as Atlas was trained on, keeps the residual stream behind the chosen layers,
trains a BatchTopK autoencoder of each with SAELens (saved as JumpReLU, as SAELens does), goes on
with it inside the model, so that predictions change as little as possible (end-to-end, Braun et
al. 2024, arXiv 2405.12241), and measures what the card says: L0, explained variance, dead
features, and greedy answers kept when reconstructions replace the stream. A layer that is there
already is left as it is: a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import stream  # noqa: E402
import train  # noqa: E402
import world  # noqa: E402
from documents import Writer  # noqa: E402

import conflictkit as ck  # noqa: E402
from conflictkit import anatomy  # noqa: E402
from conflictkit.interventions.features import Reconstruction  # noqa: E402
from conflictkit.interventions.sae import SAE  # noqa: E402

LAYERS = (3, 4)
FEATURES, ACTIVE = 1536, 30
BATCH, RATE = 2048, 1e-3
TUNED, TUNE_RATE, TUNE_TOKENS, FAITHFUL = 5_000, 1e-3, 1700, 0.2
"""Of the second stage: its documents, learning rate, batches, weight of the stream's own error."""
HELD = 10_000
"""Chunks of documents from this one on are for measuring."""
TOGETHER = 32
"""Questions asked at once."""


def tokens_of(writer: Writer, tokenizer: Any, chunk: int) -> Iterator[stream.Batch]:
    """The batches of one chunk of documents, as at the end of Atlas's training."""
    documents = stream.documents_of(writer, 0, chunk, train.STEPS)
    yield from stream.batches_of(documents, tokenizer, train.TOKENS, 0, chunk, train.STEPS)


@torch.no_grad()
def activations(
    model: Any, writer: Writer, layers: tuple[int, ...], count: int, start: int
) -> dict[int, Tensor]:
    """Layer -> `[count, width]`: the stream behind it at every token of many documents."""
    body = anatomy.find(model.model)
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    seen: dict[int, Tensor] = {}
    hooks = [
        body.layers[layer].register_forward_hook(
            lambda _, __, out, layer=layer: seen.__setitem__(
                layer, out[0] if isinstance(out, tuple) else out
            )
        )
        for layer in layers
    ]
    got, chunk, pad = 0, start, model.tokenizer.pad_token_id
    while got < count:
        for batch in tokens_of(writer, model.tokenizer, chunk):
            model.model(input_ids=batch.ids, use_cache=False)
            real = batch.ids != pad
            for layer in layers:
                found[layer].append(seen[layer][real].float())
            got += int(real.sum())
        chunk += 1
        print(f"\r{min(got, count):,} of {count:,} tokens read", end="", flush=True)
    for hook in hooks:
        hook.remove()
    print()
    return {layer: torch.cat(parts)[:count] for layer, parts in found.items()}


def batches(values: Tensor, seed: int) -> Iterator[Tensor]:
    """Shuffled batches without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(values), generator=generator)
        for rows in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            yield values[rows]


def fit(values: Tensor, layer: int, args: argparse.Namespace, model: Any, out: Path) -> None:
    """Train the autoencoder of one layer and save it as SAELens does."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(args.seed)
    metadata = SAEMetadata(
        model_name=args.name,
        hook_name=f"blocks.{layer}.hook_resid_post",
        conflictkit_fingerprint=model.fingerprint,
    )
    config = BatchTopKTrainingSAEConfig(
        d_in=values.shape[1], d_sae=args.features, k=args.active, metadata=metadata,
        normalize_activations="expected_average_only_in",
    )  # fmt: skip
    sae = BatchTopKTrainingSAE(config)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=args.steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=RATE,
            lr_end=RATE / 10,
            lr_warm_up_steps=args.steps // 20,
            lr_decay_steps=args.steps // 3,
            n_batches_for_norm_estimate=20,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=batches(values, args.seed),
    )
    done = trainer.fit()
    done.to(torch.bfloat16 if args.half else torch.float32)
    done.cfg.dtype = "bfloat16" if args.half else "float32"
    done.save_inference_model(out)
    tidy(out / "cfg.json")


def tune(model: Any, writer: Writer, folder: Path, args: argparse.Namespace) -> None:
    """Go on inside the model: KL of the next token (answers weigh most) plus what the stream loses.

    As many features fire as before, on the mean over a batch; the threshold follows.
    """
    from safetensors.torch import save_file

    hf = model.model.requires_grad_(False)
    sae = SAE.load(folder)
    names = ("encoder", "bias", "decoder", "decoder_bias")
    own = {name: torch.nn.Parameter(getattr(sae, name).clone()) for name in names}
    optimiser = torch.optim.Adam(own.values(), lr=TUNE_RATE, betas=(0.9, 0.99))
    now: dict[str, Any] = {"real": None}

    def replaced(_: Any, __: Any, out: Any) -> Any:
        if now["real"] is None:
            return None
        values = out[0] if isinstance(out, tuple) else out
        real = values[now["real"]].float()
        codes = ((real - own["decoder_bias"]) @ own["encoder"] + own["bias"]).relu()
        least = codes.detach().flatten().topk(args.active * len(real)).values[-1]
        made = (codes * (codes >= least)) @ own["decoder"] + own["decoder_bias"]
        spread = (real - real.mean(0)).square().sum()
        now.update(least=float(least), lost=(made - real).square().sum() / spread)
        values = values.clone()
        values[now["real"]] = made.to(values.dtype)
        return (values, *out[1:]) if isinstance(out, tuple) else values

    hook = anatomy.find(hf).layers[sae.layer].register_forward_hook(replaced)
    threshold, step, chunk = None, 0, TUNED
    while step < args.tune:
        documents = stream.documents_of(writer, 0, chunk, train.STEPS)
        for batch in stream.batches_of(
            documents, model.tokenizer, TUNE_TOKENS, 0, chunk, train.STEPS
        ):
            for group in optimiser.param_groups:
                group["lr"] = TUNE_RATE * min(1.0, step / 50) * max(0.02, 1 - step / args.tune)
            ids = batch.ids[:, :-1]
            real = ids != model.tokenizer.pad_token_id
            now["real"] = None
            with torch.no_grad():
                plain = hf(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            now["real"] = real
            other = hf(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            moved = (plain.exp() * (plain - other)).sum(-1)
            weights = batch.weights + 0.05 * real
            moved = (moved * weights).sum() / weights.sum()
            optimiser.zero_grad()
            (moved + FAITHFUL * now["lost"]).backward()
            optimiser.step()
            least = now["least"]
            threshold = least if threshold is None else 0.98 * threshold + 0.02 * least
            step += 1
            if step % 50 == 0:
                print(f"step {step} kl {moved:.4f} lost {now['lost']:.4f}", flush=True)
            if step >= args.tune:
                break
        chunk += 1
    hook.remove()
    kind = torch.bfloat16 if args.half else torch.float32
    made = {
        "W_enc": own["encoder"], "b_enc": own["bias"], "W_dec": own["decoder"],
        "b_dec": own["decoder_bias"],
        "threshold": torch.full((sae.features,), threshold or 0.0),
    }  # fmt: skip
    held = {name: one.detach().to(kind).contiguous() for name, one in made.items()}
    save_file(held, folder / "sae_weights.safetensors")


def tidy(path: Path) -> None:
    """A configuration without what belongs to the machine that it was made on."""
    told = json.loads(path.read_text(encoding="utf-8"))
    told["device"] = "cpu"
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def measure(sae: SAE, held: Tensor, model: Any, cases: list, plain: list[str]) -> dict[str, Any]:
    """What a card says of one autoencoder."""
    codes, left, spread = [], 0.0, float(held.var(0, correction=0).sum())
    for part in held.split(8192):
        code = sae.encode(part)
        codes.append(code > 0)
        left += float((part - sae.decode(code)).square().sum())
    fires = torch.cat(codes)
    return {
        "layer": sae.layer,
        "features": sae.features,
        "l0": float(fires.sum(-1).double().mean()),
        "explained_variance": 1 - left / len(held) / spread,
        "dead": float((~fires.any(0)).double().mean()),
        "tokens": len(held),
        **kept([sae], model, cases, plain),
    }


def kept(saes: list[SAE], model: Any, cases: list, plain: list[str]) -> dict[str, Any]:
    """Share of greedy answers that stay when reconstructions replace the stream."""
    with Reconstruction(saes).attach(model.model):
        replaced = both(model, cases)
    same = sum(a == b for a, b in zip(plain, replaced, strict=True))
    return {"answers": len(plain), "answers_kept": same / len(plain)}


def both(model: Any, cases: list) -> list[str]:
    """Plain greedy answers, with contexts and then without."""
    return [*answers(model, cases, closed=False), *answers(model, cases, closed=True)]


def answers(model: Any, cases: list, closed: bool) -> list[str]:
    """Plain greedy answers, to the questions alone or with their contexts."""
    said: list[str] = []
    for start in range(0, len(cases), TOGETHER):
        part = cases[start : start + TOGETHER]
        contexts = None if closed else [list(case.contexts) for case in part]
        made = model.ask_batch([case.question for case in part], contexts, "plain", trace=False)
        said += [one.text for one in made]
    return said


def main() -> None:
    """Train what is missing, measure everything, write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="atlas", help="atlas, or a folder of a training seed")
    parser.add_argument("--tokenizer", default=str(ck.atlas.path()))
    parser.add_argument("--name", default="atlas", help="the model's name in the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--active", type=int, default=ACTIVE)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tune", type=int, default=400, help="steps inside the model")
    parser.add_argument("--full", dest="half", action="store_false", help="float32, not bfloat16")
    parser.add_argument("--out", type=Path, default=Path("runs/sae/atlas"))
    args = parser.parse_args()
    from transformers import AutoTokenizer

    named = (
        {}
        if args.model == "atlas"
        else {"tokenizer": AutoTokenizer.from_pretrained(args.tokenizer)}
    )
    model = ck.load(args.model, **named)
    writer = Writer(world.build())
    missing = [one for one in args.layers if not (args.out / f"layer{one}/cfg.json").exists()]
    if missing:
        values = activations(model, writer, tuple(missing), args.tokens, 0)
        for layer in missing:
            draft = args.out / f".layer{layer}"
            if not (draft / "cfg.json").exists():
                fit(values.pop(layer), layer, args, model, draft)
            if args.tune:
                tune(model, writer, draft, args)
            draft.rename(args.out / f"layer{layer}")
    held = activations(model, writer, tuple(args.layers), 100_000, HELD)
    cases = ck.atlas.cases("test")[::5]
    plain = both(model, cases)
    saes = [SAE.load(args.out / f"layer{layer}") for layer in args.layers]
    card = {
        "command": "python experiments/atlas/train_sae.py",
        "seed": args.seed, "tokens": args.tokens, "steps": args.steps, "tuned": args.tune,
        "active": args.active,
        "model": {"name": args.name, "fingerprint": model.fingerprint},
        "layers": [measure(sae, held[sae.layer], model, cases, plain) for sae in saes],
        "together": kept(saes, model, cases, plain),
    }  # fmt: skip
    (args.out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
