"""Intervals over groups: against SciPy and statsmodels' formulas, and as often right as they say, in simulation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from medmo_core.metrics import Interval, mean_interval, paired_interval
from medmo_core.metrics.intervals import MAX_DEGREES, MIN_GROUPS, student_quantile

Numbers = NDArray[np.float64]
GROUPS = (10, 15, 27, 41)
"""From the fewest of interest to those of the quickstart's report: captions, grounding, questions."""
ROUNDS = 1500


def interval_of(values: Any, groups: Any = None) -> Interval:
    found = mean_interval(list(values), None if groups is None else list(groups))
    assert found is not None
    return found


@pytest.mark.parametrize("degrees", [1, 1.5, 2, 3.7, 8, 40, 250, MAX_DEGREES])
def test_the_quantile_is_scipys(degrees: float) -> None:
    assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)
    assert student_quantile(0.3) == student_quantile(1) and student_quantile(1e9) == student_quantile(MAX_DEGREES)


def test_without_groups_it_is_students_interval_with_one_degree_less() -> None:
    values = np.random.default_rng(0).normal(5, 2, 12)
    half = stats.t.ppf(0.975, 10) * stats.sem(values)
    assert interval_of(values) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-4)


def test_the_variance_is_that_of_leaving_groups_out() -> None:
    """The jackknife by hand: the mean without each group, groups of one to seven values."""
    generator = np.random.default_rng(3)
    groups = np.repeat(np.arange(7), np.arange(1, 8))
    values = generator.normal(0, 1, 7)[groups] + generator.normal(0, 0.5, 28)
    without = np.array([values[groups != group].mean() for group in range(7)])
    deviation = math.sqrt(6 / 7 * ((without - values.mean()) ** 2).sum())
    shares = np.arange(1, 8) / 28
    half = stats.t.ppf(0.975, 1 / (shares**2).sum() - 2) * deviation
    assert interval_of(values, groups) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-4)


def test_copies_of_a_groups_value_are_one_observation() -> None:
    means = np.random.default_rng(1).normal(0, 1, 30)
    copies, names = np.repeat(means, 10), [f"scan {i}" for i in range(30) for _ in range(10)]
    assert interval_of(copies, names) == pytest.approx(interval_of(means))
    naive, grouped = interval_of(copies), interval_of(copies, names)
    assert grouped.high - grouped.low > 2.5 * (naive.high - naive.low)


def test_a_share_of_single_questions_is_wilsons() -> None:
    """Statsmodels' and SciPy's Wilson interval of as many samples as the share is worth."""
    for right in (3, 8, 20):
        values = [1.0] * right + [0.0] * (40 - right)
        worth = 39 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 39)) ** 2  # the jackknife knows 39 of 40
        middle = (right / 40 + 1.96**2 / (2 * worth)) / (1 + 1.96**2 / worth)
        low, high = interval_of(values)
        assert (low + high) / 2 == pytest.approx(middle, abs=1e-3)
        exact = stats.binomtest(right, 40).proportion_ci(method="wilson")
        assert low < exact.low and exact.high < high and high - low < 1.06 * (exact.high - exact.low)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_shares_that_all_agree_are_as_sure_as_their_groups_are_many(value: float) -> None:
    few, more = (interval_of([value] * 5 * n, [i // 5 for i in range(5 * n)]) for n in (6, 60))
    exact = stats.binomtest(int(value * 6), 6).proportion_ci(method="wilson")
    assert few == pytest.approx((exact.low, exact.high), abs=2e-3)
    assert 0 <= few.low <= value <= few.high <= 1 and more.high - more.low < (few.high - few.low) / 4


def test_differences_are_no_shares() -> None:
    """A difference of 0 or 1 may also be -1: its interval may leave 0 to 1, and reverses with its sides."""
    after, before = [1.0] + [0.0] * 9, [0.0] * 10
    low, high = paired_interval(after, before) or (math.nan, math.nan)
    assert low < 0 < high
    back = paired_interval(before, after)
    assert back == pytest.approx((-high, -low))
    assert paired_interval(before, before) == (0.0, 0.0)


def test_pairing_removes_what_both_share() -> None:
    generator = np.random.default_rng(2)
    shared = generator.normal(0, 5, 60)
    before, after = shared, shared + 0.2 + generator.normal(0, 0.1, 60)
    low, high = paired_interval(after.tolist(), before.tolist()) or (math.nan, math.nan)
    assert 0 < low < 0.2 < high + 0.05
    differences = (after - before).tolist()
    assert paired_interval(after.tolist(), before.tolist(), [i // 3 for i in range(60)]) == mean_interval(
        differences, [i // 3 for i in range(60)]
    )


def test_too_few_groups_have_no_interval() -> None:
    values, names = [0.1, 0.5, 0.3, 0.9, 0.2] * 2, list("abcde") * 2
    assert mean_interval(values[:9], [*names[:4], *names[:4], "a"]) is None
    assert mean_interval([1.0, 2.0], ["one scan", "one scan"]) is None
    assert mean_interval(values, names) is not None and len(set(names)) == MIN_GROUPS


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([], None, "no values"),
        ([1.0, math.nan], None, "value 1 is not a finite number"),
        ([1.0], ["a", "b"], "1 values but 2 groups"),
    ],
)
def test_values_without_an_interval_are_named(values: list[float], groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, groups)
    with pytest.raises(ValueError, match="2 values against 1"):
        paired_interval([1.0, 2.0], [1.0])


def overlaps(generator: np.random.Generator, means: Numbers) -> Numbers:
    """Draw IoUs as a small model has them: mean 0.32, skewed, alike within an image."""
    return generator.beta(6 * means + 0.1, 6 * (1 - means) + 0.1)


def answers(generator: np.random.Generator, means: Numbers) -> Numbers:
    return (generator.random(means.size) < means).astype(float)


def gains(generator: np.random.Generator, means: Numbers) -> Numbers:
    """Draw differences: many are 0."""
    return means + generator.laplace(0, 0.3, means.size) * (generator.random(means.size) < 0.5)


KINDS: dict[str, tuple[Callable[..., Numbers], Callable[..., Numbers], bool]] = {
    "IoU": (lambda g, n: g.beta(1.2, 2.5, n), overlaps, False),
    "share": (lambda g, n: g.beta(2, 2, n), answers, True),
    "gain": (lambda g, n: g.normal(0.05, 0.2, n), gains, False),
}


@pytest.mark.parametrize("num_groups", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_as_often_as_they_say(kind: str, num_groups: int) -> None:
    """Images of 1 to 11 questions each; the standard error of a coverage over so many rounds is 0.6 %."""
    make_means, draw, are_shares = KINDS[kind]
    generator = np.random.default_rng(num_groups)
    truth = draw(generator, make_means(generator, 400_000)).mean()
    hits = 0
    for _ in range(ROUNDS):
        groups = np.repeat(np.arange(num_groups), generator.integers(1, 12, num_groups))
        values = draw(generator, make_means(generator, num_groups)[groups])
        if are_shares:
            low, high = interval_of(values, groups)
        else:
            low, high = paired_interval(values, np.zeros_like(values), groups) or (math.nan, math.nan)
        hits += low <= truth <= high
    assert 0.93 <= hits / ROUNDS <= 0.97, hits / ROUNDS


def test_a_rare_share_is_not_called_surer_than_it_is() -> None:
    """One in ten, ten images: Student's interval would cover 90 %; Wilson's errs on the wide side."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(ROUNDS):
        groups = np.repeat(np.arange(10), 6)
        low, high = interval_of(answers(generator, generator.beta(1, 9, 10)[groups]), groups)
        hits += low <= 0.1 <= high
    assert hits / ROUNDS >= 0.95
