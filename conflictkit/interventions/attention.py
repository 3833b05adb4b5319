"""Attention steered: a bias on the logits of keys, a direction added to queries, queries off.

    AttentionBias:    logit[q, k] += log(alpha)   for keys k outside (or inside) the spans
    FocusDirections:  q_h <- q_h + strength * d_h, so logit[q, k] += strength * scale * <d_h, k>
    MaskedHeads:      q_h <- 0, so the head attends evenly to all that it may see

`scale` is the model's own, mostly 1 / sqrt(head_dim). The changes stand where the model's kernel
(sdpa or eager) is called: behind the rotary embedding and any norm of the queries, before a soft
cap for queries and behind it for the bias. Heads are query heads, also with grouped keys.

Sources: Zhang et al. 2024 (PASTA, 2311.02262) and Wang et al. 2024 (2411.02688) for the bias; Zhu
et al. 2025 (2503.23306) for the directions; Gema et al. 2024 (DeCoRe, 2410.18860) for the mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from conflictkit.anatomy import Anatomy
from conflictkit.errors import InvalidParameterError, unknown_name
from conflictkit.interventions._choices import (
    Heads,
    Span,
    Spans,
    by_layer,
    common_rows,
    head_rows,
    numbers,
    span_rows,
    vector,
)
from conflictkit.interventions.attending import At, Attention, AttentionChange, Spread
from conflictkit.interventions.heads import Attachable, Head, Strength, checked
from conflictkit.interventions.places import Pass, Positions

VARIANTS = ("mended", "released")


@dataclass(frozen=True, eq=False)
class AttentionBias(Attachable):
    """Multiply the attention weights of some of the prompt's tokens by alpha, before they are
    normalised: log(alpha) is added to their logits.

    Each layer by itself; a token outside all spans (or inside any) once. Tokens behind the prompt
    are never touched: against them the biased tokens lose, so with alpha < 1 outside the spans the
    answer attends more to the spans and to itself.

    `variant="released"` is what the released code does. Several spans add up: a token outside all
    K of them gets alpha^K, one inside one of them alpha^(K-1). With `inside`, log(alpha) is added
    within the spans and taken from the whole prompt: a token inside one span keeps its weight, one
    outside gets 1 / alpha. Among the prompt's own tokens both are the mended form again (if spans
    do not overlap), against the answer's tokens they are not. With `heads=None` all layers write
    to one mask, which piles up: layer l, from 0, uses alpha^(l+1).

    Args:
        spans: which tokens; a row with an empty list is left as it is.
        alpha: above 0; 1 changes nothing, bit for bit. PASTA steers few heads with 0.01, Wang et
            al. all heads with 0.9 or 0.95. A list gives each prompt its own.
        heads: whose attention. An empty choice leaves a row as it is.
        inside: whether to bias the tokens inside the spans instead of those outside.
        variant: `mended` or `released`.
        positions: of the queries, as in `HeadScale`.

    Raises:
        InvalidParameterError: no span or no head at all, or one that is none; an alpha that is not
            above 0; row counts that differ. On attaching: prompt lengths are missing (only
            `inside` does without), or a span ends behind its prompt.
    """

    spans: Spans
    alpha: Strength
    heads: Heads = None
    inside: bool = False
    variant: str = "mended"
    positions: Positions = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise unknown_name("variant of AttentionBias", str(self.variant), VARIANTS)
        object.__setattr__(self, "spans", span_rows(self.spans))
        alphas = numbers("AttentionBias: alpha", self.alpha)
        if min(alphas) <= 0:
            raise InvalidParameterError(f"AttentionBias: alpha must be above 0, not {min(alphas)}")
        object.__setattr__(self, "alpha", alphas)
        object.__setattr__(self, "heads", head_rows("AttentionBias", self.heads))
        common_rows("AttentionBias", *self._rows())

    def _rows(self) -> tuple[Any, Any, Any]:
        """Spans, alphas and heads, each of one row or of all, as construction left them."""
        return self.spans, self.alpha, self.heads

    def check_lengths(self, lengths: Tensor | None) -> None:
        """Whether the spans lie within prompts of `[rows]` tokens."""
        if lengths is None:
            if self.inside and self.variant == "mended":
                return
            raise InvalidParameterError(
                "AttentionBias needs prompt_lengths=, the tokens of each row's prompt: what is "
                "behind it stays as it is"
            )
        spans, alphas, heads = self._rows()
        ends = lengths.tolist()
        common_rows("AttentionBias and prompt_lengths", spans, alphas, heads, ends)
        for row in range(max(len(spans), len(ends))):
            end = ends[row % len(ends)]
            for start, stop in spans[row % len(spans)]:
                if stop > end:
                    raise InvalidParameterError(
                        f"AttentionBias: span ({start}, {stop}) of row {row} ends behind its "
                        f"prompt of {end} tokens"
                    )

    def plan(self, body: Anatomy) -> Mapping[Module, AttentionChange]:
        """See `Edit.plan`."""
        spans, alphas, heads = self._rows()
        rows = common_rows("AttentionBias", spans, alphas, heads)
        steered = torch.tensor([bool(row) for row in spans])
        logs = torch.tensor([math.log(one) for one in alphas]) * steered
        released = self.variant == "released"
        biased = _Spans(spans, self.inside, released)
        found: dict[Module, AttentionChange] = {}
        for layer, attention, chosen in by_layer(body, heads):
            # `[rows or 1, heads or 1]`: one mask for all heads, where they share it.
            chosen = chosen[:, :1] if bool((chosen == chosen[:, :1]).all()) else chosen
            deep = [layer + 1 if released and row is None else 1 for row in heads]
            amounts = logs[:, None] * chosen * torch.tensor(deep)[:, None]
            found[attention] = _Bias(amounts.expand(rows, -1), biased)
        return _together(found)


@dataclass(frozen=True, eq=False)
class FocusDirections(Attachable):
    """Add a direction to the queries of heads, which makes them attend to what lies that way.

    The published method also has a direction for the keys. It does nothing: added to every key it
    adds the same number to all logits of a query, and the softmax takes that out again.

    Args:
        directions: head -> `[head_dim]` vector.
        strength: what the directions are multiplied by; 0 changes nothing, bit for bit. The paper
            uses 0.2 on its 20 most contextual heads. A list gives each prompt its own.
        positions: of the queries, as in `HeadScale`.

    Raises:
        InvalidParameterError: no direction, one that is no finite vector or (on attaching) not as
            wide as a head, a strength that is no finite number.
    """

    directions: Mapping[Head, Tensor]
    strength: Strength = 0.2
    positions: Positions = None

    def __post_init__(self) -> None:
        owner = "FocusDirections"
        given: Any = self.directions
        checked(owner, dict.fromkeys(given, 1.0) if isinstance(given, Mapping) else given)
        kept = {head: vector(owner, head, one) for head, one in given.items()}
        object.__setattr__(self, "directions", kept)
        object.__setattr__(self, "strength", numbers(f"{owner}: strength", self.strength))

    def plan(self, body: Anatomy) -> Mapping[Module, AttentionChange]:
        """See `Edit.plan`."""
        amounts = torch.tensor(self.strength)
        found: dict[Module, AttentionChange] = {}
        for layer, attention, chosen in by_layer(body, (tuple(self.directions),)):
            # Attention with compressed keys has queries of another width than its outputs.
            width = getattr(attention, "qk_head_dim", body.head_dim)
            added = torch.zeros(body.heads, 1, width)
            for head in chosen[0].nonzero().flatten().tolist():
                direction = self.directions[layer, head]
                if len(direction) != width:
                    raise InvalidParameterError(
                        f"FocusDirections: the direction of head ({layer}, {head}) has "
                        f"{len(direction)} numbers, a head of this model {width}"
                    )
                added[head, 0] = direction
            found[attention] = _Shift(amounts[:, None, None, None] * added)
        return _together(found)


@dataclass(frozen=True, eq=False)
class MaskedHeads(Attachable):
    """Blind heads: their queries are zero, so that they attend evenly to all they may see.

    What DeCoRe calls a masked head. There the prompt is read unmasked up to its last token:
    `positions="decoding"`.

    Args:
        heads: which; a list of such choices gives each prompt its own.
        positions: of the queries, as in `HeadScale`.

    Raises:
        InvalidParameterError: no head, or one that is none.
    """

    heads: Heads
    positions: Positions = None

    def __post_init__(self) -> None:
        if self.heads is None:
            raise InvalidParameterError("MaskedHeads: say which heads, [(layer, head), ...]")
        object.__setattr__(self, "heads", head_rows("MaskedHeads", self.heads))

    def plan(self, body: Anatomy) -> Mapping[Module, AttentionChange]:
        """See `Edit.plan`."""
        layers = by_layer(body, self.heads)
        return _together({attention: _Blind(chosen) for _, attention, chosen in layers})


def _together(layers: dict[Module, AttentionChange]) -> dict[Module, AttentionChange]:
    """Layers that act on the rows that any of them acts on: one of them counts for all."""
    acting = torch.stack([one.rows for one in layers.values() if one.rows is not None]).any(0)
    for one in layers.values():
        one.rows = None if bool(acting.all()) else acting
    return layers


class _Kept:
    """`[rows, ...]` numbers of a plan, kept where they were last needed."""

    def __init__(self, values: Tensor) -> None:
        self._given = self._values = values

    def of(self, like: Tensor, spread: Spread, dtype: torch.dtype | None = None) -> Tensor:
        """`[batch or 1, ...]` of them."""
        values, dtype = self._values, dtype or self._given.dtype
        if values.device != like.device or values.dtype != dtype:
            values = self._values = self._given.to(like.device, dtype)
        return values if len(values) == 1 else spread(values)


class _Bias(AttentionChange):
    """`[rows, 1 or heads]` numbers for the logits of the tokens that `spans` names."""

    reads_keys = True

    def __init__(self, amounts: Tensor, spans: _Spans) -> None:
        self.rows = (amounts != 0).any(-1)
        self._idle = not bool(self.rows.any())
        self._amounts, self._spans = _Kept(amounts), spans

    def __call__(self, given: Attention, at: At) -> Attention:
        if self._idle:
            return given
        query = given.query
        where = at.where
        if where is None or where.positions.shape != (len(query), query.shape[2]):
            raise InvalidParameterError(
                "AttentionBias: this forward does not say which tokens it reads"
            )
        times = self._spans.times(where, given.keys, query.device, at.lengths, at.spread)
        amounts = self._amounts.of(query, at.spread, query.dtype)
        bias = amounts[:, :, None, None] * times[:, None, None].to(query.dtype)
        if at.mine is not None:
            bias = torch.where(at.mine[:, None, :, None], bias, 0.0)
        return replace(given, bias=bias if given.bias is None else given.bias + bias)


class _Spans:
    """How often a key is biased, in every row."""

    def __init__(self, rows: Sequence[Sequence[Span]], inside: bool, released: bool) -> None:
        widest = max(map(len, rows))
        padded = [[*row, *[(-1, -1)] * (widest - len(row))] for row in rows]  # empty, at padding
        self._spans = _Kept(torch.tensor(padded))
        self._count = _Kept(torch.tensor([len(row) for row in rows]))
        self._inside, self._released = inside, released
        self._last: tuple[Pass, int, Tensor] | None = None

    def times(
        self,
        where: Pass,
        keys: int,
        device: torch.device,
        lengths: Tensor | None,
        spread: Spread,
    ) -> Tensor:
        """`[batch, keys]` how often, in one pass; the same for all its layers."""
        last = self._last
        if last is None or last[0] is not where or last[1] != keys:
            found = self._times(where.keys(keys).to(device), lengths, spread)
            last = self._last = where, keys, found
        return last[2].to(device)

    def _times(self, places: Tensor, lengths: Tensor | None, spread: Spread) -> Tensor:
        spans = self._spans.of(places, spread)[:, :, None]
        within = ((places[:, None] >= spans[..., 0]) & (places[:, None] < spans[..., 1])).sum(1)
        if self._inside and not self._released:
            return within > 0
        if lengths is None:
            raise InvalidParameterError("AttentionBias needs prompt_lengths")
        ends = lengths.to(places.device)
        ends = ends if len(ends) == 1 else spread(ends)
        prompt = (places >= 0) & (places < ends[:, None])
        if self._inside:
            return within - prompt.long()
        if self._released:
            return prompt * (self._count.of(places, spread)[:, None] - within)
        return prompt & (within == 0)


class _OnQuery(AttentionChange):
    """A change of the queries alone."""

    def __init__(self, values: Tensor) -> None:
        self.rows = (values != 0).flatten(1).any(-1)
        self._idle, self._values = not bool(self.rows.any()), _Kept(values)

    def __call__(self, given: Attention, at: At) -> Attention:
        if self._idle:
            return given
        changed = self.changed(given.query, at.spread)
        if at.mine is not None:
            changed = torch.where(at.mine[:, None, :, None], changed, given.query)
        return replace(given, query=changed)

    def changed(self, query: Tensor, spread: Spread) -> Tensor:
        raise NotImplementedError


class _Shift(_OnQuery):
    """`[rows, heads, 1, head_dim]` added."""

    def changed(self, query: Tensor, spread: Spread) -> Tensor:
        return query + self._values.of(query, spread, query.dtype)


class _Blind(_OnQuery):
    """Zero where `[rows, heads]` is true."""

    def changed(self, query: Tensor, spread: Spread) -> Tensor:
        return query.masked_fill(self._values.of(query, spread)[:, :, None, None], 0.0)
