"""Loading a causal language model and its tokenizer, and refusing what cannot work."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from conflictkit import _hf
from conflictkit.errors import (
    InvalidParameterError,
    ModelLoadError,
    TokenizerError,
    UnsupportedError,
    unknown_name,
)


def load_pretrained(
    name: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str | None = None,
    pad_token: str | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Load model and tokenizer from a folder or a Hugging Face id.

    Args:
        name: a folder with config, weights and tokenizer, or a hub id `owner/name`.
        device: torch device the model is moved to; None: where transformers puts it.
        dtype: `float32`, `bfloat16`, `float16` or `auto`; None: what the checkpoint says.
        pad_token: token to pad with, for a tokenizer that has none.
        tokenizer: use this one instead of the one beside the model.
        options: passed on to both `from_pretrained` calls (`revision=`, `device_map=`, ...).

    Returns:
        The Hugging Face model in evaluation mode, and its tokenizer.

    Raises:
        UnknownNameError: neither a folder nor the shape of a hub id.
        ModelLoadError: transformers could not load it, or its weights are not safetensors.
        TokenizerError: the tokenizer has no pad token and none was given.
        UnsupportedError: not a decoder-only language model, or `trust_remote_code` was passed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if "trust_remote_code" in options:
        raise UnsupportedError(
            "conflictkit runs no code from a repository: load such a model with transformers "
            "yourself and pass it as load(model, tokenizer=tokenizer)"
        )
    target = os.path.expanduser(os.fspath(name))
    folder = Path(target)
    if not folder.exists() and ("/" not in target or target.startswith((".", "/", "~"))):
        raise unknown_name("model", target, ["atlas", "owner/name on the hub", "a folder"])
    torch_dtype = _dtype(dtype) if dtype else "auto"
    try:
        # An unset trust_remote_code asks on the terminal, and pickles run code when they are read.
        safe = {"trust_remote_code": False}
        if tokenizer is None:
            own = _tokenizer_options(options)
            tokenizer = AutoTokenizer.from_pretrained(target, **own, **safe)
        model: Any = AutoModelForCausalLM.from_pretrained(
            target, dtype=torch_dtype, use_safetensors=True, **options, **safe
        )
        if device is not None:
            model = model.to(device)
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, KeyError
        raise ModelLoadError(f"could not load model '{target}': {_reason(error)}") from error
    return check(model, tokenizer, name=target, pad_token=pad_token)


def check(
    model: Any, tokenizer: Any, *, name: str, pad_token: str | None = None
) -> tuple[Any, Any]:
    """Refuse a model or tokenizer that cannot work, before the first token.

    Side effects: puts the model into evaluation mode; sets the tokenizer's pad token if
    `pad_token` is given.

    Raises:
        UnsupportedError, InvalidParameterError: as `check_model`.
        TokenizerError: no tokenizer, no pad token, or an unknown `pad_token`.
    """
    check_model(model, name=name)
    if tokenizer is None:
        raise TokenizerError(f"no tokenizer for '{name}': pass tokenizer= beside the model")
    if not hasattr(tokenizer, "pad_token_id"):
        raise InvalidParameterError(
            f"tokenizer must be a transformers tokenizer, not {type(tokenizer).__name__}"
        )
    if pad_token is not None:
        known = tokenizer.get_vocab()
        if pad_token not in known:
            raise TokenizerError(f"pad token '{pad_token}' is not in the vocabulary of '{name}'")
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token_id is None:
        end = tokenizer.eos_token
        advice = f"'{end}'" if end else "one of its special tokens"
        raise TokenizerError(
            f"the tokenizer of '{name}' has no pad token: pass pad_token={advice} "
            f"(command line: --pad-token {advice})"
        )
    model.eval()
    return model, tokenizer


def check_model(model: Any, *, name: str) -> None:
    """Refuse a model whose streams could not be kept.

    Raises:
        UnsupportedError: encoder-decoder models, and those without a key-value cache.
        InvalidParameterError: not a transformers model.
    """
    if not _hf.is_pretrained(_hf.unwrapped(model)):
        raise InvalidParameterError(
            f"expected a name, a folder or a transformers model, got {type(model).__name__}"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"model '{name}' is an encoder-decoder: only decoder-only models are supported"
        )
    why = _hf.own_memory(model)
    if why is not None:
        raise UnsupportedError(f"model '{name}' cannot be used: {why}")


def _reason(error: Exception) -> str:
    """transformers' own reason in one line, without advice that would not work here."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return (
            "it needs code from its repository, which conflictkit does not run: load it with "
            "transformers yourself and pass model and tokenizer"
        )
    if "no file named model.safetensors" in text:
        text += " Other weights are not read: convert them, or load the model with transformers."
    return text[:300]


def _dtype(name: str) -> Any:
    import torch

    valid = ("auto", "float32", "bfloat16", "float16")
    if name not in valid:
        raise InvalidParameterError(f"dtype must be one of {', '.join(valid)}, not '{name}'")
    return name if name == "auto" else getattr(torch, name)


def _tokenizer_options(options: dict[str, Any]) -> dict[str, Any]:
    shared = ("revision", "cache_dir", "token", "local_files_only", "subfolder")
    return {key: options[key] for key in shared if key in options}


def fingerprint(model: Any) -> str:
    """64 hexadecimal digits that tell one model's weights from another's.

    SHA-256 over every parameter's name and shape and up to 256 of its values, evenly spaced and
    rounded to bfloat16, so that a checkpoint read as float32 or as bfloat16 is the same model.
    """
    import torch

    digest = hashlib.sha256()
    for name, values in _hf.unwrapped(model).named_parameters():
        digest.update(f"{name}{tuple(values.shape)}".encode())
        if values.device.type == "meta":
            raise UnsupportedError(f"the weights of {name} are not in memory: nothing to look at")
        flat = values.detach().flatten()
        last = max(len(flat) - 1, 0)
        # In float32, as ever since; of large tensors it rounds the last place up.
        places = torch.linspace(0, last, min(256, len(flat))).long().clamp_max(last)
        sample = flat[places.to(flat.device)].float().bfloat16().float()
        digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()


_PROBE = "The Quick  brown fox's 1,234.5 €\n\tnaïve ÜBER 東京 🙂 x = f(y);"
# Letters, digits, spaces and bytes of every kind, for how a tokenizer splits and joins them.
_NO_NUMBER = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
# Entries of a configuration that change with how a model was loaded, and no logit.


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """64 hexadecimal digits that tell one tokenizer from another that reads texts differently.

    SHA-256 over its vocabulary, its chat template, and what it makes of a text of many kinds of
    characters, there and back.
    """
    ids = [tokenizer(_PROBE, add_special_tokens=add)["input_ids"] for add in (True, False)]
    said = [tokenizer.decode(ids[0], skip_special_tokens=skip) for skip in (True, False)]
    template = getattr(tokenizer, "chat_template", None)
    return _hashed([sorted(tokenizer.get_vocab().items()), template, ids, said])


def config_fingerprint(model: Any) -> str:
    """64 hexadecimal digits that tell one model's configuration from another's.

    SHA-256 over what weights do not tell: positions, scales, activations. The dtype, and how the
    model was loaded, are left out.
    """
    return _hashed(_said(_hf.unwrapped(model).config.to_dict()))


def _said(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    kept = {str(name): value for name, value in entry.items()}
    return {
        name: _said(value)
        for name, value in kept.items()
        if name not in _NO_NUMBER and not name.startswith("_")
    }


def _hashed(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
