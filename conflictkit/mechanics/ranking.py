"""Rank the heads of a model by how much they carry context and memory.

>>> import conflictkit as ck
>>> from conflictkit.mechanics.ranking import rank
>>> model = ck.load("atlas")
>>> ranking = rank(model, ck.atlas.cases("train", "resistance")[:4], by="attribution")
>>> (ranking.layers, ranking.heads), len(ranking.top("memory", 3))
((6, 8), 3)

Every analysis gives each case a table `[layers, heads]`; a ranking is their mean, with its standard
error. With `out=` the tables are kept while the run goes on, and a run that was cut short goes on
where it stopped.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conflictkit import __version__, models
from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    LogitsError,
    OutputError,
    unknown_name,
)
from conflictkit.evaluation.cases import cases_hash
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.mechanics import attention, attribution, focus, items, juice, patching
from conflictkit.mechanics.kept import Kept, Tables, rounded
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.mechanics.items import Item
    from conflictkit.toolkit import Model

Progress = Callable[[int, int], None]
"""Called with the items finished and their number, before the first and after each."""


@dataclass(frozen=True)
class Analysis:
    """One way to give a head its scores.

    Attributes:
        build: a model and cases -> what is read, each with its `case_id`, and why cases were left
            out -> how many.
        score: a model and one of those -> name -> `[layers, heads]`.
        choices: option of `score` -> the values that it may have, the default first.
        derive: name -> `[items, layers, heads]` to the scores (`context`, `memory`) of the same
            shape, and JuICE's lists; None: they are the scores.
        train: model, items, `seed=` and `progress=` to directions, once all items are scored.
    """

    build: Callable[[Model, Sequence[Case]], tuple[Sequence[Any], Mapping[str, int]]]
    score: Callable[..., Tables]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    derive: Callable[[Tables], tuple[Tables, juice.Lists]] | None = None
    train: Callable[..., Tensor] | None = None


def _with_corrupted(model: Model, cases: Sequence[Case]) -> tuple[list[Item], dict[str, int]]:
    return items.build(model, cases, require_corrupted=True)


def _attribution(model: Model, item: Item, norm: Any) -> Tables:
    (towards_memory,) = attribution.attribution(model, [item], norm=norm)
    return {"context": -towards_memory, "memory": towards_memory}


def _attention_mass(model: Model, item: Item) -> Tables:
    return {"context": attention.attention_mass(model, [item])[0]}


def _focus(model: Model, item: Item) -> Tables:
    return {"context": attention.attention_mass(model, [item], answers=[item.answer])[0]}


def _activation_patching(model: Model, item: Item) -> Tables:
    return {
        "context": patching.activation_patching(model, [item], corrupted="no_context")[0],
        "memory": patching.activation_patching(model, [item], corrupted="no_memory")[0],
    }


def _path_patching(model: Model, item: Item, measure: Any, mlps: Any = "frozen") -> Tables:
    memory, context = patching.path_patching(model, [item], mlps=mlps, measure=measure)
    return {"context": context[0], "memory": memory[0]}


def _juice(model: Model, triple: juice.Triple, **strengths: Any) -> Tables:
    found = juice.effects(model, [triple], **strengths)
    both = {"up": juice.means(found.up), "down": juice.means(found.down)}
    return {
        f"{way} {prompt}": table[..., number]
        for way, table in both.items()
        for number, prompt in enumerate(juice.PROMPTS)
    }


def _juice_lists(tables: Tables, slack: float = 0.0) -> tuple[Tables, juice.Lists]:
    up, down = (
        torch.stack([tables[f"{way} {prompt}"] for prompt in juice.PROMPTS], -1)
        for way in ("up", "down")
    )
    lists = juice.rank(up.mean(0), down.mean(0), slack)
    return {"context": down.sum(-1), "memory": up.sum(-1)}, lists


_MEASURE = {"measure": ("probability", "logit")}
_EXACT = partial(_path_patching, mlps="recomputed")
_GENTLE = partial(_juice, ups=juice.GENTLE_UP, downs=juice.GENTLE_DOWN)
ANALYSES: dict[str, Analysis] = {
    "attribution": Analysis(items.build, _attribution, {"norm": ("frozen", "ignored")}),
    "attention-mass": Analysis(items.build, _attention_mass),
    "focus": Analysis(items.build, _focus, train=focus.focus_directions),
    "activation-patching": Analysis(_with_corrupted, _activation_patching),
    "path-patching": Analysis(_with_corrupted, _path_patching, _MEASURE),
    "path-patching-exact": Analysis(_with_corrupted, _EXACT, _MEASURE),
    "juice": Analysis(juice.build, _juice, derive=_juice_lists),
    "juice-gentle": Analysis(juice.build, _GENTLE, derive=partial(_juice_lists, slack=juice.SLACK)),
}
"""What `by` may be. Scores of `juice`: what turning a head up (memory), and down (context), adds to
the memory answer's probability, summed over its three prompts."""
NOT_DRAWN = "not drawn"


def rank(
    model: Model,
    cases: Sequence[Case],
    *,
    by: str = "path-patching",
    limit: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> HeadRanking:
    """Rank every head of a model.

    Args:
        model: whose heads.
        cases: with a context answer and a memory answer; those that are not used are counted in
            `HeadRanking.dropped`. They also give the names for corrupted prompts: hand in more than
            the limit.
        by: an analysis of `ANALYSES`, with options as `attribution?norm=ignored`.
        limit: read at most so many, drawn from those that can be used.
        seed: of the draw.
        out: file to write. Beside it, `OUT.partial` keeps what is finished until then; the same
            call goes on from there.
        overwrite: replace `out`, and a partial file of another run.
        progress: see `Progress`.

    Raises:
        UnknownNameError, InvalidParameterError: no such analysis or option.
        EmptyInputError: no case can be used; the message says why.
        OutputError, ResumeError: `out` is there already, or its partial file is of another run.
        LogitsError: an analysis gave a number that is not finite.
        ConflictKitError: what the analysis raises.
    """
    analysis, name, options = check_request(by, out, overwrite=overwrite)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidParameterError(f"limit must be a whole number from 1, not {limit!r}")
    found, dropped = analysis.build(model, cases)
    if not found:
        raise EmptyInputError(f"none of {len(cases)} cases can be used: {_reasons(dropped)}")
    found, dropped = _drawn(found, dict(dropped), limit, seed)
    digest = cases_hash(cases)
    done: dict[int, dict[str, Tensor]] = {}
    with ExitStack() as stack:
        kept: Kept | None = None
        if out is not None:
            settings = _settings(model, name, digest, len(found), seed)
            ids = [item.case_id for item in found]
            path = unfinished(out)
            kept = stack.enter_context(Kept(path, settings, ids, overwrite=overwrite))
            done = kept.done
        told = _Told(progress, len(found), analysis.train is not None)
        told(len(done))
        for number, item in enumerate(found):
            if number in done:
                continue
            tables = _one(analysis, model, item, options)
            if kept is not None:
                kept.add(number, tables)
            else:
                done[number] = rounded(tables)
            told(len(done))
        tables = [done[number] for number in range(len(found))]
        stacked = {one: torch.stack([table[one] for table in tables]) for one in tables[0]}
        directions: tuple[Any, ...] | None = None
        if analysis.train is not None:
            trained = analysis.train(model, found, seed=seed, progress=told.training)
            layers = {str(layer): table for layer, table in enumerate(trained)}
            directions = tuple(_shortened(layers).values())
        ranking = HeadRanking(
            by=name,
            model=model.name,
            fingerprint=model.fingerprint,
            cases=len(found),
            cases_hash=digest,
            dropped=dropped,
            seed=seed,
            directions=directions,
            **_means(analysis, stacked),
        )
        if out is not None and kept is not None:
            ranking.write(out)
            kept.discard()
    return ranking


class _Told:
    """Progress over the items, and over what is trained on them when all are scored."""

    def __init__(self, progress: Progress | None, items: int, trains: bool) -> None:
        self._progress, self._items = progress, items
        self._total = items * (1 + focus.EPOCHS if trains else 1)

    def __call__(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)

    def training(self, done: int, _: int) -> None:
        self(self._items + done)


def check_request(
    by: str, out: str | os.PathLike[str] | None = None, *, overwrite: bool = False
) -> tuple[Analysis, str, dict[str, str]]:
    """What can be found wrong with a request before a model is loaded; arguments as `rank`.

    Returns:
        The analysis, its whole name, and its options.

    Raises:
        ConflictKitError: as `rank`.
    """
    name, _, text = by.partition("?")
    if name not in ANALYSES:
        raise unknown_name("analysis", name, ANALYSES)
    analysis = ANALYSES[name]
    options = {option: values[0] for option, values in analysis.choices.items()}
    for part in text.split("&") if text else ():
        option, _, value = part.partition("=")
        if option not in options:
            raise unknown_name(f"option of {name}", option, options)
        if value not in analysis.choices[option]:
            raise unknown_name(f"{option} of {name}", value, analysis.choices[option])
        options[option] = value
    if out is not None:
        path = Path(os.path.realpath(out))
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder '{path.parent}' to write to")
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write '{out}': it is not a regular file")
        # A run that was killed between its last two moves left both: it goes on.
        if path.exists() and not overwrite and not unfinished(out).exists():
            raise OutputError(f"'{out}' is there already: name another --out or add --overwrite")
    given = {o: v for o, v in options.items() if v != analysis.choices[o][0]}
    whole = name + ("?" + "&".join(f"{o}={v}" for o, v in given.items()) if given else "")
    return analysis, whole, options


def unfinished(out: str | os.PathLike[str]) -> Path:
    """Where a run to `out` keeps what is finished."""
    path = Path(os.path.realpath(out))
    return path.with_name(path.name + ".partial")


def _one(
    analysis: Analysis, model: Model, item: Any, options: Mapping[str, str]
) -> dict[str, Tensor]:
    found = analysis.score(model, item, **options)
    tables = {name: table.detach().double().cpu() for name, table in found.items()}
    for name, table in tables.items():
        if not table.isfinite().all():
            raise LogitsError(f"case '{item.case_id}': a {name} score is not finite")
    return tables


def _drawn(
    found: Sequence[Any], dropped: dict[str, int], limit: int | None, seed: int
) -> tuple[Sequence[Any], dict[str, int]]:
    if limit is None or limit >= len(found):
        return found, dropped
    places = sorted(random.Random(seed).sample(range(len(found)), limit))
    return [found[place] for place in places], dropped | {NOT_DRAWN: len(found) - limit}


def _settings(model: Model, by: str, cases: str, count: int, seed: int) -> dict[str, Any]:
    """What decides every table; another value makes another run."""
    return {
        "heads": "partial",
        "by": by,
        "model": model.fingerprint,
        "configuration": models.config_fingerprint(model.model),
        "tokenizer": models.tokenizer_fingerprint(model.tokenizer),
        "dtype": str(model.model.dtype),
        "cases": cases,
        "items": count,
        "seed": seed,
        "conflictkit": __version__,
    }


def _means(analysis: Analysis, stacked: Tables) -> dict[str, Any]:
    """Scores, standard errors and lists of a ranking, from `[items, layers, heads]`."""
    lists: juice.Lists | None = None
    if analysis.derive is not None:
        stacked, lists = analysis.derive(stacked)
    count = len(next(iter(stacked.values())))
    errors = {}
    if count > 1:
        errors = {n: one.std(0, correction=1) / math.sqrt(count) for n, one in stacked.items()}
    return {
        "scores": _shortened({name: one.mean(0) for name, one in stacked.items()}),
        "errors": _shortened(errors),
        "enlarge": None if lists is None else lists.enlarge,
        "suppress": None if lists is None else lists.suppress,
    }


def _shortened(tables: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: table.tolist() for name, table in rounded(tables).items()}


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "there are none"
