"""Attention edits that cannot be, refused where they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import conflictkit as ck
from conflictkit.interventions import AttentionBias, FocusDirections, MaskedHeads

ONE = torch.ones(8)
SPAN = [(1, 3)]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (AttentionBias, ([], 0.1), "at least one span"),
        (AttentionBias, ([[], []], 0.1), "at least one span"),
        (AttentionBias, ([(3, 3)], 0.1), "0 <= start < stop"),
        (AttentionBias, ([(-1, 3)], 0.1), "0 <= start < stop"),
        (AttentionBias, ([(1, 2, 3)], 0.1), "spans are"),
        (AttentionBias, ([(1, 2.0)], 0.1), "spans are"),
        (AttentionBias, ("all", 0.1), "spans are"),
        (AttentionBias, ([(1, 3), [(1, 3)]], 0.1), "spans are"),
        (AttentionBias, (SPAN, 0.0), "alpha must be above 0"),
        (AttentionBias, (SPAN, [0.5, -1.0]), "alpha must be above 0, not -1.0"),
        (AttentionBias, (SPAN, float("nan")), "alpha: expected a finite number"),
        (AttentionBias, (SPAN, True), "alpha: expected a finite number"),
        (AttentionBias, (SPAN, 0.1, []), "at least one head"),
        (AttentionBias, (SPAN, 0.1, [[], []]), "at least one head"),
        (AttentionBias, (SPAN, 0.1, [(0, -1)]), r"not \(0, -1\)"),
        (AttentionBias, (SPAN, 0.1, [[0, 1]]), "a head is"),
        (AttentionBias, (SPAN, 0.1, [[[0, 1]]]), "a head is"),
        (AttentionBias, (SPAN, 0.1, 3), "heads are"),
        (AttentionBias, (SPAN, 0.1, "0"), "heads are"),
        (AttentionBias, ([SPAN] * 2, [0.1] * 3), "for 2 and for 3 rows"),
        (FocusDirections, ({},), "at least one head"),
        (FocusDirections, ([1.0],), "at least one head"),
        (FocusDirections, ({(0, 1): torch.ones(2, 4)},), "finite .head_dim. vector"),
        (FocusDirections, ({(0, 1): torch.tensor([1.0, torch.nan])},), "finite .head_dim. vector"),
        (FocusDirections, ({(0, True): ONE},), "a head is"),
        (FocusDirections, ({(0, 1): ONE}, "much"), "strength: expected a finite number"),
        (MaskedHeads, (None,), "say which heads"),
        (MaskedHeads, ([],), "at least one head"),
    ],
)
def test_what_cannot_be_is_refused_at_once(kind: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ck.errors.InvalidParameterError, match=message):
        kind(*arguments)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ck.errors.UnknownNameError, match="valid: mended, released"):
        AttentionBias([(1, 3)], 0.1, variant="release")


def test_what_was_given_is_kept_as_plain_data() -> None:
    """So that changing it later changes nothing, and generators may be handed in."""
    spans, directions = [[1, 3]], {(0, 1): torch.ones(8)}
    bias: Any = AttentionBias(spans, torch.tensor([0.5, 0.25]), iter([(0, 1)]))  # type: ignore
    focus = FocusDirections(directions)
    spans[0][1] = 9
    directions[0, 1].zero_()
    assert (bias.spans, bias.alpha, bias.heads) == ((((1, 3),),), (0.5, 0.25), (((0, 1),),))
    assert focus.directions[0, 1].tolist() == [1.0] * 8
