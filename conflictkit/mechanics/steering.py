"""Fitting methods that steer representations: SpARE, CAA, RepE, ITI, and where a model declines.

>>> import conflictkit as ck
>>> from conflictkit.mechanics.steering import fit_steering
>>> model = ck.load("atlas")
>>> cases = ck.atlas.cases("train", "resistance")[:48]
>>> fitted = fit_steering(model, cases, "caa", layers=[3])
>>> fitted.policy.controller.name, sorted(fitted.about)[:3]
('caa', ['budget', 'cases', 'dropped'])
>>> _ = model.ask("What is the capital of Poland?", "The capital of Poland is London.",
...               policy=fitted.policy)

The model answers conflicts by itself; runs that followed the context are told from those that
followed memory in the stream behind some layers, at the prompt's last position. Directions are then
scaled so that alpha = 1 moves the next token's distribution by the same KL divergence (`budget`)
whatever the method, the mean over cases and over both ways.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from conflictkit import anatomy, methods
from conflictkit.controller import Controller
from conflictkit.detectors import probe
from conflictkit.errors import EmptyInputError, InvalidParameterError, unknown_name
from conflictkit.evaluation.asking import prepare
from conflictkit.interventions.activations import Handle
from conflictkit.interventions.directions import Directions
from conflictkit.interventions.edited import DirectionRule, Prompts, RefusalRegion, SpARE
from conflictkit.interventions.edited import spare as rule
from conflictkit.interventions.sae import SAE, by_layer
from conflictkit.mechanics import spare
from conflictkit.mechanics._runs import batches, network, read
from conflictkit.mechanics.capture import capture
from conflictkit.mechanics.probing import labelled
from conflictkit.policy import ModelTie, Policy
from conflictkit.prompts import answer_ids
from conflictkit.scoring.run import Progress
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

METHODS = ("spare", "caa", "repe", "iti")
REGION = ("corrected", "released")
BUDGET = 0.5
"""Nats."""
FEWEST = 8
"""Conflicts that went either way, or pairs, that a fit needs."""
_PAIRS, _STRENGTH, _CASES = 4096, 10.0, 96
_TRIES, _CLOSE, _FAR = 24, 0.01, 0.1
_WORDING = ("chat", "template", "truncate")


@dataclass(frozen=True)
class Fitted:
    """A method fitted to a model.

    Attributes:
        policy: the method with its data, tied to the model; `save` it, or pass it as `policy=`.
        about: what it was made from, JSON data.
    """

    policy: Policy
    about: Mapping[str, Any]


def fit_steering(
    model: Model,
    cases: Sequence[Case],
    method: str,
    *,
    layers: Sequence[int] | None = None,
    sae: str | None = None,
    share: float = 0.07,
    variant: str = "corrected",
    budget: float = BUDGET,
    keep: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Fitted:
    """Fit a method to conflicts.

    Args:
        model: as `conflictkit.load` returns it.
        cases: those in which context and memory disagree are used.
        method: one of `METHODS`.
        layers: which to steer, from 0; None: the middle third, for SpARE those of its
            autoencoders.
        sae: for SpARE: where they are (`conflictkit.interventions.sae.by_layer`, joined by `+`);
            None: Atlas's own.
        share: for SpARE: p, the share of mutual information that its features hold.
        variant: for SpARE: `corrected` leaves dead features out, `released` keeps them.
        budget: for the others: mean KL divergence in nats that alpha = 1 moves the next token by.
        keep: folder for answers and activations: the same call then goes on where it was cut
            short, and other methods take them from there. None: nothing is kept.
        seed: of pairs and of the noise that breaks ties in the mutual information.
        progress: called while cases are answered and read.
        options: `chat`, `template`, `truncate`, `max_new_tokens`, as in `Model.ask`.

    Raises:
        UnknownNameError, InvalidParameterError, SAEError: a method, layer, share, budget or
            autoencoder.
        EmptyInputError: too few conflicts went either way.
        ConflictKitError: what answering and capturing raise.
    """
    if method not in METHODS:
        raise unknown_name("method to fit", str(method), METHODS)
    if variant not in spare.VARIANTS:
        raise unknown_name("variant", str(variant), spare.VARIANTS)
    if not 0 < share < 1:
        raise InvalidParameterError(f"share must lie between 0 and 1, not {share!r}")
    if not 0 < budget < 20:
        raise InvalidParameterError(f"budget must lie between 0 and 20 nats, not {budget!r}")
    body = anatomy.find(network(model))
    depth = len(body.layers)
    places = by_layer((sae or "atlas").split("+")) if method == "spare" else {}
    if layers is None:
        layers = sorted(places) or list(range(depth // 3, depth - depth // 3))
    for layer in layers if method != "spare" else ():
        if type(layer) is not int or not 0 <= layer < depth:
            raise InvalidParameterError(f"the model has no layer {layer!r}: it has {depth}")
    saes = {}
    for layer in layers if method == "spare" else ():
        if layer not in places:
            raise InvalidParameterError(f"spare: no autoencoder of layer {layer}")
        saes[layer] = SAE.load(places[layer])
        saes[layer].check(model.name, model.fingerprint, body.width, depth)
    with ExitStack() as stack:
        folder = Path(keep or stack.enter_context(tempfile.TemporaryDirectory()))
        chosen, labels, dropped = labelled(model, cases, "source", folder, options, progress)
        _both(labels)
        wording = {k: v for k, v in options.items() if k in _WORDING}
        kept = capture(
            model, chosen, folder / _named(layers), layers=layers, progress=progress, **wording
        )
        rows = kept.places()[0].tolist()
        chosen, labels = [chosen[row] for row in rows], labels[rows]
        streams = {layer: kept.values("residual", layer) for layer in layers}
    about = {
        "method": method, "seed": seed, "layers": list(layers), "dropped": dict(dropped),
        "cases": {"context": int(labels.sum()), "memory": int((~labels).sum())},
    }  # fmt: skip
    tie = ModelTie(model.name, model.fingerprint)
    if method == "spare":
        sure = _confidence(model, chosen, labels, wording)
        made, counts = _spare(saes, streams, labels, sure, share, variant, seed)
        found: Any = replace(made, sae=sae or "atlas", digest=rule.digest_of(_rows_of(made, saes)))
        about |= {"share": share, "variant": variant, "features": counts}
    else:
        vectors = {
            layer: _DIRECTIONS[method](values, labels, seed) for layer, values in streams.items()
        }
        raw = Directions(vectors)
        scaled, moved = _within(model, chosen[:_CASES], method, raw, budget, wording)
        found = methods.build(method, directions=str(scaled))
        about |= {"budget": budget, "kl": moved, "norms": scaled.norms}
    return Fitted(Policy(Controller(found), tie), about)


def fit_refusal(
    model: Model,
    answerable: Sequence[Case],
    refused: Sequence[Case],
    *,
    share: float = 0.5,
    variant: str = "corrected",
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Fitted:
    """Fit `refusal-region`: where prompts that are declined lie, from where answerable ones lie.

    Args:
        model: as `conflictkit.load` returns it.
        answerable, refused: as many cases each; the i-th of both make a pair.
        share: f, the share of dimensions that is kept.
        variant: `corrected`: a layer's own output; `released`: what the layer read, added behind
            it (a slip of one layer).
        progress: called while cases are read.
        options: `chat`, `template`, `truncate`, as in `Model.ask`.

    Raises:
        UnknownNameError, InvalidParameterError, EmptyInputError: a value, or too few pairs.
    """
    if variant not in REGION:
        raise unknown_name("variant", str(variant), REGION)
    if not 0 < share <= 1:
        raise InvalidParameterError(f"share must lie between 0 and 1, not {share!r}")
    count = min(len(answerable), len(refused))
    if count < FEWEST:
        raise EmptyInputError(f"{count} pairs of cases: {FEWEST} are needed")
    depth = len(anatomy.find(network(model)).layers)
    layers = list(range(depth))
    with tempfile.TemporaryDirectory() as folder:
        both = []
        for name, cases in (("answerable", answerable), ("refused", refused)):
            kept = capture(
                model, cases[:count], Path(folder) / name, layers=layers, progress=progress,
                **options,
            )  # fmt: skip
            if len(kept.places()[0]) < count:
                raise InvalidParameterError(f"some of the {name} cases cannot be asked")
            both.append(torch.stack([kept.values("residual", layer) for layer in layers]))
    vectors = pattern((both[0] - both[1]).double(), share)
    behind = {
        layer + (variant == "released"): vector
        for layer, vector in enumerate(vectors)
        if layer + (variant == "released") < depth
    }
    found = RefusalRegion(directions=str(Directions(behind)))
    about = {"method": found.name, "pairs": count, "share": share, "variant": variant}
    return Fitted(Policy(Controller(found), ModelTie(model.name, model.fingerprint)), about)


def pattern(differences: Tensor, share: float) -> Tensor:
    """Mean differences `[layers, width]` in the dimensions that vary least, 0 elsewhere (RoleRef).

    Args:
        differences: `[layers, pairs, width]`.
        share: of the dimensions that are kept.

    Raises:
        InvalidParameterError: so small a share that no dimension is left.
    """
    spread = differences.var(1, correction=0)
    if (count := int(share * differences.shape[-1])) < 1:
        raise InvalidParameterError(f"a share of {share:g} keeps none of the dimensions")
    least = spread.argsort(dim=-1, stable=True)[:, :count]
    kept = torch.zeros_like(spread, dtype=torch.bool).scatter(-1, least, value=True)
    return torch.where(kept, differences.mean(1), 0.0)


def _named(layers: Sequence[int]) -> str:
    return "layers-" + "-".join(map(str, layers))


def _both(labels: Tensor) -> None:
    sides = int(labels.sum()), int((~labels).sum())
    if min(sides) < FEWEST:
        raise EmptyInputError(
            f"{sides[0]} conflicts went with the context and {sides[1]} with memory: {FEWEST} of "
            "either are needed"
        )


def _mean_difference(values: Tensor, labels: Tensor, _: int) -> Tensor:
    return values[labels].double().mean(0) - values[~labels].double().mean(0)


def _principal(values: Tensor, labels: Tensor, seed: int) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    sides = [values[labels == side].double() for side in (True, False)]
    picks = [torch.randint(len(one), (_PAIRS,), generator=drawn) for one in sides]
    pairs = sides[0][picks[0]] - sides[1][picks[1]]
    # Differences and their opposites have the mean 0: their component is that of the moments.
    axis = torch.linalg.eigh(pairs.T @ pairs)[1][:, -1]
    return axis * (pairs @ axis).mean()


def _weights(values: Tensor, labels: Tensor, seed: int) -> Tensor:
    weights, _ = probe.fit(values, labels, strength=_STRENGTH, seed=seed)
    axis = weights.double() / weights.double().norm()
    return axis * (values.double() @ axis).std(correction=0)


_DIRECTIONS: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "caa": _mean_difference,
    "repe": _principal,
    "iti": _weights,
}


def _spare(
    saes: Mapping[int, SAE],
    streams: Mapping[int, Tensor],
    labels: Tensor,
    sure: Tensor,
    share: float,
    variant: str,
    seed: int,
) -> tuple[SpARE, dict[str, dict[str, int]]]:
    """The rule with its features, and how many there are of each layer."""
    sides: dict[str, rule.Targets] = {"context": {}, "memory": {}}
    counts = {}
    for layer, values in streams.items():
        codes = saes[layer].code(values)
        found = spare.features(codes, labels, share, variant, seed)
        for name, ids, mine in zip(sides, found, (labels, ~labels), strict=True):
            means = spare.targets(codes[mine][:, ids], sure[mine])
            sides[name][layer] = dict(zip(ids, means.tolist(), strict=True))
        counts[str(layer)] = {"context": len(found[0]), "memory": len(found[1])}
    context, memory = (rule.text_of(side) for side in sides.values())
    return SpARE(context=context, memory=memory), counts


def _rows_of(made: SpARE, saes: Mapping[int, SAE]) -> dict[int, SAE]:
    both = rule.targets_of(made.context), rule.targets_of(made.memory)
    layers = {*both[0], *both[1]}
    return {at: saes[at].select([*both[0].get(at, {}), *both[1].get(at, {})]) for at in layers}


@torch.no_grad()
def _confidence(
    model: Model, cases: Sequence[Case], labels: Tensor, wording: Mapping[str, Any]
) -> Tensor:
    """`[cases]`: by how much the answer that won is the likelier one."""
    form = {name: wording.get(name) for name in ("chat", "template")}
    losses: list[list[float]] = []
    for side in ("context_answers", "memory_answers"):
        texts = []
        for number, case in enumerate(cases):
            ready = prepare(model, case, number, {**wording, "max_new_tokens": 32})
            answer = answer_ids(model.tokenizer, case.question, getattr(case, side)[0], **form)
            texts.append((*ready.prompts["context"], *answer))
        losses.append(_mean_losses(network(model), texts))
    context, memory = map(torch.tensor, losses)
    own, other = torch.where(labels, context, memory), torch.where(labels, memory, context)
    return spare.confidence(own.tolist(), other.tolist())


def _mean_losses(hf: Any, texts: Sequence[Sequence[int]]) -> list[float]:
    """Mean loss of every text's tokens but the first, in nats."""
    found = [0.0] * len(texts)
    for rows in batches(hf, [len(one) for one in texts]):
        ids = pad_sequence([torch.tensor(texts[row]) for row in rows], batch_first=True)
        ids = ids.to(hf.device)
        logits = hf(input_ids=ids, use_cache=False).logits[:, :-1].float()  # padded on the right
        said = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        for place, row in enumerate(rows):
            found[row] = -float(said[place, : len(texts[row]) - 1].mean())
    return found


@torch.no_grad()
def _within(
    model: Model,
    cases: Sequence[Case],
    method: str,
    raw: Directions,
    budget: float,
    wording: Mapping[str, Any],
) -> tuple[Directions, float]:
    """The directions at the length that meets the budget, and the divergence measured there."""
    ready = [prepare(model, case, i, {**wording, "max_new_tokens": 1}).prompts["context"]
             for i, case in enumerate(cases)]  # fmt: skip
    low, high, size, guess, there = 1e-3, 1e3, 1.0, 1.0, 0.0
    for done in range(_TRIES):
        size = guess
        there = moved(model, ready, methods.build(method, directions=str(raw * size)))
        if abs(there / budget - 1) < _CLOSE:
            break
        low, high = (size, high) if there < budget else (low, size)
        # Small divergences grow with the square of the length; else halve what is left.
        guess = size * (budget / max(there, 1e-12)) ** 0.5
        if done >= 4 or not low < guess < high:
            guess = (low * high) ** 0.5
    if abs(there / budget - 1) > _FAR:
        raise InvalidParameterError(
            f"{method}: no length of its directions moves the next token by {budget:g} nats "
            f"({there:.3g} at {size:.3g} times the fitted length): name another budget"
        )
    return raw * size, there


@torch.no_grad()
def moved(model: Model, prompts: Sequence[Sequence[int]], made: Any) -> float:
    """Mean KL(plain || edited) of the next token in nats, over prompts and both sides to prefer.

    Args:
        model: whose prompts they are.
        prompts: ids.
        made: a fitted rule; one without a side to prefer is measured as it is.
    """
    hf = network(model)
    both = isinstance(made, DirectionRule | SpARE)
    sides = [replace(made, prefer=side) for side in ("context", "memory")] if both else [made]
    total = 0.0
    for rows in batches(hf, [len(one) for one in prompts]):
        ids = [list(prompts[row]) for row in rows]
        lengths = [len(one) for one in ids]
        plain = read(hf, ids).float().log_softmax(-1)
        for side in sides:
            edits = side.checked().edits(Prompts(lengths))["edited"]
            with Handle(hf, edits, prompt_lengths=lengths):
                other = read(hf, ids).float().log_softmax(-1)
            total += float((plain.exp() * (plain - other)).sum())
    return total / len(prompts) / len(sides)
