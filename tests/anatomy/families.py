"""A tiny random model of every architecture whose anatomy is promised."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf

from tests.contract import zoo

VOCAB = 64
_SMALL: dict[str, Any] = zoo.SMALL | {"vocab_size": VOCAB}
_GROUPED: dict[str, Any] = zoo.GROUPED | {"vocab_size": VOCAB}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 16,
}


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
    "gpt2": lambda: zoo.gpt2(VOCAB),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_SMALL),
    "opt": lambda: zoo.opt(VOCAB),
    "phi3": lambda: hf.Phi3Config(**_GROUPED),
    "olmo2": lambda: hf.Olmo2Config(**_GROUPED),
    "falcon-7b": lambda: _falcon(multi_query=True, parallel_attn=True),
    "falcon-40b": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "starcoder2": lambda: hf.Starcoder2Config(**_GROUPED),
    "mixtral": lambda: hf.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(**_GROUPED, **_EXPERTS),
    "granite": lambda: hf.GraniteConfig(**_GROUPED, residual_multiplier=0.5),
    "glm4": lambda: hf.Glm4Config(**_GROUPED, head_dim=16),
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
