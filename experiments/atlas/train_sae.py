"""Sparse autoencoders of Atlas's middle layers: python experiments/atlas/train_sae.py

Reads documents as Atlas was trained on, keeps the tokens on which much hangs (`behind.py`), trains
a BatchTopK autoencoder on them with SAELens, goes on with a threshold for every feature so that
what is left out moves answers as little as possible (`tune_sae.py`), and measures what the card
says (`measure_sae.py`). It is saved as SAELens saves JumpReLU ones. What is there already is left
as it is: a killed run goes on with the same command and ends in the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import behind  # noqa: E402
import measure_sae  # noqa: E402
import tune_sae  # noqa: E402
import world  # noqa: E402
from documents import Writer  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import conflictkit as ck  # noqa: E402
from conflictkit.interventions.sae import SAE  # noqa: E402

LAYERS = (4,)
BATCH, RATE = 2048, 1e-3
"""Of the first stage."""
KEPT_BACK = {"out", "check", "jobs"}
"""Arguments that may change when a run goes on."""


def open_model(source: str) -> Any:
    """Atlas, or the weights of another training seed, in float32; not to be learnt."""
    from transformers import AutoTokenizer

    named = (
        {} if source == "atlas" else {"tokenizer": AutoTokenizer.from_pretrained(ck.atlas.path())}
    )
    model = ck.load(source, dtype="float32", **named)
    model.model.requires_grad_(False)
    return model


def collected(model: Any, layer: int, folder: Path, args: argparse.Namespace) -> behind.Pool:
    """All shards of tokens, drawn by several processes where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = behind.Disputes(world.build())
    frame = folder / "frame.safetensors"
    if not frame.exists():
        behind.measure(behind.Behind(model, layer), writer).save(frame)
    wanted = range(args.shards)
    missing = [one for one in wanted if not (folder / f"{one:04}.safetensors").exists()]
    if missing:
        tasks = [(args.model, layer, folder, one) for one in missing]
        with contextlib.ExitStack() as stack:
            made = map(behind.collect, tasks)
            if args.jobs > 1:
                pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(args.jobs))
                made = pool.imap_unordered(behind.collect, tasks)
            for done, _ in enumerate(made, 1):
                print(f"\r{done} of {len(missing)} shards of tokens", end="", flush=True)
        print()
    return behind.Pool(folder, args.shards)


def first(values: Tensor, layer: int, args: argparse.Namespace, model: Any, out: Path) -> SAE:
    """Train a BatchTopK autoencoder with SAELens."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    if (out / "cfg.json").exists():
        return SAE.load(out)
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

    def rows() -> Any:
        drawn = torch.Generator().manual_seed(args.seed)
        while True:
            yield values[torch.randint(len(values), (BATCH,), generator=drawn)].float()

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
        sae=BatchTopKTrainingSAE(config),
        data_provider=rows(),
    )
    draft = out.with_name(f"{out.name}.part")
    trainer.fit().save_inference_model(draft)
    draft.rename(out)
    return SAE.load(out)


def train(model: Any, layer: int, args: argparse.Namespace) -> None:
    """One layer's autoencoder, from the first document to the file."""
    drafts = args.out / "drafts" / f"layer{layer}"
    pool = collected(model, layer, drafts / "tokens", args)
    frame = behind.Frame.load(drafts / "tokens" / "frame.safetensors")
    start = first(pool.x, layer, args, model, drafts / "first")
    path = drafts / "state.safetensors"
    state = tune_sae.State.load(path) if path.exists() else tune_sae.begin(start)
    tuner = tune_sae.Tuner(state, frame, pool, args.active)
    cases = ck.atlas.cases("validation")[::3] if args.check else []
    plain = measure_sae.both(model, cases)

    def look(now: tune_sae.State, told: dict[str, float]) -> None:
        shown: dict[str, Any] = {name: round(one, 5) for name, one in told.items()}
        if args.check and told["step"] % args.check == 0:
            found = measure_sae.kept([tune_sae.finish(now, start, frame)], model, cases, plain)
            shown["validation answers kept"] = round(found["answers_kept"], 4)
        print(json.dumps(shown), flush=True)

    each = args.check or 250
    tune_sae.tune(path, tuner, args.tune, args.rounds, each, look)
    write(tune_sae.finish(tuner.state, start, frame), model, args, args.out / f"layer{layer}")


def write(sae: SAE, model: Any, args: argparse.Namespace, folder: Path) -> None:
    """Half precision, as SAELens writes JumpReLU autoencoders, put in its place in one move."""
    made = {
        "W_enc": sae.encoder, "b_enc": sae.bias, "W_dec": sae.decoder,
        "b_dec": sae.decoder_bias, "threshold": sae.threshold,
    }  # fmt: skip
    held = {name: one.half().contiguous() for name, one in made.items() if one is not None}
    told = {
        "architecture": "jumprelu", "d_in": sae.width, "d_sae": sae.features,
        "dtype": "float16", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {
            "model_name": args.name, "hook_name": sae.hook,
            "conflictkit_fingerprint": model.fingerprint,
        },
    }  # fmt: skip
    draft = args.out / "drafts" / f"{folder.name}.part"
    draft.mkdir(parents=True, exist_ok=True)
    save_file(held, draft / "sae_weights.safetensors")
    (draft / "cfg.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    draft.rename(folder)


def card(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """What is measured of the finished autoencoders, alone and together."""
    held, places = measure_sae.activations(model, Writer(world.build()), args.layers, args.measured)
    cases = ck.atlas.cases("test")[:: args.every]
    plain = measure_sae.both(model, cases)
    saes = [SAE.load(args.out / f"layer{layer}") for layer in args.layers]
    each = [
        measure_sae.sparsity(sae, held[sae.layer], places)
        | measure_sae.kept([sae], model, cases, plain)
        for sae in saes
    ]
    together = {} if len(saes) == 1 else measure_sae.kept(saes, model, cases, plain)
    return {
        "command": "python experiments/atlas/train_sae.py",
        **{name: one for name, one in vars(args).items() if name not in KEPT_BACK},
        "model": {"name": args.name, "fingerprint": model.fingerprint},
        "layers": each,
        **({"together": together} if together else {}),
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="atlas", help="atlas, or a folder of a training seed")
    parser.add_argument("--name", default="atlas", help="the model's name in the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS))
    parser.add_argument("--features", type=int, default=7680)
    parser.add_argument("--active", type=int, default=32, help="features that fire, on the mean")
    parser.add_argument(
        "--shards", type=int, default=20, help="of tokens, half a million each read"
    )
    parser.add_argument("--steps", type=int, default=120, help="of the first stage")
    parser.add_argument("--tune", type=int, default=15000, help="steps of the second stage")
    parser.add_argument("--rounds", type=int, default=1, help="times the rate begins anew")
    parser.add_argument("--measured", type=int, default=100_000, help="tokens that the card reads")
    parser.add_argument("--every", type=int, default=1, help="the card asks one in so many cases")
    parser.add_argument("--check", type=int, default=0, help="ask validation cases so often")
    parser.add_argument("--jobs", type=int, default=2, help="processes that read documents")
    parser.add_argument("--out", type=Path, help="default: runs/sae/NAME")
    args = parser.parse_args(argv)
    args.out = args.out or Path("runs/sae") / args.name
    return args


def same_run(args: argparse.Namespace) -> None:
    """Refuse to go on with other arguments than a folder was begun with."""
    told = {name: one for name, one in vars(args).items() if name not in KEPT_BACK}
    path = args.out / "arguments.json"
    args.out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != told:
        other = ", ".join(
            f"--{one} {before.get(one)}" for one in told if before.get(one) != told[one]
        )
        raise SystemExit(f"{args.out} was begun with {other}: say so, or choose another --out")


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure everything, write the card."""
    args = arguments(argv)
    model = open_model(args.model)
    depth = model.model.config.num_hidden_layers
    if bad := [one for one in args.layers if not 0 <= one < depth - 1]:
        raise SystemExit(
            f"layer {bad[0]}: nothing but the answer is read behind it (0..{depth - 2})"
        )
    same_run(args)
    try:
        for layer in args.layers:
            if not (args.out / f"layer{layer}" / "cfg.json").exists():
                train(model, layer, args)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from there") from None
    made = card(model, args)
    (args.out / "card.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
