"""One tiny random model of every kind of architecture that the promises are made for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers

VOCAB = 300
"""More than the tokenizer's 261: the last rows of the embedding belong to no token."""

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED: dict[str, Any] = SMALL | {"num_key_value_heads": 2}


def _mixture() -> Any:
    return transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)


def gpt2(vocab: int = VOCAB) -> Any:
    return transformers.GPT2Config(
        vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


def opt(vocab: int = VOCAB) -> Any:
    small = {k: v for k, v in SMALL.items() if k not in ("intermediate_size", "initializer_range")}
    small["vocab_size"] = vocab
    return transformers.OPTConfig(**small, ffn_dim=48, init_std=0.3, word_embed_proj_dim=32)


CONFIGS: dict[str, Callable[[], Any]] = {
    # Grouped queries, rotary positions.
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    # Norms on queries and keys; heads wider than hidden size / heads.
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    # Soft-capped scores and logits, every second layer with a sliding window.
    "gemma2": lambda: transformers.Gemma2Config(
        **GROUPED, head_dim=16, sliding_window=8, query_pre_attn_scalar=16
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **GROUPED,
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=16,
        # By default both layers would slide, and the context would be out of sight.
        layer_types=["sliding_attention", "full_attention"],
        tie_word_embeddings=False,  # tied and untrained it repeats its last token for ever
    ),  # fmt: skip
    # Learned positions: a wrong position changes every logit.
    "gpt2": gpt2,
    "opt": opt,
    # Attention and MLP side by side, fused projections.
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    # Experts.
    "mixtral": _mixture,
}


@cache
def model(name: str) -> Any:
    """The model, always with the same weights, in evaluation mode."""
    torch.manual_seed(3)
    made = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    return made.eval()
