"""A tiny random model of every architecture whose anatomy is promised."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf

VOCAB = 64
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.3, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
_GROUPED: dict[str, Any] = _SMALL | {"num_key_value_heads": 2}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 16,
}


def _opt() -> Any:
    small = {k: v for k, v in _SMALL.items() if k not in ("intermediate_size", "initializer_range")}
    return hf.OPTConfig(**small, ffn_dim=48, init_std=0.3, word_embed_proj_dim=32)


def _falcon(**kind: Any) -> Any:
    small = {k: v for k, v in _SMALL.items() if k != "intermediate_size"}
    return hf.FalconConfig(**small, **kind)


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_GROUPED),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, sliding_window=6),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, head_dim=16),
    # Tied and untrained, Gemma repeats its last token for ever.
    "gemma2": lambda: hf.Gemma2Config(
        **_GROUPED, head_dim=16, query_pre_attn_scalar=16, tie_word_embeddings=False
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **_GROUPED, head_dim=16, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False,
    ),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1,
    ),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_SMALL),
    "opt": _opt,
    "phi3": lambda: hf.Phi3Config(**_GROUPED),
    "olmo2": lambda: hf.Olmo2Config(**_GROUPED),
    "falcon-7b": lambda: _falcon(multi_query=True, parallel_attn=True),
    "falcon-40b": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "starcoder2": lambda: hf.Starcoder2Config(**_GROUPED),
    "mixtral": lambda: hf.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(**_GROUPED, **_EXPERTS),
    "granite": lambda: hf.GraniteConfig(**_GROUPED, residual_multiplier=0.5),
    "smollm3": lambda: hf.SmolLM3Config(**_GROUPED),
}  # fmt: skip

UNDISPATCHED = ("falcon-7b", "falcon-40b")
"""Their attention is not called through transformers' attention interface."""


@cache
def model(name: str) -> Any:
    """Always with the same weights, in evaluation mode."""
    torch.manual_seed(3)
    # Some releases of transformers give Gemma 2 a kernel that leaves out its soft cap.
    kernel = {"attn_implementation": "eager"} if name == "gemma2" else {}
    return hf.AutoModelForCausalLM.from_config(CONFIGS[name](), **kernel).eval()


def tokens(rows: int = 2, length: int = 9) -> torch.Tensor:
    """`[rows, length]` ids that are no special token."""
    own = torch.Generator().manual_seed(11)  # threads share torch's
    return torch.randint(3, VOCAB, (rows, length), generator=own)
