"""The same model in TransformerLens, for whoever works there.

`bridge(model)` boots a `TransformerBridge` on a copy of the loaded model: no hub access, the same
numbers: `run_with_cache` gives the heads' outputs as `blocks.L.attn.hook_z`, `[batch, tokens,
heads, head_dim]`, equal to what `HeadTap` records. Needs the extra `lens`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from conflictkit import _hf
from conflictkit.errors import InvalidParameterError, UnsupportedError

if TYPE_CHECKING:
    from conflictkit.toolkit import Model


def bridge(model: Model | Module, *, tokenizer: Any = None) -> Any:
    """A TransformerLens `TransformerBridge` on a copy of `model`.

    Booting changes the model that it is given (modules are replaced, `state_dict` keys change), and
    so does `enable_compatibility_mode`: model and tokenizer are copied first, weights included.

    Args:
        model: a loaded `Model`, or a Hugging Face model.
        tokenizer: needed beside a Hugging Face model: TransformerLens would fetch one from the hub.

    Returns:
        A `transformer_lens.model_bridge.TransformerBridge`, evaluating, with eager attention.

    Raises:
        UnsupportedError: TransformerLens is not installed, or does not know this architecture.
        InvalidParameterError: a Hugging Face model without its tokenizer, or something else.
    """
    if isinstance(model, Module):
        module, name = _hf.unwrapped(model), type(_hf.unwrapped(model)).__name__
    else:
        module, name = _hf.unwrapped(model.model), model.name
        tokenizer = model.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise InvalidParameterError(
            f"bridge({name}): pass tokenizer=, the model's own, or a model from conflictkit.load"
        )
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise UnsupportedError(
            'a TransformerLens bridge needs transformer-lens: pip install "conflictkit[lens]"'
        ) from error
    twin, reader = copy.deepcopy(module), copy.deepcopy(tokenizer)
    # A model that was made in memory does not say what it is.
    twin.config.architectures = twin.config.architectures or [type(module).__name__]
    # Without this mark TransformerLens would fetch the tokenizer anew, from the hub.
    reader.init_kwargs |= {"name_or_path": name, "add_bos_token": True}
    try:
        booted = TransformerBridge.boot_transformers(
            name,
            hf_model=twin,
            tokenizer=reader,
            dtype=twin.dtype,
            device=twin.device,
        )
    except Exception as error:  # whatever its adapters raise where they do not fit
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedError(f"TransformerLens cannot bridge {name}: {reason}") from error
    return booted.eval()
