"""Question + contexts -> token ids that differ in the context and in nothing else.

A prompt is three texts: a head (chat markup, usually empty), the context, and a tail (the question
and whatever asks for the answer). Streams share head and tail token for token; only the context
between them differs, and the memory stream has none.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from conflictkit.errors import (
    BoundaryError,
    ContextTooLongError,
    EmptyInputError,
    InvalidParameterError,
    TokenizerError,
)

# Private-use characters: no chat template rewrites them, no text contains them.
_CONTEXT_SLOT = "\ue000context\ue001"
_QUESTION_SLOT = "\ue000question\ue001"

# Asking a fast tokenizer to split special tokens changes the tokenizer for everyone for a moment.
_TOKENIZING = threading.Lock()


@dataclass(frozen=True)
class PromptTemplate:
    """How plain text prompts are written.

    Attributes:
        separator: stands between passages.
        context_end: stands between the last passage and the question.
        question: how the question is asked; must contain `{question}`.
        system: system message, in chat form only; None: no system message.
    """

    separator: str = "\n\n"
    context_end: str = "\n\n"
    question: str = "Question: {question}\nAnswer:"
    system: str | None = None

    def __post_init__(self) -> None:
        if "{question}" not in self.question:
            raise InvalidParameterError("PromptTemplate.question must contain '{question}'")


@dataclass(frozen=True)
class Prompt:
    """The token ids that one stream reads.

    Attributes:
        ids: all tokens, special tokens included.
        context: `(start, stop)`, the half-open span of `ids` that holds the context; empty in the
            memory stream.
        truncated: whether the end of the context was cut off to fit.
    """

    ids: tuple[int, ...]
    context: tuple[int, int]
    truncated: bool = False

    @property
    def context_mask(self) -> tuple[bool, ...]:
        """One flag per token: is it part of the context?"""
        start, stop = self.context
        return tuple(start <= position < stop for position in range(len(self.ids)))


def build_prompts(
    tokenizer: Any,
    question: str,
    contexts: Sequence[str] = (),
    *,
    chat: bool | None = None,
    template: PromptTemplate | None = None,
    limit: int | None = None,
    truncate: bool = False,
) -> dict[str, Prompt]:
    """Prompts of the context stream (if there are contexts) and of the memory stream.

    Args:
        tokenizer: a Hugging Face tokenizer.
        question: what is asked.
        contexts: passages in order; none: closed book.
        chat: use the tokenizer's chat template; None: if it has one.
        template: wording; None: the default.
        limit: most tokens a prompt may have; None: unlimited.
        truncate: cut the end of the context (and nothing else) to fit `limit`.

    Returns:
        `{"context": Prompt, "memory": Prompt}`, or the memory prompt alone.

    Raises:
        EmptyInputError: question or a context without text.
        TokenizerError: chat form asked for, but no chat template.
        BoundaryError: the tail cannot be tokenised alike in both streams.
        ContextTooLongError: more than `limit` tokens.
    """
    template = template or PromptTemplate()
    _check_text("question", question)
    for position, context in enumerate(contexts):
        _check_text("context" if len(contexts) == 1 else f"context {position + 1}", context)
    # Chat templates trim messages, so white space at the ends could not be kept in all forms.
    segments = _Segments.make(tokenizer, question.strip(), chat, template)
    memory = segments.encode("")
    if limit is not None and len(memory.ids) > limit:
        raise ContextTooLongError(
            f"the question alone has {len(memory.ids)} tokens, the window leaves {limit}"
        )
    if not contexts:
        return {"memory": memory}
    body = template.separator.join(contexts)
    prompt = segments.encode(body + template.context_end)
    if limit is not None and len(prompt.ids) > limit:
        if not truncate:
            raise ContextTooLongError(
                f"question and context have {len(prompt.ids)} tokens, the window leaves {limit}: "
                "shorten the context or pass truncate=True (command line: --truncate)"
            )
        prompt = _truncated(segments, body, template.context_end, limit)
    return {"context": prompt, "memory": memory}


def answer_ids(
    tokenizer: Any,
    question: str,
    answer: str,
    *,
    chat: bool | None = None,
    template: PromptTemplate | None = None,
) -> tuple[int, ...]:
    """Token ids of a given answer as they stand after the prompt, the end token not included.

    What stands between prompt and answer is what the chat template puts before an assistant's
    words if that is white space, a space after a plain prompt that does not end in white space,
    and nothing else.

    Args:
        tokenizer, question, chat, template: as in `build_prompts`.
        answer: what was answered; white space around it is left out.

    Raises:
        EmptyInputError: question or answer without text.
        BoundaryError: the answer cannot be told from the prompt in tokens.
    """
    template = template or PromptTemplate()
    _check_text("question", question)
    _check_text("answer", answer)
    segments = _Segments.make(tokenizer, question.strip(), chat, template)
    return segments.continuation(_answer_lead(tokenizer, segments) + answer.strip())


@dataclass(frozen=True)
class _Segments:
    """The texts around one question, and how they tokenise.

    Text that users bring (context, question) may contain the spelling of a special token. It must
    stay text there, so such a prompt is tokenised part by part.
    """

    tokenizer: Any
    head: str
    before: str  # between context and question
    question: str
    after: str
    adds_specials: bool  # whether the tokenizer adds its own (a chat template brings its own)

    @classmethod
    def make(
        cls, tokenizer: Any, question: str, chat: bool | None, template: PromptTemplate
    ) -> _Segments:
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if chat and not has_template:
            raise TokenizerError("chat form asked for, but this tokenizer has no chat template")
        if has_template if chat is None else chat:
            head, before, after = _render_chat(tokenizer, question, template)
            return cls(tokenizer, head, before, question, after, False)
        before, _, after = template.question.partition("{question}")
        return cls(tokenizer, "", before, question, after, True)

    @cached_property
    def memory_ids(self) -> tuple[int, ...]:
        return self._natural("")

    @cached_property
    def head_length(self) -> int:
        return len(self._tokens(self.head, start=True))

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text. What it puts after one (an end token, for
        some) would end the prompt before the answer begins, so it is left out."""
        if not self.adds_specials:
            return ()
        whole, bare = (tuple(self._call("a", specials=flag)) for flag in (True, False))
        places = range(len(whole) - len(bare) + 1)
        return next((whole[:n] for n in places if whole[n : n + len(bare)] == bare), ())

    def encode(self, context: str) -> Prompt:
        """Prompt with `context` between head and tail; "" gives the memory prompt."""
        memory = self.memory_ids
        if not context:
            return Prompt(memory, (self.head_length, self.head_length))
        ids = self._natural(context)
        before = _common_prefix(memory, ids)
        after = _common_prefix(memory[::-1], ids[::-1])
        if before + after >= len(memory):
            # Any split in [len - after, before] is right; the head's own length is the natural one.
            split = min(max(self.head_length, len(memory) - after), before)
            return Prompt(ids, (split, len(ids) - (len(memory) - split)))
        return self._joined(context, ids)

    def continuation(self, text: str) -> tuple[int, ...]:
        """Tokens of what follows the memory prompt; they follow the others just the same."""
        memory, alone = self.memory_ids, self._tokens(text, literal=True)
        if _looks_special(self.tokenizer, text + "\n" + self.question):
            return alone
        prompt = self.head + self.before + self.question + self.after
        whole = self._tokens(prompt + text, start=True)
        if whole[: len(memory)] == memory and len(whole) > len(memory):
            return whole[len(memory) :]
        if not alone or _words(self.tokenizer, (*memory, *alone)) != _words(self.tokenizer, whole):
            raise BoundaryError(
                "the prompt tokenises differently with the answer after it: end the template's "
                "question with a newline"
            )
        return alone

    def _natural(self, context: str) -> tuple[int, ...]:
        """The whole prompt tokenised as one text, or in parts if a user's text looks special."""
        if not _looks_special(self.tokenizer, context + "\n" + self.question):
            text = self.head + context + self.before + self.question + self.after
            return self._tokens(text, start=True)
        return (
            *self._tokens(self.head, start=True),
            *self._tokens(context, literal=True),
            *self._tokens(self.before),
            *self._tokens(self.question, literal=True),
            *self._tokens(self.after),
        )

    def _joined(self, context: str, natural: tuple[int, ...]) -> Prompt:
        """Token-level concatenation, for tokenizers that see across the boundary."""
        split = self.head_length
        middle = self._tokens(context, literal=True)
        ids = (*self.memory_ids[:split], *middle, *self.memory_ids[split:])
        if _words(self.tokenizer, ids) != _words(self.tokenizer, natural):
            raise BoundaryError(
                "the text after the context tokenises differently with and without it: end the "
                "template's context_end with a newline, or begin its question with one"
            )
        return Prompt(ids, (split, split + len(middle)))

    def _tokens(self, text: str, *, start: bool = False, literal: bool = False) -> tuple[int, ...]:
        opening = self.opening if start else ()
        return (*opening, *self._call(text, literal=literal)) if text else opening

    def _call(self, text: str, *, specials: bool = False, literal: bool = False) -> list[int]:
        options = {"split_special_tokens": True} if literal else {}
        with _TOKENIZING:
            return self.tokenizer(text, add_special_tokens=specials, **options)["input_ids"]


def _render_chat(tokenizer: Any, question: str, template: PromptTemplate) -> tuple[str, str, str]:
    """Chat markup before the context, between context and question, and after the question."""
    messages = [{"role": "system", "content": template.system}] if template.system else []

    def render(content: str) -> str:
        turns = [*messages, {"role": "user", "content": content}]
        try:
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2's, and whatever a template raises
            reason = " ".join(str(error).split())
            raise TokenizerError(f"the chat template failed: {reason}") from error

    head, found, tail = render(_CONTEXT_SLOT + _QUESTION_SLOT).partition(_CONTEXT_SLOT)
    before, asked, after = tail.partition(_QUESTION_SLOT)
    if not (found and asked) or render(question) != head + before + question + after:
        raise BoundaryError(
            "this chat template rewrites the user message, so a context cannot be told from the "
            "rest: pass chat=False (command line: --no-chat)"
        )
    return head, before, after


def _answer_lead(tokenizer: Any, segments: _Segments) -> str:
    """White space between the prompt and the answer's first word."""
    if segments.adds_specials:
        ends_open = (segments.before + segments.question + segments.after)[-1:].isspace()
        return "" if ends_open else " "
    turns = [
        {"role": "user", "content": _QUESTION_SLOT},
        {"role": "assistant", "content": _CONTEXT_SLOT},
    ]
    try:
        asked, told = (
            tokenizer.apply_chat_template(turns[:n], tokenize=False, add_generation_prompt=n == 1)
            for n in (1, 2)
        )
    except Exception:  # a template without assistant turns says nothing about them
        return ""
    lead, found, _ = told.removeprefix(asked).partition(_CONTEXT_SLOT)
    return lead if found and told.startswith(asked) and not lead.strip() else ""


def _truncated(segments: _Segments, body: str, end: str, limit: int) -> Prompt:
    """Longest prefix of the context's words that fits; head, question and separator stay whole."""
    words = [position for position, letter in enumerate(body) if letter.isspace()]
    # Scripts without spaces are cut between characters.
    best = _longest(segments, body, end, limit, words) or _longest(
        segments, body, end, limit, range(1, len(body))
    )
    if best is None:
        raise ContextTooLongError(
            f"nothing of the context fits beside the question: {limit} tokens are left"
        )
    return replace(best, truncated=True)


def _longest(
    segments: _Segments, body: str, end: str, limit: int, cuts: Sequence[int]
) -> Prompt | None:
    """The prompt with the body cut at the last of the `cuts` that fits, by bisection."""
    low, high = 0, len(cuts)  # cuts[:low] fit
    best: Prompt | None = None
    while low < high:
        middle = (low + high) // 2
        shorter = body[: cuts[middle]].rstrip()
        prompt = segments.encode(shorter + end) if shorter else None
        if prompt is None or len(prompt.ids) <= limit:
            best, low = prompt or best, middle + 1
        else:
            high = middle
    return best


def _looks_special(tokenizer: Any, text: str) -> bool:
    return any(token in text for token in _special_spellings(tokenizer))


def _special_spellings(tokenizer: Any) -> set[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    spelled = {str(token) for token in added.values() if getattr(token, "special", False)}
    return spelled | set(getattr(tokenizer, "all_special_tokens", ()))


def _words(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return tokenizer.decode(ids, skip_special_tokens=False).split()


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


def _check_text(what: str, text: str) -> None:
    if not isinstance(text, str):
        raise InvalidParameterError(f"{what} must be text, not {type(text).__name__}")
    if not text.strip():
        raise EmptyInputError(f"{what} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidParameterError(f"{what} is not valid text: {error.reason}") from error
