"""Tiny random models and tokenizers, made in memory: no network, no files."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"
SPECIALS = [BOS, EOS, PAD, USER, ASSISTANT]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def llama(vocab: int = 40, seed: int = 0, layers: int = 2) -> Any:
    """Rotary positions, grouped-query attention, decisive logits."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@cache
def gpt2(vocab: int = 40, seed: int = 0) -> Any:
    """Learned absolute positions: wrong positions change every logit."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()


@cache
def sliding(vocab: int = 40, seed: int = 0) -> Any:
    """A sliding window of 6 positions, shorter than the prompts of the tests."""
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return MistralForCausalLM(config).eval()


@cache
def recurrent(vocab: int = 40, seed: int = 0) -> Any:
    """Qwen3-Next: a layer of linear attention, whose state cannot go back, and a full one."""
    torch.manual_seed(seed)
    config = Qwen3NextConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        initializer_range=0.3,
    )
    return Qwen3NextForCausalLM(config).eval()


def byte_tokenizer(
    *, chat: bool = False, pad: bool = True, metaspace: bool = False, end: bool = False
) -> Any:
    """One token per byte (or per character after SentencePiece's space mark), BOS added.

    With `end`, the tokenizer also puts the end token after every text.

    With `metaspace`, a text begins with a space mark of its own, so a question tokenises
    differently at the start of a prompt and after a context, as it does for SentencePiece models.
    """
    if metaspace:
        letters = [chr(code) for code in range(33, 127)] + ["▁", "\n", "▁Q"]
        vocab = {token: number for number, token in enumerate([*SPECIALS, *letters, "<unk>"])}
        # "Q" is another token at the start of a text than after a context.
        merges = [("▁", "Q")]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}" if end else f"{BOS} $A", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD if pad else None,
        padding_side="left",
    )
    if chat:
        wrapped.chat_template = CHAT
    return wrapped
