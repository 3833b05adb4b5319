"""Reading autoencoders as SAELens keeps them: a folder, or a name in its directory."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from conflictkit.errors import HubError, SAEError, UnsupportedError
from conflictkit.files import JsonFile

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_CONFIG = JsonFile("configuration of an SAE", SAEError, largest=2**22, most_parts=100_000)
_HOOKS = (
    re.compile(r"blocks\.(?P<layer>\d+)\.hook_resid_(?P<side>pre|post)"),
    re.compile(r"(?:model\.)?layers\.(?P<layer>\d+)"),
)


def config(path: Path) -> Mapping[str, Any]:
    """The configuration in a folder, strictly read."""
    try:
        told = _CONFIG.fields(CONFIG, _CONFIG.parse(_CONFIG.contents(path / CONFIG)))
        for name in ("metadata", "activation_fn_kwargs"):
            _CONFIG.fields(name, told.get(name) or {})
        return told
    except SAEError as error:
        raise SAEError(f"{path / CONFIG}: {error}") from error


def about(told: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its metadata, where they stand apart."""
    return {**told, **(told.get("metadata") or {})}


def place(source: str, about: Mapping[str, Any]) -> tuple[int, str]:
    """The layer behind which it reads, and the name of the place."""
    hook = str(about.get("hook_name") or "")
    for one in _HOOKS:
        found = one.fullmatch(hook)
        if found is not None:
            layer = int(found["layer"]) - (found.groupdict().get("side") == "pre")
            if layer >= 0:
                return layer, hook
    raise SAEError(
        f"{source}: it reads at '{hook}', which is not behind a layer: blocks.N.hook_resid_post, "
        "blocks.N.hook_resid_pre from 1 on, and layers.N are"
    )


def from_disk(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    told = config(path)
    try:
        return told, load_file(path / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise SAEError(f"{path / WEIGHTS} cannot be read: {error}") from error


def from_hub(source: str) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of `release:id`, by SAELens."""
    try:
        theirs = importlib.import_module("sae_lens").SAE
    except ImportError as error:
        raise UnsupportedError(
            f"{source}: loading an SAE by name needs sae-lens: pip install 'conflictkit[sae]'"
        ) from error
    release, _, name = source.partition(":")
    try:
        found = theirs.from_pretrained(release, name)
    except Exception as error:
        raise HubError(
            f"the SAE '{name}' of release '{release}' cannot be loaded: {error}"
        ) from error
    told = found.cfg.to_dict()
    return told, {name: one.detach() for name, one in found.state_dict().items()}
