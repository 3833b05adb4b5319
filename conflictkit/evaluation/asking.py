"""Cases as token ids: what each stream reads, and the answers to choose from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conflictkit.errors import (
    BoundaryError,
    ContextTooLongError,
    EmptyInputError,
    InvalidParameterError,
)
from conflictkit.prompts import answer_ids
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

Ids = tuple[int, ...]

CASE_ERRORS = (EmptyInputError, ContextTooLongError, BoundaryError)
"""What one case may be at fault for; any other error would meet every case."""


@dataclass(frozen=True)
class Ready:
    """A case that can be asked.

    Attributes:
        number: its place among the cases of the run.
        case: the case.
        prompts: stream name -> ids; without a context only `memory`.
        choices: ids of the answers to choose from, as they stand behind the prompt.
        span: `(start, stop)` of the context in its prompt; None: unknown, the prompt is fixed.
    """

    number: int
    case: Case
    prompts: Mapping[str, Ids]
    choices: tuple[Ids, ...] = ()
    span: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[bool, int]:
        """Whether it has a context, and the tokens of its longest prompt."""
        return "context" in self.prompts, max(map(len, self.prompts.values()))


def prepare(model: Model, case: Case, number: int, wording: Mapping[str, Any]) -> Ready:
    """Tokenise a case.

    A prompt that the case fixes is read as it stands, with what the tokenizer puts before every
    text; the others are built from question and contexts, as in `Model.ask`. Every prompt leaves
    room for the answer and for the longest choice.

    Args:
        model: who is asked.
        case: the case.
        number: its place in the run.
        wording: arguments of `Model.prompts`.

    Raises:
        EmptyInputError, ContextTooLongError, BoundaryError: this case cannot be asked.
        TokenizerError, InvalidParameterError: no case can.
    """
    choices = tuple(_choice(model, case, choice, wording) for choice in case.choices)
    longest = max(map(len, choices), default=0)
    if longest <= wording["max_new_tokens"]:
        prompts, span = _prompts(model, case, wording)
        return Ready(number, case, prompts, choices, span)
    if model.window is not None and longest >= model.window:
        raise ContextTooLongError(
            f"the longest choice has {longest} tokens, the window {model.window}: shorten it"
        )
    try:
        prompts, span = _prompts(model, case, {**wording, "max_new_tokens": longest})
    except ContextTooLongError as error:
        raise ContextTooLongError(f"beside a choice of {longest} tokens, {error}") from error
    return Ready(number, case, prompts, choices, span)


def _prompts(
    model: Model, case: Case, wording: Mapping[str, Any]
) -> tuple[dict[str, Ids], tuple[int, int] | None]:
    """What each stream reads, and where the context stands; it leaves `max_new_tokens` free."""
    prompts: dict[str, Ids] = {}
    span = None
    fixed = {"context": case.prompt, "memory": case.memory_prompt}
    wanted = ["context", "memory"] if case.contexts or case.prompt is not None else ["memory"]
    missing = [name for name in wanted if fixed[name] is None]
    if missing:
        # The context's length must not matter where the context stream reads something else.
        contexts = case.contexts if "context" in missing else None
        built = model.prompts(case.question, contexts or None, **wording)
        prompts = {name: built[name].ids for name in missing}
        span = built["context"].context if "context" in missing else None
    for name in wanted:
        if (text := fixed[name]) is not None:
            prompts[name] = _verbatim(model.tokenizer, text)
            left = None if model.window is None else model.window - wording["max_new_tokens"]
            if left is not None and len(prompts[name]) > left:
                raise ContextTooLongError(
                    f"the prompt has {len(prompts[name])} tokens, the window leaves {left}, and a "
                    "prompt that the case fixes is never cut: shorten it, or what is to follow it"
                )
    return {name: prompts[name] for name in wanted}, span


def _choice(model: Model, case: Case, choice: str, wording: Mapping[str, Any]) -> Ids:
    """Ids of an answer to choose from, the same behind both prompts."""
    text = case.prompt if case.prompt is not None else case.memory_prompt
    if text is not None:
        lead = "" if text[-1:].isspace() else " "
        prompt = _verbatim(model.tokenizer, text)
        whole = _verbatim(model.tokenizer, text + lead + choice)
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return whole[len(prompt) :]
        return tuple(model.tokenizer(lead + choice, add_special_tokens=False)["input_ids"])
    form = {name: wording[name] for name in ("chat", "template")}
    return answer_ids(model.tokenizer, case.question, choice, **form)


def _verbatim(tokenizer: Any, text: str) -> Ids:
    """The text with what the tokenizer puts before it. What some put behind it (an end token)
    would end the prompt before the answer begins, so it is left out."""
    whole, bare = (tokenizer(text, add_special_tokens=flag)["input_ids"] for flag in (True, False))
    starts = (n for n in range(len(whole) + 1) if whole[n : n + len(bare)] == bare)
    return tuple(whole[: next(starts, 0) + len(bare)])


def pick(cases: Sequence[Case], split: str | None, limit: int | None, seed: int) -> list[Case]:
    """Some of the cases, in their order.

    Args:
        cases: all of them.
        split: only those of this split.
        limit: at most so many, drawn in equal shares from the states.
        seed: of the draw.

    Raises:
        InvalidParameterError: no case is of that split.
    """
    found = [case for case in cases if split is None or case.split == split]
    if cases and not found:
        there = ", ".join(dict.fromkeys(case.split for case in cases)) or "none"
        raise InvalidParameterError(f"no case is of split '{split}': there are {there}")
    if limit is None or limit >= len(found):
        return found
    states: dict[str, list[int]] = {}
    for place, case in enumerate(found):
        states.setdefault(case.state, []).append(place)
    draw = random.Random(seed)
    turns = []
    for name in sorted(states):
        draw.shuffle(states[name])
        turns += [(turn, name, place) for turn, place in enumerate(states[name])]
    return [found[place] for place in sorted(place for _, _, place in sorted(turns)[:limit])]
