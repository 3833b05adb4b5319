"""Token ids to text, token by token, for tokenizers whose tokens are not whole characters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from os.path import commonprefix
from typing import Any

_REPLACEMENT = "\ufffd"


def token_kinds(tokenizer: Any, ids: Sequence[int], answer_length: int) -> list[str]:
    """`text`, `special` or `end` per id; everything after the answer's ids is the end."""
    special = {token: _is_special(tokenizer, token) for token in set(ids)}
    return [
        "end" if index >= answer_length else "special" if special[token] else "text"
        for index, token in enumerate(ids)
    ]


def _is_special(tokenizer: Any, token: int) -> bool:
    # `all_special_ids` lists only those with a role; decoding skips more.
    return not tokenizer.decode([token], skip_special_tokens=True) and bool(
        tokenizer.decode([token], skip_special_tokens=False)
    )


def token_texts(
    tokenizer: Any, ids: Sequence[int], kinds: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What each token adds to the text; joined, exactly the text of all `text` tokens.

    A character of several tokens belongs to the token that completes it; the tokens before add
    nothing and become a `piece`. Decoding whole prefixes is what keeps this exact for tokenizers
    that clean up or strip spaces: a token's text depends on its neighbours.

    Returns:
        The texts and the kinds, `piece` entered.
    """
    texts: list[str] = []
    new_kinds = list(kinds)
    written, prefix = "", []
    last = max((i for i, kind in enumerate(kinds) if kind == "text"), default=-1)
    for index, (token, kind) in enumerate(zip(ids, kinds, strict=True)):
        if kind != "text":
            texts.append("")
            continue
        prefix.append(token)
        text = decode(tokenizer, prefix)
        if index != last:
            # An unfinished character at the end waits for its remaining bytes.
            text = text.rstrip(_REPLACEMENT)
        if not text.startswith(written):
            written = _rewrite(texts, written, text)
        texts.append(text[len(written) :])
        if not texts[-1]:
            new_kinds[index] = "piece"
        written = text
    return texts, new_kinds


def cut_at(length: int, texts: Sequence[str], kinds: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts up to `length` characters in all; a token of which nothing is left is a `stop`."""
    kept, new_kinds = [], []
    for text, kind in zip(texts, kinds, strict=True):
        kept.append(text[: max(length, 0)])
        new_kinds.append("stop" if text and not kept[-1] else kind)
        length -= len(text)
    return kept, new_kinds


def _rewrite(texts: list[str], written: str, text: str) -> str:
    """Take back from the end of `texts` what a tokenizer changed once it saw the next token."""
    kept = commonprefix([written, text])
    surplus = len(written) - len(kept)
    for index in range(len(texts) - 1, -1, -1):
        cut = min(surplus, len(texts[index]))
        texts[index] = texts[index][: len(texts[index]) - cut]
        surplus -= cut
    return kept


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of `ids` as the answer's text is made."""
    return tokenizer.decode(list(ids), skip_special_tokens=True)


def candidate_text(tokenizer: Any, token: int) -> str:
    """One token alone, as shown among a stream's candidates."""
    if token == tokenizer.eos_token_id:
        return "<end>"
    name = tokenizer.convert_ids_to_tokens(token)
    if name is None:  # rows of the embedding beyond the vocabulary
        return f"<{token}>"
    text = tokenizer.decode([token], skip_special_tokens=False)
    if _REPLACEMENT in text:
        return _as_bytes(name) or text
    if name.startswith("▁") and not text.startswith(" "):
        return " " + text  # SentencePiece drops the space of a token that stands alone
    return text


def _as_bytes(name: str) -> str:
    """The bytes behind a byte-level token's name, or nothing if it is not one."""
    table = _byte_level_alphabet()
    if not name or any(character not in table for character in name):
        return name if name.startswith("<0x") else ""
    return "<" + " ".join(f"0x{table[character]:02X}" for character in name) + ">"


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE vocabularies use for bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }
