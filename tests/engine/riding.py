"""What the tests of the roads share: far families, a walk through all that streams can do, runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from conflictkit import engine, methods
from conflictkit.controller import Controller
from conflictkit.plan import open_streams
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from conflictkit.streams import Stream
from conflictkit.together import Road, Together
from tests.contract import zoo

VOCAB = 64
SMALL: dict[str, Any] = zoo.SMALL | {"vocab_size": VOCAB}
GROUPED: dict[str, Any] = zoo.GROUPED | {"vocab_size": VOCAB}
_GPT: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
    "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
_FOUR: dict[str, Any] = GROUPED | {"num_hidden_layers": 4}
_SHORT: dict[str, Any] = GROUPED | {"max_position_embeddings": 12}
_LLAMA4: dict[str, Any] = _FOUR | {
    "head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 6,
    "intermediate_size_mlp": 48,
}  # fmt: skip

FAR: dict[str, Callable[[], Any]] = {
    "biogpt": lambda: hf.BioGptConfig(**SMALL),
    "bloom": lambda: hf.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3
    ),
    "codegen": lambda: hf.CodeGenConfig(**_GPT, rotary_dim=4),
    "cohere": lambda: hf.CohereConfig(**GROUPED),
    "ctrl": lambda: hf.CTRLConfig(**_GPT, dff=48),
    "deepseek-v3": lambda: hf.DeepseekV3Config(
        **SMALL, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1,
    ),
    # The upper half of the layers reads the keys of the lower half.
    "gemma3n": lambda: hf.Gemma3nTextConfig(
        **_FOUR, vocab_size_per_layer_input=VOCAB, head_dim=8,
        num_kv_shared_layers=2, hidden_size_per_layer_input=8, laurel_rank=4, altup_num_inputs=2,
        layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=6,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gpt-bigcode": lambda: hf.GPTBigCodeConfig(**_GPT),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, window_size=6,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=128,
        initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    ),
    # Sinks, and every second layer with a sliding window.
    "gpt-oss": lambda: hf.GptOssConfig(
        **GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=6
    ),
    "gptj": lambda: hf.GPTJConfig(**_GPT, rotary_dim=4),
    "llama4": lambda: hf.Llama4TextConfig(**_LLAMA4),
    "mpt": lambda: hf.MptConfig(
        vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=128, initializer_range=0.3
    ),
    "nemotron": lambda: hf.NemotronConfig(**GROUPED),
    "qwen3-next": lambda: hf.Qwen3NextConfig(
        **GROUPED, head_dim=8, layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "stablelm": lambda: hf.StableLmConfig(**GROUPED),
    "xglm": lambda: hf.XGLMConfig(
        vocab_size=VOCAB, d_model=32, num_layers=2, attention_heads=4, ffn_dim=48,
        max_position_embeddings=128, init_std=0.3,
    ),
}  # fmt: skip

BY_LENGTH: dict[str, Callable[[], Any]] = {
    "bart": lambda: hf.BartConfig(
        vocab_size=VOCAB, d_model=32, decoder_layers=2, decoder_attention_heads=4,
        decoder_ffn_dim=48, max_position_embeddings=128, init_std=0.3, is_decoder=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    ),
    "dynamic rope": lambda: hf.LlamaConfig(
        **_SHORT,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    ),
    "longrope": lambda: hf.Phi3Config(
        **GROUPED, original_max_position_embeddings=12,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
            "long_factor": [2.0, 4.0, 8.0, 16.0], "original_max_position_embeddings": 12,
        },
    ),
    "llama4 by temperature": lambda: hf.Llama4TextConfig(
        **_LLAMA4, attn_temperature_tuning=True, floor_scale=2, attn_scale=0.5,
        no_rope_layers=[0] * 4,
    ),
}  # fmt: skip
"""What these compute in a row depends on how long everything is that is read with it."""


def some(names: Iterable[str], *quick: str) -> list[Any]:
    """Names to go through, all but a few of them only where there is time."""
    return [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in names]


def built(config: Any, **options: Any) -> Any:
    """A model, always with the same weights, in evaluation mode."""
    torch.manual_seed(3)
    return hf.AutoModelForCausalLM.from_config(config, **options).eval()


def drawn(lengths: Sequence[int], seed: int = 0, vocab: int = VOCAB) -> list[list[int]]:
    """Rows of random tokens of these lengths."""
    own = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (length,), generator=own).tolist() for length in lengths]


def opened(model: Any, lengths: Sequence[Sequence[int]], vocab: int = VOCAB) -> dict[str, Stream]:
    """Streams that have read prompts of these lengths."""
    found = {
        f"stream {number}": Stream(model, drawn(rows, number, vocab), pad_id=2)
        for number, rows in enumerate(lengths)
    }
    for one in found.values():
        one.prefill()
    return found


def walk(
    model: Any, best: Road, lengths: Sequence[Sequence[int]], back: bool = True
) -> tuple[str, list[Tensor]]:
    """Everything that streams can do after their prompts, in three rows each.

    Args:
        back: whether to go back, and leave gaps in rows, in between.

    Returns:
        The road in the end, and the logits of all streams after each pass, without padding's.
    """
    together = Together(opened(model, lengths), best)
    draw = torch.Generator().manual_seed(9)
    seen: list[Tensor] = []

    def follow(rows: int, new: int, ends: Sequence[int] | None = None) -> None:
        tokens = torch.randint(3, VOCAB, (rows, new), generator=draw)
        mask = None
        if ends is not None:
            mask = (torch.arange(new) < torch.tensor(ends)[:, None]).long()
        found = together.follow(tokens, mask, None if mask is None else int(mask.sum()))
        kept = torch.ones_like(tokens) if mask is None else mask
        seen.extend(one[kept.bool()] for one in found.values())

    follow(3, 1)
    follow(3, 3)
    together.select(torch.tensor([2, 0, 1, 1]))
    follow(4, 1)
    if back:
        together.roll_back(2)
        follow(4, 3, (3, 1, 2, 3))
        together.forget(torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]))
        follow(4, 2)
    together.select(torch.tensor([3, 1]))
    follow(2, 1)
    follow(2, 3)
    return together.road, seen


def near(found: Sequence[Tensor], wanted: Sequence[Tensor], share: float = 1e-4) -> None:
    """The same logits, up to rounding."""
    assert len(found) == len(wanted)
    size = max(float(one.abs().max()) for one in wanted)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=share * size, rtol=0)


def run_of(
    model: Any,
    control: Any,
    rows: Sequence[dict[str, list[int]]],
    road: Road = "packed",
    spans: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> Stepper:
    """A run that nothing has been read for; options of `Decoding` and of `Stepper`."""
    control = Controller(methods.parse(control)) if isinstance(control, str) else control
    stepper = {name: options.pop(name) for name in ("end_ids", "top", "processors", "host")
               if name in options}  # fmt: skip
    names = options.pop("names", None)
    prompts = {name: [row[name] for row in rows] for name in rows[0]}
    streams = open_streams(model, control, prompts, pad_id=2, spans=spans, names=names)
    decoding: dict[str, Any] = {"max_new_tokens": 6} | options
    made: dict[str, Any] = {"end_ids": (), "top": 2} | stepper
    return Stepper(streams, control, Decoding(**decoding), decode=str, road=road, **made)


def said(run: Stepper) -> list[list[tuple[int, ...]]]:
    """The tokens of all answers."""
    return [[tuple(one.ids) for one in row] for row in engine.generate(run)]


@contextmanager
def passes(model: Any, part: Any = None) -> Iterator[list[int]]:
    """How many rows every pass of the model, or of a part of it, reads."""
    seen: list[int] = []
    module = model if part is None else part

    def hook(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = named["input_ids"] if part is None else arguments[0]
        seen.append(len(given))

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
