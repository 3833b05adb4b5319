"""SpARE's features: which tell whose answer will win, and what they say when it does.

Zhao et al. 2025 (arXiv 2410.15999). Codes z are those of prompts whose plain answer followed the
context (label 1) or memory (label 0):

    E_i  = mean(z_i | 1) - mean(z_i | 0)
    MI_i = mutual information of z_i and the label (k nearest neighbours, k = 3; scikit-learn)
    K    = the smallest number of features whose MI, largest first, exceeds p * sum(MI)
    w^C  = sum_j a_j z_j over prompts of label 1, a_j ~ so_j / (ss_j + so_j); w^M likewise, ss_j
           above

ss and so are the mean losses of prompt and the context's answer, and of prompt and memory's.
Features that never fire (dead) have no information, but the estimator gives each a little; in
released caches they hold up to 93 % of the sum. They are left out here, and p is taken of what the
sum would have been with them (`variant="released"` keeps them).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from conflictkit.errors import InvalidParameterError, UnsupportedError

VARIANTS = ("corrected", "released")
NEIGHBOURS = 3
_SAMPLE = 64
"""Columns of nothing, from which it is learned what the estimator gives a dead feature."""


def information(codes: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    """Mutual information of every column with the label, in nats: `[features]` float64.

    Args:
        codes: `[prompts, features]`.
        labels: `[prompts]` bool, more than three of each.
        seed: of the noise that breaks ties.

    Raises:
        UnsupportedError: scikit-learn is missing.
    """
    try:
        from sklearn.feature_selection import mutual_info_classif
    except ImportError as error:
        raise UnsupportedError(
            'SpARE needs scikit-learn: pip install "conflictkit[probes]"'
        ) from error
    values = codes.double().numpy()
    low, high = values.min(0), values.max(0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    found = mutual_info_classif(
        scaled,
        labels.numpy(),
        discrete_features=False,  # pyright: ignore[reportArgumentType]  # its stub says str
        n_neighbors=NEIGHBOURS,
        random_state=seed,
    )
    return torch.from_numpy(np.asarray(found, dtype=np.float64))


def select(scores: Tensor, difference: Tensor, share: float) -> tuple[list[int], list[int]]:
    """Features of the context and of memory, most informative first.

    Args:
        scores: `[features]`, MI.
        difference: `[features]`, E; features of 0 are passed over and not counted.
        share: p, 0 to 1.
    """
    order = scores.argsort(descending=True, stable=True)
    sums = scores[order].cumsum(0)
    beyond = (sums > share * sums[-1:]).nonzero()
    count = int(beyond[0]) + 1 if len(beyond) else len(order)
    context: list[int] = []
    memory: list[int] = []
    for feature in order.tolist():
        if len(context) + len(memory) >= count:
            break
        if difference[feature] != 0:
            (context if difference[feature] > 0 else memory).append(feature)
    return context, memory


def features(
    codes: Tensor, labels: Tensor, share: float, variant: str = "corrected", seed: int = 0
) -> tuple[list[int], list[int]]:
    """Features of the context and of memory in the codes of one layer.

    Raises:
        InvalidParameterError: none is found; a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise InvalidParameterError(f"share must lie between 0 and 1, not {share!r}")
    codes = codes.double()
    difference = codes[labels].mean(0) - codes[~labels].mean(0)
    if variant == "released":
        found = select(information(codes, labels, seed), difference, share)
    else:
        live = (codes > 0).any(0).nonzero()[:, 0]
        empty = torch.zeros(len(codes), min(_SAMPLE, codes.shape[1]), dtype=codes.dtype)
        scores = information(torch.cat([codes[:, live], empty], dim=1), labels, seed)
        mine, noise = scores[: len(live)], float(scores[len(live) :].mean())
        total = float(mine.sum())
        whole = total + noise * (codes.shape[1] - len(live))
        sides = select(mine, difference[live], min(share * whole / total, 1.0) if total else share)
        found = tuple([int(live[one]) for one in side] for side in sides)  # type: ignore[assignment]
    if not (found[0] or found[1]):
        raise InvalidParameterError("no feature of the autoencoder tells context from memory")
    return found[0], found[1]


def targets(codes: Tensor, confidence: Tensor) -> Tensor:
    """w: the mean code of prompts of one label, confident ones counting more: `[features]`.

    Args:
        codes: `[prompts, features]`.
        confidence: `[prompts]`, so / (ss + so) for the context's, ss / (ss + so) for memory's.
    """
    weights = confidence.double() / confidence.double().sum()
    return weights @ codes.double()


def confidence(own: Sequence[float], other: Sequence[float]) -> Tensor:
    """`other / (own + other)` of losses: near 1 where the answer that won is much the likelier."""
    mine, theirs = torch.tensor(own).double(), torch.tensor(other).double()
    return theirs / (mine + theirs)
