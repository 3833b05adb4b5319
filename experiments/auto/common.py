"""What fitting and comparing share: the model, and where answers are kept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import conflictkit as ck

HERE = Path(__file__).resolve().parent


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that both have."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default="atlas", help="atlas, a folder or a Hugging Face id")
    made.add_argument("--tokenizer", help="folder of one, where the model's has none")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batch-size", type=int, default=64)
    made.add_argument("--threads", type=int, help="threads of torch")
    made.add_argument("--limit", type=int, help="at most so many cases of a split, for trying")
    made.add_argument("--runs", type=Path, default=Path("runs/auto"), help="keeps answers")
    return made


def load(arguments: argparse.Namespace) -> Any:
    """The model of `--model`."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.tokenizer is None:
        return ck.load(arguments.model)
    from transformers import AutoTokenizer

    return ck.load(arguments.model, tokenizer=AutoTokenizer.from_pretrained(arguments.tokenizer))


def folder(arguments: argparse.Namespace, model: Any, what: str) -> Path:
    """Where answers are kept: other weights or another limit are another run."""
    limit = f"-{arguments.limit}" if arguments.limit else ""
    name = f"{what.replace(':', '-').replace('/', '-')}{limit}-seed{arguments.seed}"
    return arguments.runs / model.fingerprint[:12] / name


def told(run: Any) -> dict[str, Any]:
    """What a number needs to be made again."""
    info = run.info
    kept = ("model", "cases", "options", "versions", "finished")
    return {name: info[name] for name in kept}
