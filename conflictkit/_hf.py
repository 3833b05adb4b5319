"""The only file that touches transformers' internals. Each assumption has a test of its own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from conflictkit import turns
from conflictkit.narrow import narrow

_POSITIONED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


def new_cache(model: Any) -> Any:
    """An empty key-value cache for one stream of `model`.

    Without a config every layer keeps all positions, so that rows can be re-ordered and the end
    rolled back; the attention mask still enforces a sliding window. Models with recurrent layers
    need the config for their own layer types, and cannot be rolled back.
    """
    from transformers import DynamicCache

    return DynamicCache(config=model.config) if has_recurrent_layers(model) else DynamicCache()


def has_recurrent_layers(model: Any) -> bool:
    """Whether some layer keeps a state that cannot be cut back to an earlier position."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return any(kind not in _POSITIONED_LAYERS for kind in types)


def unwrapped(model: Any) -> Any:
    """The transformers model inside torch.compile's and PEFT's wrappers, whose own signatures hide
    what the model takes."""
    inner = getattr(model, "_orig_mod", model)
    base = getattr(inner, "get_base_model", None)
    return base() if callable(base) else inner


def adapters(model: Any) -> frozenset[tuple[bool, tuple[str, ...]]]:
    """Which of PEFT's adapters act in a model by now: as its layers say, off or on and which."""
    if not (hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False)):
        return frozenset()
    told = [one for one in model.modules() if type(getattr(one, "disable_adapters", 0)) is bool]
    return frozenset((one.disable_adapters, tuple(one.active_adapters)) for one in told)


def turn_to_pass(model: Any) -> AbstractContextManager[None]:
    """Keep others from changing the model's config meanwhile."""
    return turns.to_pass([id(unwrapped(model).config)])


def is_compiled(model: Any) -> bool:
    """Whether `model` is what torch.compile made of one."""
    return hasattr(model, "_orig_mod")


def is_pretrained(model: Any) -> bool:
    """Whether `model` is one of transformers' models."""
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def accepted_arguments(model: Any) -> frozenset[str]:
    """Names that `forward` takes; `position_ids` and `logits_to_keep` are not universal."""
    return frozenset(inspect.signature(unwrapped(model).forward).parameters)


def misplaces_padded_rows(model: Any) -> bool:
    """Whether padding on the left moves a row's positions, with no way to say where they are.

    Decoders of encoder-decoder families count learned positions from the first column, padding
    included. Bloom, MPT and BioGPT take no positions either, but find them by the mask.
    """
    by_mask = unwrapped(model).config.model_type in ("bloom", "mpt", "biogpt")
    return not by_mask and "position_ids" not in accepted_arguments(model)


def own_memory(model: Any) -> str | None:
    """Why the model's state cannot be kept beside it, or None if it is a key-value cache.

    State-space and RWKV models swallow `past_key_values` without using it; the other two take it
    but keep (or pad) a state of their own.
    """
    adapter = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        return "prefix and prompt tuning put positions of their own before every pass"
    missing = {"past_key_values", "attention_mask"} - accepted_arguments(model)
    kind = unwrapped(model).config.model_type
    if missing or kind in ("minimax", "recurrent_gemma"):
        return f"models of type '{kind}' keep a state of their own instead of a key-value cache"
    return None


def tail_logits(
    model: Any,
    input_ids: Tensor,
    *,
    attention_mask: Tensor,
    position_ids: Tensor,
    keep: int = 1,
    cache: Any | None = None,
    accepted: frozenset[str] | None = None,
) -> Tensor:
    """One pass over the weights.

    Args:
        input_ids: `[batch, new]` tokens not yet in the cache.
        attention_mask: `[batch, cached + new]`, 0 at padding.
        position_ids: `[batch, new]`.
        keep: number of last positions whose logits are wanted.
        cache: extended in place; None: nothing is kept.
        accepted: result of `accepted_arguments`, if at hand.

    Returns:
        `[batch, keep, vocab]` logits after each of the last `keep` tokens.
    """
    names = accepted if accepted is not None else accepted_arguments(model)
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "position_ids" in names:
        arguments["position_ids"] = position_ids
    if "logits_to_keep" in names:
        arguments["logits_to_keep"] = keep
    with turn_to_pass(model), torch.no_grad(), narrow(model, input_ids.numel()):
        output = model(**arguments, past_key_values=cache, use_cache=cache is not None)
    return output.logits[:, -keep:]


def select_rows(cache: Any, index: Tensor) -> None:
    """Keep the rows `index` of the cache, in that order; a row may be repeated. In place."""
    cache.reorder_cache(index)


def copy_cache(cache: Any) -> Any:
    """A cache that holds what this one holds; neither sees what the other takes in later.

    Layers that keep all positions never write into their tensors: they replace them, so the copy
    shares them for nothing. Others (recurrent states are updated in place) are copied whole.
    """
    from transformers.cache_utils import DynamicLayer

    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return copy.deepcopy(cache)
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def cache_layers(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer, `[batch, heads, length, head_dim]` each."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def fill_cache(cache: Any, rows: Sequence[Sequence[tuple[Tensor, Tensor]]], width: int) -> None:
    """Fill an empty cache with rows, padded on the left to `width` positions.

    Args:
        rows: of every row and layer, keys and values `[heads, tokens, head_dim]`.
    """
    for layer, several in enumerate(zip(*rows, strict=True)):
        whole = []
        for tensors in zip(*several, strict=True):
            heads, _, size = tensors[0].shape
            made = tensors[0].new_zeros(len(tensors), heads, width, size)
            for number, one in enumerate(tensors):
                made[number, :, width - one.shape[1] :] = one
            whole.append(made)
        cache.update(*whole, layer)


def cache_bytes(cache: Any) -> tuple[float, float]:
    """Size of a cache that holds something: bytes per row and position, and further bytes per row
    (the states of recurrent layers, which do not grow)."""
    from transformers.cache_utils import DynamicLayer

    growing = fixed = 0.0
    for layer in cache.layers:
        tensors = [*_tensors(vars(layer))]
        if isinstance(layer, DynamicLayer):
            grown = [one for one in (layer.keys, layer.values) if one is not None and one.numel()]
            growing += sum(one.nbytes / (one.shape[0] * one.shape[-2]) for one in grown)
            tensors = [one for one in tensors if not any(one is other for other in grown)]
        fixed += sum(one.nbytes / one.shape[0] for one in tensors if one.dim() > 1)
    return growing, fixed


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def roll_back(cache: Any, count: int) -> None:
    """Forget the last `count` positions of every row, in place."""
    if count > 0:
        cache.crop(-count)  # a positive argument means different things in different releases


def reorder_positions(cache: Any, order: Tensor) -> None:
    """Put the columns `order` `[batch, length]` of every row in the places of all, in place."""
    for layer in cache.layers:
        index = order[:, None, :, None]
        layer.keys = layer.keys.gather(
            2, index.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[-1])
        )
        layer.values = layer.values.gather(
            2, index.expand(-1, layer.values.shape[1], -1, layer.values.shape[-1])
        )


def counts_columns(model: Any) -> bool:
    """Whether attention counts columns, padding inside a row included: windows, or ALiBi."""
    config = model.config.get_text_config()
    slopes = getattr(config, "alibi", False) or config.model_type in ("mpt", "bloom")
    return bool(slopes) or has_windows(model)


def has_windows(model: Any) -> bool:
    """Whether some layer attends to a number of columns only."""
    config = model.config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window")
    kinds = getattr(config, "layer_types", None) or ()
    named = any(getattr(config, name, None) is not None for name in names)
    return named or any(kind != "full_attention" for kind in kinds)


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer: the generation config's (one or several) and the tokenizer's."""
    config = getattr(model, "generation_config", None)
    declared = getattr(config, "eos_token_id", None)
    if declared is None:
        declared = getattr(model.config.get_text_config(), "eos_token_id", None)
    ids: list[int] = []
    if isinstance(declared, int):
        ids.append(declared)
    elif isinstance(declared, Sequence):
        ids.extend(int(token) for token in declared)
    own = getattr(tokenizer, "eos_token_id", None)
    if isinstance(own, int):
        ids.append(own)
    return tuple(dict.fromkeys(ids))


def pad_token(model: Any) -> int | None:
    """Id that the model's generation config or config names for padding."""
    return _declared(model, "pad_token_id")


def text_bounds(model: Any) -> tuple[int, ...]:
    """Ids that begin or end a text."""
    bounds = (_declared(model, name) for name in ("bos_token_id", "eos_token_id"))
    return tuple(token for token in bounds if token is not None)


def _declared(model: Any, name: str) -> int | None:
    """The first id that either config names for `name`."""
    configs = (getattr(model, "generation_config", None), model.config.get_text_config())
    for config in configs:
        value = getattr(config, name, None)
        if isinstance(value, Sequence) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    return None


def window(model: Any, tokenizer: Any) -> int | None:
    """Number of positions the model was built for, or None if neither config nor tokenizer says."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if isinstance(length, int) and 0 < length < 10**9 else None


def cached_length(cache: Any) -> int:
    """Number of positions in a cache of transformers."""
    return int(seen_tokens(cache))


def seen_tokens(cache: Any) -> int | Tensor:
    """Number of columns read so far; a static cache counts them in a tensor on its device."""
    return cache.get_seq_length()


def special_tokens(config: Any) -> tuple[tuple[int, ...], int | None]:
    """End tokens and padding token as `generate` prepared them in its config."""
    ends, pad = config._eos_token_tensor, config._pad_token_tensor
    return () if ends is None else tuple(ends.tolist()), None if pad is None else int(pad)


# Options of generate() that need a loop of their own, or a cache of their own, or outputs of the
# model that a run does not keep; with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "early_stopping": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "low_memory": (False,),
    "guidance_scale": (1, 1.0),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "use_mtp": (False,),
    "speculation_type": (),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "cache_implementation": ("dynamic",),
    "prefill_chunk_size": (),
}


def refused_options(config: Any) -> list[str]:
    """Names of the options in a generation config that our decoding loop does not carry out."""
    found = [
        name
        for name, idle in _REFUSED.items()
        if (value := getattr(config, name, None)) is not None and value not in idle
    ]
    if config.num_beams > 1 and config.do_sample:
        found.append("do_sample with num_beams")
    return found


def split_processors(processors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What `generate` applies before a method and what after it: warpers and whatever follows
    them (watermarks, normalisation) stand at the end of its list."""
    from transformers.generation import logits_process

    late = tuple(
        getattr(logits_process, name)
        for name in dir(logits_process)
        if name.endswith("LogitsWarper")
        or name in ("LogitNormalization", "WatermarkLogitsProcessor")
        or name == "SynthIDTextWatermarkLogitsProcessor"
    )
    everything = list(processors)
    count = len(everything)
    while count and isinstance(everything[count - 1], late):
        count -= 1
    return everything[:count], everything[count:]


def ends_rows_apart(criteria: Any) -> bool:
    """Whether some stopping criterion can end one row of a batch before another."""
    from transformers import MaxLengthCriteria, MaxTimeCriteria

    return any(not isinstance(item, MaxLengthCriteria | MaxTimeCriteria) for item in criteria or ())


def generation_output(fields: Mapping[str, Any]) -> Any:
    """What `generate` returns with `return_dict_in_generate`, of beams if there are indices."""
    from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

    beams = "beam_indices" in fields
    return (GenerateBeamDecoderOnlyOutput if beams else GenerateDecoderOnlyOutput)(**fields)


def register_pipeline(task: str, pipeline: type, model: type, default: str) -> None:
    """Let `transformers.pipeline(task)` make `pipeline`, around a `model`; once per process.

    `default` is the folder of the model that is taken if none is named.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    if task in PIPELINE_REGISTRY.get_supported_tasks():
        return
    PIPELINE_REGISTRY.register_pipeline(
        task,
        pipeline_class=pipeline,
        pt_model=model,
        default={"model": (default, "main")},
        type="text",
    )
    # By this mark `save_pretrained` would copy our source beside the model, and name it in the
    # config, so that the folder could no longer be loaded without running code from it.
    del pipeline._registered_impl
