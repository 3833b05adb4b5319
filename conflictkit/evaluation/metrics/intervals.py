"""Intervals and tests by subject: what several questions about one subject have in common must
not count as so many independent observations.

Everything is a function of sums over cases, and the sums are additive over subjects. So one draw of
subjects serves all methods and metrics: `weights [resamples, subjects] @ sums [subjects, columns]`.

Sources: percentile intervals of the bootstrap over clusters (Davison and Hinkley, "Bootstrap
methods and their application", 1997), expanded for few clusters (Hesterberg, "What teachers should
know about the bootstrap", 2015); permutation by exchanging the two methods of a pair; Wilson's
interval (1927) where a bootstrap has nothing to vary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CONFIDENCE = 0.95
_Z = 1.959963984540054
"""0.975 quantile of the normal distribution."""
_SAME = 1e-9
"""Two values of a metric count as equal within this distance, relative to the larger one."""

Array = np.ndarray[Any, np.dtype[np.float64]]


def draw_subjects(subjects: int, resamples: int, rng: np.random.Generator) -> Array:
    """How often each subject is drawn: `[resamples, subjects]`, every row sums to `subjects`."""
    if subjects == 0:
        return np.empty((resamples, 0))
    share = np.full(subjects, 1 / subjects)
    return rng.multinomial(subjects, share, size=resamples).astype(np.float64)


def draw_exchanges(subjects: int, permutations: int, rng: np.random.Generator) -> Array:
    """Whose two methods are exchanged: `[permutations, subjects]` of 0 and 1, each with odds 1."""
    return rng.integers(0, 2, size=(permutations, subjects)).astype(np.float64)


def tail(subjects: Array) -> Array:
    """Share to cut off at each end of a bootstrap distribution over so many subjects.

    `Phi(-sqrt(n / (n - 1)) t(0.975, n - 1))`: 2.5 % for many subjects, less for few, because
    the plain percentile interval is too narrow there. 0 below two subjects.
    """
    from scipy import special  # scipy.stats takes seconds to import

    n = np.maximum(np.asarray(subjects, dtype=np.float64), 2)
    quantile = special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)
    return np.where(np.asarray(subjects) < 2, 0.0, special.ndtr(-np.sqrt(n / (n - 1)) * quantile))


def percentiles(samples: Array, subjects: Array) -> tuple[Array, Array, Array]:
    """Bounds of the 95 % interval of each column.

    Args:
        samples: `[resamples, columns]`; NaN where a resample does not define the column.
        subjects: `[columns]`, number of subjects that each column rests on.

    Returns:
        low, high and the share of resamples that define the column, each `[columns]`; NaN bounds
        where none does.
    """
    ordered = np.sort(samples, axis=0)  # NaN goes to the end
    defined = np.count_nonzero(~np.isnan(ordered), axis=0)
    cut = tail(subjects)
    return (
        _quantile(ordered, defined, cut),
        _quantile(ordered, defined, 1 - cut),
        defined / max(len(samples), 1),
    )


def _quantile(ordered: Array, defined: Any, share: Array) -> Array:
    """Linear interpolation between the order statistics of the first `defined` rows."""
    place = np.clip(share * (defined - 1), 0, None)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, np.maximum(defined - 1, 0))
    columns = np.arange(ordered.shape[1])
    low, high = ordered[below, columns], ordered[above, columns]
    # Not low + (high - low) * part: equal neighbours must give exactly themselves.
    part = place - below
    return np.where(low == high, low, low * (1 - part) + high * part)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    `(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`

    >>> low, high = wilson(0.0, 100)
    >>> low, round(high, 3)
    (0.0, 0.037)

    Args:
        share: from 0 to 1.
        count: number of independent observations, above 0.
    """
    middle = share + _Z**2 / (2 * count)
    half = _Z * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    low = 0.0 if share == 0 else max(0.0, float((middle - half) / scale))
    high = 1.0 if share == 1 else min(1.0, float((middle + half) / scale))
    return low, high


def permutation_p(observed: Array, permuted: Array) -> Array:
    """Two-sided p of each column: share of permutations at least as far from 0 as observed.

    `(1 + #{|permuted| >= |observed|}) / (1 + permutations)`; the observation is one of them, so p
    is never 0. NaN where the observation is.

    Args:
        observed: `[columns]` differences.
        permuted: `[permutations, columns]` differences after exchanging; NaN ones are left out.
    """
    far = np.abs(observed)
    defined = ~np.isnan(permuted)
    reached = np.abs(permuted) >= far - _SAME * np.maximum(far, 1)
    p = (1 + np.count_nonzero(reached & defined, axis=0)) / (1 + np.count_nonzero(defined, axis=0))
    return np.where(np.isnan(observed), np.nan, p)


def same(low: float, high: float) -> bool:
    """Whether two values are equal but for rounding."""
    return abs(high - low) <= _SAME * max(abs(low), abs(high), 1e-300)
