"""Percentile bootstrap intervals, resampled by group.

Protocol: groups (patients, volumes or slices) are drawn with replacement, each with all its values, as often as there
are groups; the statistic is the mean over the drawn values, the interval its 2.5 and 97.5 percentiles over `n` draws.
Pictures of one scan resemble each other: resampling single pictures would give intervals that are too narrow.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """Ends of an interval; both NaN where fewer than two groups leave nothing to resample."""

    low: float
    high: float


def bootstrap_ci(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, n: int = 2000, seed: int = 0
) -> Interval:
    """Return the 95 % percentile interval of the mean; the module's docstring states the protocol.

    Args:
        values: one number per sample; booleans count as 0 and 1.
        groups: group of each sample; None: every sample is its own.
        n: number of draws.
        seed: seed of the draws; the same values give the same interval.

    Raises:
        ValueError: no values, a value that is not finite, lengths that differ, or n < 1.
    """
    numbers = np.asarray(list(values), dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError("bootstrap: no values to resample")
    if not np.isfinite(numbers).all():
        raise ValueError(f"bootstrap: value {int(np.flatnonzero(~np.isfinite(numbers))[0])} is not a finite number")
    if n < 1:
        raise ValueError(f"bootstrap: n is {n}, expected at least 1 draw")
    names = list(range(numbers.size)) if groups is None else list(groups)
    if len(names) != numbers.size:
        raise ValueError(f"bootstrap: {numbers.size} values but {len(names)} groups: give one group per value")
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    member = np.array([index[name] for name in names])
    num_groups = len(index)
    if num_groups < 2:
        return Interval(float("nan"), float("nan"))
    sums = np.bincount(member, weights=numbers, minlength=num_groups)
    counts = np.bincount(member, minlength=num_groups).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=n)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def paired_bootstrap(
    after: Sequence[float],
    before: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the interval of the mean of `after` - `before`, sample by sample; other arguments as `bootstrap_ci`.

    Raises:
        ValueError: the lists differ in length; or as `bootstrap_ci`.
    """
    if len(after) != len(before):
        raise ValueError(f"paired bootstrap: {len(after)} values against {len(before)}: score the same samples twice")
    return bootstrap_ci([a - b for a, b in zip(after, before, strict=True)], groups, n, seed)
