"""What a question may be asked with: every option checked and every name resolved before a read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conflictkit import detectors, methods
from conflictkit.errors import EmptyInputError, InvalidParameterError, unknown_name
from conflictkit.interventions.contrast import Rule
from conflictkit.prompts import PromptTemplate
from conflictkit.sampling import Decoding
from conflictkit.stepping import Processor

Contexts = str | Sequence[str] | None
"""No context (closed book), one passage, or several in order."""

OPTIONS = ("trace", "scores", "top", "chat", "template", "truncate", "processors", "compare")

TRACED = ("jsd", "confidence-gain", "context-confidence", "memory-confidence")
"""Detectors that a trace records unless others are named."""


@dataclass(frozen=True)
class Job:
    """How a batch is to be answered, all names resolved."""

    rule: Rule
    decoding: Decoding
    scores: tuple[detectors.Detector, ...]
    top: int | None
    processors: tuple[Processor, ...]


def resolve(method: str | Rule, options: Mapping[str, Any]) -> tuple[Job, dict[str, Any]]:
    """Split the options of `Model.ask` into a job and the arguments of `Model.prompts`.

    Raises:
        UnknownNameError, InvalidParameterError: a method, parameter, detector or option.
    """
    given = dict(options)
    trace = given.pop("trace", True)
    scores = _several("scores", given.pop("scores", TRACED), str)
    top = given.pop("top", 5)
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InvalidParameterError(f"top must be a whole number of at least 1, not {top!r}")
    processors = _several("processors", given.pop("processors", ()), Callable)
    wording = {name: given.pop(name, None) for name in ("chat", "template")}
    if not isinstance(wording["template"], PromptTemplate | None):
        raise InvalidParameterError("template must be a conflictkit.prompts.PromptTemplate")
    wording["truncate"] = given.pop("truncate", False)
    rule, decoding = _choose(method, given)
    wording["max_new_tokens"] = decoding.max_new_tokens
    recorded = tuple(detectors.get(name) for name in scores) if trace else ()
    return Job(rule, decoding, recorded, top if trace else None, processors), wording


def _choose(method: str | Rule, options: dict[str, Any]) -> tuple[Rule, Decoding]:
    """Rule and decoding from a method and the keyword arguments left over."""
    if not isinstance(method, str | Rule):
        raise InvalidParameterError(f"method must be a name or a rule, not {type(method).__name__}")
    known = Decoding.__dataclass_fields__
    decoding = {name: value for name, value in options.items() if name in known}
    params = {name: value for name, value in options.items() if name not in known}
    stop = decoding.pop("stop", None) or ()
    decoding["stop"] = (stop,) if isinstance(stop, str) else _several("stop", stop, str)
    if isinstance(decoding.get("seed"), Sequence):
        decoding["seed"] = tuple(decoding["seed"])
    rule = methods.parse(method) if isinstance(method, str) else method
    own = set(rule.__dataclass_fields__)
    for name in params:
        if name not in own:
            everything = {*own, *known, *OPTIONS}
            raise unknown_name(f"option or parameter of method '{rule.name}'", name, everything)
    if params:
        if not isinstance(method, str):
            raise InvalidParameterError(f"parameters {sorted(params)} go into the rule itself")
        rule = methods.parse(method, **params)
    set_ = {name: value for name, value in decoding.items() if value is not None}
    return rule, Decoding(**set_)


def pair(
    questions: Sequence[str], contexts: Sequence[Contexts] | None
) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(questions, str) or isinstance(contexts, str):
        raise InvalidParameterError("ask_batch takes lists: one question and context per row")
    questions = list(questions)
    given = [None] * len(questions) if contexts is None else list(contexts)
    if len(given) != len(questions) or not given:
        raise InvalidParameterError(
            f"{len(questions)} questions but {len(given)} contexts: one of each per row"
        )
    return [(question, passages_of(row)) for question, row in zip(questions, given, strict=True)]


def passages_of(context: Contexts) -> tuple[str, ...]:
    if context is None:
        return ()
    if isinstance(context, str):
        return (context,)
    passages = _several("context", context, str)
    if not passages:
        raise EmptyInputError("the list of passages is empty: pass None to ask closed book")
    return passages


def _several(name: str, values: Any, kind: Any) -> tuple[Any, ...]:
    """`values` as a tuple, each of the kind wanted."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidParameterError(f"{name} must be a list, not {type(values).__name__}")
    several = tuple(values)
    for value in several:
        if not isinstance(value, kind):
            raise InvalidParameterError(f"{name} holds {type(value).__name__}, not {kind.__name__}")
    return several


def closed_book(job: Job) -> Job:
    """Without a context there is one stream, and nothing to compare."""
    alone = tuple(score for score in job.scores if score.needs == ("memory",))
    return replace(job, rule=methods.build("memory"), scores=alone)


def seeded(job: Job, places: Sequence[int], rows: int) -> Job:
    """The job for some rows of a batch, each with the seed of its place in the whole batch."""
    seed, n = job.decoding.seed, job.decoding.n
    if job.decoding.temperature == 0 or len(places) == rows or seed is None:
        return job
    if isinstance(seed, tuple):
        if len(seed) != rows:
            raise InvalidParameterError(f"{len(seed)} seeds for {rows} rows")
        seeds = tuple(seed[place] for place in places)
    else:
        seeds = tuple(seed + place * n for place in places)
    return replace(job, decoding=replace(job.decoding, seed=seeds))
