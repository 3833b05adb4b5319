"""Atlas's tokenizer: byte-level BPE with GPT-2's way of splitting text into words.

That way of splitting is what makes `Question: ...` give the same tokens with and without passages
before it.
"""

from __future__ import annotations

import random
from pathlib import Path

from blend import Blend
from documents import Writer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
EARLY = {"invented": 0.64, "memory": 0.12, "quote": 0.21, "unknown": 0.03}
LATE = {
    "memory": 0.55,
    "invented": 0.09,
    "conflict": 0.13,
    "agree": 0.07,
    "irrelevant": 0.06,
    "unknown": 0.06,
    "quote": 0.04,
}
"""Kinds of documents that the merges are learned from. Fixed here, so that a change of the training
mix does not change the tokenizer."""
WINDOW = 1024
SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}"
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] + '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<|user|>' + ns.system + message['content'] }}"
    "{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|> ' + message['content'] + eos_token }}"
    "{% else %}"
    "{{ raise_exception('Atlas knows the roles system, user and assistant, not ' "
    "+ message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train(writer: Writer, documents: int = 30_000, seed: int = 7) -> PreTrainedTokenizerFast:
    """Learn the merges from documents of every kind; the same for every training seed."""
    rng = random.Random(seed)
    blends = Blend(EARLY), Blend(LATE)
    texts = [writer.draw(rng, blends[i * 3 > documents]).text for i in range(documents)]
    # Every real name is seen once, however rarely it is taught.
    texts += [f" {f.subject} {f.object}" for f in writer.facts]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = (t.replace("<|user|>", "").replace("<|assistant|>", " ") for t in texts)
    core.train_from_iterator(plain, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        truncation_side="left",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


def load_or_train(folder: Path, writer: Writer):
    """The tokenizer of a run folder, made if it is missing."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").exists():
        train(writer).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
