"""What a feature of an autoencoder is about: where it fires, what it writes, who wins then.

>>> import conflictkit as ck
>>> from conflictkit.interventions.sae import SAE
>>> from conflictkit.mechanics.feature_report import describe
>>> model = ck.load("atlas")
>>> sae = SAE.load(ck.atlas.saes()[0])
>>> report = describe(model, ck.atlas.cases("train", "resistance")[:40], sae, [5])
>>> len(report.features), report.features[0].id
(1, 5)
>>> report.to_html().startswith("<!doctype html>")
True
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conflictkit import anatomy
from conflictkit.errors import EmptyInputError, InvalidParameterError
from conflictkit.evaluation.asking import prepare
from conflictkit.interventions.sae import SAE
from conflictkit.mechanics._runs import network
from conflictkit.mechanics.capture import capture
from conflictkit.mechanics.captured import Captured
from conflictkit.mechanics.probing import labelled
from conflictkit.scoring.run import Progress
from conflictkit.trace.decode import decode
from conflictkit.trace.text import visible
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

_BEFORE, _AFTER = 12, 6
"""Tokens that an example shows around the one that the feature fires at most on."""


@dataclass(frozen=True)
class Example:
    """A place in a prompt where a feature fires.

    Attributes:
        case: id of the case.
        position: of the token it fires at most on.
        value: its activation there.
        tokens: `(text, activation)` of that token and of those around it.
        at: index of that token among them.
    """

    case: str
    position: int
    value: float
    tokens: tuple[tuple[str, float], ...]
    at: int


@dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
        id: its number.
        fires: share of all prompt tokens that it fires at.
        context, memory: mean activation at the prompt's last position, where the plain answer
            followed the context, or memory; 0 without such cases.
        context_fires, memory_fires: share of those prompts where it fires there.
        raised, lowered: `(token, logit)`: what its decoder row adds to the unembedding most and
            least, for an activation of 1, the final norm's scale left out.
        examples: where it fires most, at most one of each case.
    """

    id: int
    fires: float
    context: float
    memory: float
    context_fires: float
    memory_fires: float
    raised: tuple[tuple[str, float], ...]
    lowered: tuple[tuple[str, float], ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class FeatureReport:
    """Features of one autoencoder.

    Attributes:
        model, sae, layer: whose.
        cases: `(followed the context, followed memory)`.
        features: in the order asked for.
    """

    model: str
    sae: str
    layer: int
    cases: tuple[int, int]
    features: tuple[Feature, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def _repr_html_(self) -> str:
        # In a frame of its own, so that a notebook around it stays as it is.
        style = "width: 100%; height: 640px; border: 0"
        return f'<iframe srcdoc="{escape(self.to_html())}" style="{style}"></iframe>'

    def to_html(self) -> str:
        """One page that needs no network."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("conflictkit.mechanics"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["visible"] = visible
        return environment.get_template("features.html").render(report=self)


def describe(
    model: Model,
    cases: Sequence[Case],
    sae: SAE,
    features: Sequence[int],
    *,
    examples: int = 6,
    tokens: int = 8,
    keep: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> FeatureReport:
    """Read conflicts and say what features do in them.

    Args:
        model: as `conflictkit.load` returns it.
        cases: conflicts, answered by the model itself.
        sae: whose features.
        features: their numbers.
        examples, tokens: how many of either to show.
        keep: folder for answers and activations of every prompt token; None: nothing is kept.
        progress: called while cases are answered and read.
        options: `chat`, `template`, `truncate`, `max_new_tokens`, as in `Model.ask`.

    Raises:
        SAEError: a feature that there is not, or another model's autoencoder.
        EmptyInputError: no conflict among the cases.
        ConflictKitError: what answering and capturing raise.
    """
    if not features or examples < 1 or tokens < 1:
        raise InvalidParameterError("name at least one feature, one example and one token")
    body = anatomy.find(network(model))
    sae.check(model.name, model.fingerprint, body.width, len(body.layers))
    few = sae.select(list(features))
    with ExitStack() as stack:
        folder = Path(keep or stack.enter_context(tempfile.TemporaryDirectory()))
        chosen, labels, _ = labelled(model, cases, "source", folder, options, progress)
        if not chosen:
            raise EmptyInputError("no conflict among the cases that either source won")
        wording = {k: v for k, v in options.items() if k in ("chat", "template", "truncate")}
        kept = capture(
            model, chosen, folder / "prompts", layers=[sae.layer], positions="prompt",
            progress=progress, **wording,
        )  # fmt: skip
        codes = _codes(kept, few)
        rows, places = kept.places()
    ends = torch.cat([rows[1:] != rows[:-1], torch.tensor([True])])
    final, sides = codes[ends], labels[rows[ends]]
    texts = _Texts(model, chosen, wording)
    gain = getattr(body.norm, "weight", None)
    rows_out = few.decoder if gain is None else few.decoder * gain.detach().float().cpu()
    effects = rows_out @ _weight(body.unembed).T
    made = []
    for column, number in enumerate(features):
        mine = codes[:, column]
        context, memory = final[sides][:, column], final[~sides][:, column]
        made.append(
            Feature(
                id=number,
                fires=float((mine > 0).float().mean()),
                context=_mean(context),
                memory=_mean(memory),
                context_fires=_mean((context > 0).float()),
                memory_fires=_mean((memory > 0).float()),
                raised=_tokens(model, effects[column], tokens, 1),
                lowered=_tokens(model, -effects[column], tokens, -1),
                examples=_examples(mine, rows, places, texts, examples),
            )
        )
    counts = int(labels.sum()), int((~labels).sum())
    return FeatureReport(model.name, sae.source, sae.layer, counts, tuple(made))


def _codes(kept: Captured, few: SAE) -> Tensor:
    """`[tokens, features]`, part by part: the stream of all tokens is never held at once."""
    name = f"residual.{few.layer}"
    return torch.cat([few.code(part[name]) for part in kept.parts(name)])


def _weight(unembed: Any) -> Tensor:
    return unembed.weight.detach().float().cpu()


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _tokens(model: Model, effects: Tensor, count: int, sign: int) -> tuple[tuple[str, float], ...]:
    best = effects.topk(min(count, len(effects)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((decode(model.tokenizer, [one]), sign * value) for one, value in pairs)


class _Texts:
    """The prompts' tokens as text, made when they are shown."""

    def __init__(self, model: Model, cases: Sequence[Case], wording: dict[str, Any]) -> None:
        self._model, self._cases, self._wording = model, cases, wording

    def of(self, row: int, start: int, stop: int) -> tuple[str, list[str]]:
        """The case's id, and the texts of some of its prompt's tokens."""
        case = self._cases[row]
        ready = prepare(self._model, case, row, {**self._wording, "max_new_tokens": 0})
        ids = ready.prompts["context"][start:stop]
        return case.id, [decode(self._model.tokenizer, [one]) for one in ids]


def _examples(
    mine: Tensor, rows: Tensor, places: Tensor, texts: _Texts, count: int
) -> tuple[Example, ...]:
    """Where it fires most, at most once in a case."""
    found: list[Example] = []
    taken: set[int] = set()
    for index in mine.argsort(descending=True, stable=True).tolist():
        row, place = int(rows[index]), int(places[index])
        if len(found) == count or mine[index] <= 0:
            break
        if row in taken:
            continue
        taken.add(row)
        start = max(0, place - _BEFORE)
        case, words = texts.of(row, start, place + _AFTER + 1)
        first = index - (place - start)
        values = mine[first : first + len(words)].tolist()
        pairs = tuple(zip(words, values, strict=True))
        found.append(Example(case, place, float(mine[index]), pairs, place - start))
    return tuple(found)
