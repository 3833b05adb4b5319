"""What every method that edits activations shares: its heads as text, its edits by stream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch

from conflictkit.errors import InvalidParameterError, UnsupportedError
from conflictkit.interventions.activations import Edit, Handle
from conflictkit.interventions.contrast import Rule, param, weights
from conflictkit.interventions.heads import Head
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.types import Mix, State, Step

SOURCES = ("context", "memory")
MOST_HEADS = 1000
_HEAD = re.compile(r"(\d{1,4})\.(\d{1,4})")


@dataclass(frozen=True)
class Prompts:
    """What an edit may have to know of the prompts that it acts on.

    Attributes:
        lengths: tokens of each prompt; None: unknown.
        spans: `(start, stop)` of each row's context, in its tokens without padding; None: unknown.
    """

    lengths: Sequence[int] | None = None
    spans: Sequence[tuple[int, int]] | None = None


@dataclass(frozen=True)
class EditRule(Rule):
    """The context stream with changed activations speaks for the context.

    A subclass names the analysis that its heads come from (`ranked_by`) and says what it changes
    in which stream (`edits`). Its heads are text, `layer.head` with `+` between them, so that they
    fit a command line and a policy; without them `settled` takes them from a ranking.
    """

    needs: ClassVar[tuple[str, ...]] = ("edited",)
    ranked_by: ClassVar[str] = ""
    also_by: ClassVar[tuple[str, ...]] = ()
    """Other analyses that tell the same."""
    lists: ClassVar[tuple[str, ...]] = ("heads",)
    """Names of the parameters that hold heads."""
    by_name: ClassVar[bool] = True
    """Whether the names of its heads are all that it needs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.lists:
            object.__setattr__(self, name, text_of(heads_of(self.name, getattr(self, name))))

    @property
    def is_settled(self) -> bool:
        """Whether it knows its heads, those of one list at least."""
        return any(getattr(self, name) for name in self.lists)

    def settled(self, ranking: HeadRanking) -> Self:
        """The same with heads from a ranking, where it has none yet.

        Raises:
            InvalidParameterError: the ranking is of another kind, or names too few heads.
        """
        if self.is_settled:
            return self
        if not self.fits(ranking):
            raise InvalidParameterError(
                f"{self.name} takes its heads from a ranking by {self.ranked_by}, this one is by "
                f"{ranking.by}: conflictkit rank-heads --by {self.ranked_by}"
            )
        found = self.told_by(ranking)
        empty = [name for name, text in found.items() if not text]
        if len(empty) == len(found):
            raise InvalidParameterError(
                f"{self.name}: the ranking has no head to take for {' and '.join(empty)}"
            )
        return replace(self, **{n: t for n, t in found.items() if not getattr(self, n)})

    @classmethod
    def fits(cls, ranking: HeadRanking) -> bool:
        """Whether heads can be taken from this ranking."""
        return ranking.by.partition("?")[0] in (cls.ranked_by, *cls.also_by)

    def choose(self, ranking: HeadRanking) -> Mapping[str, Sequence[Head]]:
        """Parameter -> the heads that a ranking of the right kind gives."""
        raise NotImplementedError

    def told_by(self, ranking: HeadRanking) -> Mapping[str, str]:
        """Parameter -> its text, from a ranking of the right kind."""
        return {name: text_of(heads) for name, heads in self.choose(ranking).items()}

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """Stream -> what is changed in it.

        Args:
            prompts: the prompts of the run.
            strength: 0: nothing; 1: as published.
        """
        raise NotImplementedError

    def __call__(self, step: Step, state: State) -> Mix:
        """The edited stream as it is."""
        return Mix(*weights(step, 1.0, 0.0), edited=torch.ones_like(step.invalid))

    def attach(
        self,
        model: Any,
        *,
        prompt_lengths: Sequence[int] | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Handle:
        """Let it act in somebody else's loop: `with rule.attach(model): model.generate(...)`.

        Args:
            model: a transformers model.
            prompt_lengths: tokens of each prompt; some methods need it.
            spans: where each prompt's context stands, for methods that steer attention to it.

        Raises:
            UnsupportedError: the method reads several streams: pass
                `custom_generate=conflictkit.decode` to `generate`.
            InvalidParameterError: heads or spans that are not known.
        """
        if self.needs != ("edited",):
            raise UnsupportedError(
                f"{self.name} reads the streams {' and '.join(self.needs)}: use "
                f"generate(..., custom_generate=conflictkit.decode, method='{self.name}')"
            )
        known = self.checked()
        planned = known.edits(Prompts(prompt_lengths, spans))
        return Handle(model, planned["edited"], prompt_lengths=prompt_lengths)

    def checked(self) -> Self:
        """Itself, if it knows its heads.

        Raises:
            InvalidParameterError: it does not; the message says how to find some.
        """
        if self.is_settled:
            return self
        named = f", or name them: {self.lists[0]}=LAYER.HEAD+LAYER.HEAD" if self.by_name else ""
        raise InvalidParameterError(
            f"{self.name}: which heads? Rank them (conflictkit rank-heads --model MODEL --cases "
            f"FILE --by {self.ranked_by} --out heads.json) and pass the file (--heads heads.json)"
            f"{named}"
        )


def heads_param(doc: str) -> Any:
    """Declare a parameter that holds heads."""
    return param("", doc=f"{doc}: layer.head+layer.head; empty: from a ranking")


def heads_of(owner: str, text: str) -> tuple[Head, ...]:
    """The heads that a text names, each once.

    Raises:
        InvalidParameterError: not `layer.head+layer.head`.
    """
    parts = [part for part in re.split(r"[+\s]", text) if part]
    found = [_HEAD.fullmatch(part) for part in parts[: MOST_HEADS + 1]]
    if not all(found) or len(parts) > MOST_HEADS:
        raise InvalidParameterError(
            f"{owner}: cannot read heads {text[:60]!r}: write LAYER.HEAD+LAYER.HEAD, as in 3.5+4.1"
        )
    return tuple(dict.fromkeys((int(one[1]), int(one[2])) for one in found if one is not None))


def text_of(heads: Sequence[Head]) -> str:
    """Heads as text, the other way round."""
    return "+".join(f"{layer}.{head}" for layer, head in heads)
