"""Where a decoder's layers, heads, MLPs, final norm and unembedding are.

One rule finds them in every architecture of transformers that we tried; `LAYOUTS` holds what the
rule cannot know, and is where to add a model of your own:

>>> from conflictkit import anatomy
>>> anatomy.LAYOUTS["my_model"] = anatomy.Layout(layers="model.blocks", output="out", mlp="ffn")
>>> _ = anatomy.LAYOUTS.pop("my_model")

A head's place is the slice `[h * head_dim : (h + 1) * head_dim]` of the output projection's input,
where the heads' outputs stand side by side (query heads, also with grouped keys and values).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch.nn import Module, ModuleList

from conflictkit import _hf
from conflictkit.errors import InvalidParameterError, UnsupportedError


@dataclass(frozen=True)
class Layout:
    """What to use instead of the rule; None: let the rule find it.

    Attributes:
        layers: dotted path of the list of layers, from the model.
        attention: dotted path of the attention module, from a layer.
        output: dotted path of the output projection, from the attention module.
        mlp: dotted path, from a layer, of the module whose output is what the MLP adds.
        norm: dotted path of the final norm, from the model; "": there is none.
        heads: number of query heads.
    """

    layers: str | None = None
    attention: str | None = None
    output: str | None = None
    mlp: str | None = None
    norm: str | None = None
    heads: int | None = None


LAYOUTS: dict[str, Layout] = {
    "opt": Layout(mlp="fc2"),  # two linears on the layer itself
    "mpt": Layout(mlp="ffn", norm="transformer.norm_f"),
}
"""`config.model_type` -> what the rule cannot know of such models. Add yours before loading."""

_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo", "attn_out")
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


@dataclass(frozen=True)
class Anatomy:
    """A model's parts, by layer.

    Attributes:
        layers: the decoder's layers.
        attentions: the attention module of each; None in a layer without heads (linear attention).
        outputs: the output projection of each attention, `[heads * head_dim] -> [width]`.
        mlps: the module of each layer whose output is what the MLP adds to the stream.
        attention_norms: of each layer, the norm that follows the attention before its output is
            added (Gemma 2 and 3, OLMo 2); None elsewhere.
        norm: the final norm; None if there is none.
        unembed: width -> vocabulary.
        heads, kv_heads: query heads, and key-value heads that they share.
        head_dim: width of one head's output.
        width: of the residual stream.
        residual_scale: what a layer's additions to the stream are multiplied by (Granite).
        parallel: attention and MLP read the same stream (GPT-NeoX, Falcon).
    """

    layers: tuple[Module, ...]
    attentions: tuple[Module | None, ...]
    outputs: tuple[Module | None, ...]
    mlps: tuple[Module, ...]
    attention_norms: tuple[Module | None, ...]
    norm: Module | None
    unembed: Module
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    residual_scale: float
    parallel: bool

    def slice_of(self, head: int) -> slice:
        """Where head `head` stands in the output projection's input."""
        return slice(head * self.head_dim, (head + 1) * self.head_dim)

    def writers(self, kind: str) -> tuple[Module | None, ...]:
        """By layer, the module whose output is what `kind` means: the `residual` stream behind the
        layer, what its `attention` or its `mlp` puts out; no module: an unknown kind."""
        known = {"residual": self.layers, "attention": self.attentions, "mlp": self.mlps}
        return known.get(kind, ())

    def output_of(self, layer: int, head: int) -> Module:
        """The output projection that reads a head.

        Raises:
            InvalidParameterError: the model has no such head.
        """
        module = self.outputs[layer] if 0 <= layer < len(self.outputs) else None
        if module is not None and 0 <= head < self.heads:
            return module
        there = f"it has {len(self.layers)} layers of {self.heads} heads"
        if module is None and 0 <= layer < len(self.outputs):
            there += ", and none in this layer"
        raise InvalidParameterError(f"the model has no head ({layer}, {head}): {there}")

    def names(self) -> tuple[tuple[int, int], ...]:
        """Every head as `(layer, head)`, both counted from 0."""
        with_heads = [layer for layer, one in enumerate(self.outputs) if one is not None]
        return tuple((layer, head) for layer in with_heads for head in range(self.heads))


def find(model: Any) -> Anatomy:
    """The anatomy of a loaded transformers model, PEFT's and torch.compile's wrappers included.

    Raises:
        InvalidParameterError: not a transformers model.
        UnsupportedError: the rule does not find some part; the message says what to type.
    """
    model = _hf.unwrapped(model)
    if not _hf.is_pretrained(model):
        raise InvalidParameterError(f"expected a transformers model, got {type(model).__name__}")
    config = model.config.get_text_config()
    layout = LAYOUTS.get(config.model_type, Layout())
    layers = tuple(_layers(model, config, layout))
    attentions = tuple(_attention(layer, layout) for layer in layers)
    if not any(attentions):
        why = f"none of {_children(layers[0])} in a layer is one"
        raise _unknown(model, "attention", why, layers[0])
    outputs = tuple(_output(model, one, layout) if one is not None else None for one in attentions)
    heads = layout.heads or getattr(config, "num_attention_heads", None)
    first = next(one for one in outputs if one is not None)
    inner, outer = _widths(first)
    if not heads or inner % heads:
        raise _unknown(model, "heads", f"{heads} does not divide the {inner} inputs of its output")
    unembed = model.get_output_embeddings()
    if unembed is None:
        raise UnsupportedError(f"{type(model).__name__} has no unembedding: load a language model")
    return Anatomy(
        layers=layers,
        attentions=attentions,
        outputs=outputs,
        mlps=tuple(_mlp(model, layer, layout) for layer in layers),
        attention_norms=tuple(_after_attention(layer) for layer in layers),
        norm=_norm(model, layout),
        unembed=unembed,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_dim=inner // heads,
        width=outer,  # OPT-350m's embeddings are narrower
        residual_scale=float(getattr(config, "residual_multiplier", 1.0)),
        parallel=_is_parallel(config, layers[0]),
    )


def _layers(model: Any, config: Any, layout: Layout) -> ModuleList:
    if layout.layers is not None:
        found = _at(model, layout.layers)
        if not isinstance(found, ModuleList) or not len(found):
            raise _unknown(model, "layers", f"there is no list of layers at '{layout.layers}'")
        return found
    decoder = model.get_decoder()
    whole = set(model._no_split_modules or ())
    lists = [
        one
        for one in decoder.modules()
        if isinstance(one, ModuleList)
        and len(one) == config.num_hidden_layers
        and all(type(layer).__name__ in whole for layer in one)
    ]
    if len(lists) != 1:
        raise _unknown(model, "layers", f"{len(lists)} lists of layers")
    return lists[0]


def _attention(layer: Module, layout: Layout) -> Module | None:
    if layout.attention is not None:
        found = _at(layer, layout.attention)
        return found if isinstance(found, Module) else None
    found = [one for one in layer.children() if "Attention" in type(one).__name__]
    return found[0] if found else None


def _output(model: Any, attention: Module, layout: Layout) -> Module:
    names = _OUTPUTS if layout.output is None else (layout.output,)
    found = [one for name in names if isinstance(one := _at(attention, name), Module)]
    # GPT-2's own `c_proj` is a Conv1D; both kinds, and wrappers of them, have a weight.
    if len(found) != 1 or 0 in _widths(found[0]):
        why = f"none of {_children(attention)} in {_kind(attention)} is"
        raise _unknown(model, "output", why, attention)
    return found[0]


def _widths(projection: Module) -> tuple[int, int]:
    """Of a projection's input and output: Linear, GPT-2's Conv1D, PEFT's and quantised ones."""
    base = getattr(projection, "base_layer", projection)
    into = getattr(base, "in_features", None) or getattr(base, "nx", None)
    out = getattr(base, "out_features", None) or getattr(base, "nf", None)
    return int(into or 0), int(out or 0)


def _mlp(model: Any, layer: Module, layout: Layout) -> Module:
    found = _at(layer, layout.mlp or "mlp")
    if not isinstance(found, Module):
        raise _unknown(model, "mlp", f"none of {_children(layer)} in {_kind(layer)} is", layer)
    return found


def _after_attention(layer: Module) -> Module | None:
    if (own := getattr(layer, "post_self_attn_layernorm", None)) is not None:  # GLM-4
        return own
    # By its name alone this norm stands before the MLP (Llama); with a second one behind the MLP
    # it stands behind the attention.
    if getattr(layer, "post_feedforward_layernorm", None) is None:
        return None
    return getattr(layer, "post_attention_layernorm", None)


def _norm(model: Any, layout: Layout) -> Module | None:
    if layout.norm == "":
        return None
    if layout.norm is not None:
        found = _at(model, layout.norm)
        if not isinstance(found, Module):
            raise _unknown(model, "norm", f"there is nothing at '{layout.norm}'")
        return found
    children = dict(model.get_decoder().named_children())
    # The rule is silent where there is none: OPT-350m normalises behind each block.
    return next((children[name] for name in _NORMS if name in children), None)


def _kv_heads(config: Any, heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", 0):
        return 1  # Falcon's own number then means nothing
    for name in ("num_key_value_heads", "num_kv_heads"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return heads


def _is_parallel(config: Any, layer: Module) -> bool:
    for name in ("use_parallel_residual", "parallel_attn", "new_decoder_architecture"):
        if getattr(config, name, False):
            return True
    return config.model_type in ("gptj", "phi", "cohere", "cohere2", "codegen")


def _at(model: Any, path: str) -> Any:
    found = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _kind(module: Module) -> str:
    return type(module).__name__


def _children(module: Module) -> str:
    return ", ".join(f"'{name}'" for name, _ in module.named_children()) or "nothing"


_LIKELY = {
    "layers": ("layers", "blocks", "block", "h"),
    "attention": ("attention", "attn", "mixer", "mamba"),
    "output": (*_OUTPUTS, "out", "proj"),
    "mlp": ("mlp", "ffn", "feed_forward", "moe", "fc2", "expert", "conv", "mixer"),
    "norm": (*_NORMS, "norm"),
}
"""What such parts are called elsewhere: whose name has one of these in it is the first guess."""


def _unknown(model: Any, part: str, why: str, within: Module | None = None) -> UnsupportedError:
    kind = model.config.get_text_config().model_type
    if part == "heads":
        value = "NUMBER"
    else:
        value = repr(_likely(part, model if within is None else within))
    names = [one.name for one in fields(Layout)]
    return UnsupportedError(
        f"{type(model).__name__}: its {part} cannot be found ({why}). Say where: "
        f"conflictkit.anatomy.LAYOUTS['{kind}'] = conflictkit.anatomy.Layout({part}={value}) "
        f"(known: {', '.join(names)})"
    )


def _likely(part: str, within: Module) -> str:
    """The path of the module that such a part may be: something that is there can be typed."""
    kinds = (ModuleList,) if part == "layers" else (Module,)
    paths = [path for path, one in within.named_modules() if path and isinstance(one, kinds)]
    for likely in _LIKELY[part]:
        for path in sorted(paths, key=lambda path: path.count(".")):
            if likely in path.rpartition(".")[2].lower():
                return path
    return paths[0] if paths else "PATH"
