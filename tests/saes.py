"""Small random autoencoders, written into folders as SAELens writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

KINDS = ("standard", "topk", "batchtopk", "jumprelu", "gated")
WIDTH, FEATURES, LAYER, K = 32, 40, 1, 5


def weights(
    kind: str, *, width: int = WIDTH, features: int = FEATURES, seed: int = 0
) -> dict[str, torch.Tensor]:
    """The tensors of a kind by SAELens's names; about a third of the features fire."""
    own = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=own) * scale

    made = {
        "W_enc": drawn(width, features, scale=width**-0.5),
        "W_dec": drawn(features, width, scale=width**-0.5),
        "b_dec": drawn(width, scale=0.2),
    }
    if kind == "gated":
        return made | {
            "b_gate": drawn(features, scale=0.3) - 0.3,
            "b_mag": drawn(features, scale=0.3),
            "r_mag": drawn(features, scale=0.3),
        }
    made["b_enc"] = drawn(features, scale=0.3)
    if kind == "jumprelu":
        made["threshold"] = drawn(features, scale=0.3).abs()
    if kind == "batchtopk":
        made["topk_threshold"] = torch.tensor(0.4, dtype=torch.float64)
    return made


def settings(kind: str, tensors: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    """What `cfg.json` says of them; `more` replaces."""
    told: dict[str, Any] = {
        "d_in": tensors["W_dec"].shape[1], "d_sae": tensors["W_dec"].shape[0],
        "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": more.pop("metadata", {}), "architecture": kind,
    }  # fmt: skip
    if kind in ("topk", "batchtopk"):
        told |= {"k": K, "rescale_acts_by_decoder_norm": False}
    return told | more


def write(
    folder: Path, kind: str = "jumprelu", *, layer: int = LAYER, model: str = "tiny",
    tensors: dict[str, torch.Tensor] | None = None, width: int = WIDTH, features: int = FEATURES,
    seed: int = 0, metadata: dict[str, Any] | None = None, **more: Any,
) -> Path:  # fmt: skip
    """A folder with `cfg.json` and `sae_weights.safetensors`; `more` goes into the former."""
    if tensors is None:
        tensors = weights(kind, width=width, features=features, seed=seed)
    about = {
        "sae_lens_version": "6.54.12", "model_name": model,
        "hook_name": f"blocks.{layer}.hook_resid_post", **(metadata or {}),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    told = settings(kind, tensors, metadata=about, **more)
    (folder / "cfg.json").write_text(json.dumps(told), encoding="utf-8")
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder
