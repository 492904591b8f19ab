"""Invariant 23: a group of equal rewards has advantages of exactly zero; every advantage has its stated value.

It depends on no order: neither of the completions in a group nor of the groups, and on no other group.
"""

import statistics
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmo_recipes.reinforcement import advantages as module
from medmo_recipes.reinforcement.advantages import Advantage, combine, group_advantages, overlong_penalties

KINDS: tuple[Advantage, ...] = ("group_std", "centred", "leave_one_out")
GROUPS = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(st.floats(-3, 3), min_size=size, max_size=size), min_size=1, max_size=4)
)


def by_hand(rewards: list[float], kind: Advantage) -> list[float]:
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    exact = [Fraction(r) for r in rewards]
    if kind == "leave_one_out":
        return [float(r - (sum(exact) - r) / (len(exact) - 1)) for r in exact]
    divisor = statistics.stdev(rewards) + 1e-4 if kind == "group_std" else 1.0
    return [float(r - sum(exact) / len(exact)) / divisor for r in exact]


def assert_advantages(kind: Advantage, groups: list[list[float]]) -> None:
    got = module.group_advantages(torch.tensor(groups, dtype=torch.float64), kind)
    assert got.isfinite().all()
    for row, rewards in zip(got, groups, strict=True):
        if len(set(rewards)) == 1:
            assert not row.any()
        torch.testing.assert_close(row.tolist(), by_hand(rewards, kind), rtol=1e-7, atol=1e-9)
    order = torch.randperm(len(groups[0]), generator=torch.Generator().manual_seed(0))
    mixed = module.group_advantages(torch.tensor(groups, dtype=torch.float64).flip(0)[:, order], kind)
    torch.testing.assert_close(mixed, got.flip(0)[:, order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(groups=GROUPS)
def test_advantages_have_their_values(kind: Advantage, groups: list[list[float]]) -> None:
    assert_advantages(kind, groups)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.0, 1e-30, 1e6])
def test_equal_rewards_teach_exactly_nothing(kind: Advantage, value: float) -> None:
    """Although the mean of equal numbers can differ from them in the last bit."""
    assert_advantages(kind, [[value] * 7, [0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 0.0]])


WEIGHTS = {"box": 3.0, "answer": 1.0}


def test_components_are_averaged_over_those_that_apply() -> None:
    components = {"answer": [1.0, None, None], "box": [0.0, 0.6, None]}
    assert combine(components, WEIGHTS, normalise=False).tolist() == [0.25, 0.6, 0.0]
    with pytest.raises(ValueError, match="at least one weight above 0"):
        combine(components, {"answer": 0.0, "box": 0.0}, normalise=False)


def test_normalised_components_weigh_alike_whatever_their_scale() -> None:
    """A component a thousand times as wide changes nothing; one that is the same everywhere adds exactly nothing."""
    fine, coarse = [0.0, 0.5, 1.0, 0.5], [1.0, 0.0, 0.0, 1.0]
    once = combine({"box": fine, "answer": coarse}, WEIGHTS, normalise=True)
    wide = combine({"box": [1000 * v for v in fine], "answer": coarse}, WEIGHTS, normalise=True)
    torch.testing.assert_close(once, wide, rtol=1e-3, atol=1e-3)  # the floor under the deviation
    scores = [[(v - statistics.fmean(c)) / (statistics.stdev(c) + 1e-4) for v in c] for c in (fine, coarse)]
    expected = [(3 * f + c) / 4 for f, c in zip(*scores, strict=True)]
    assert once.tolist() == pytest.approx(expected)
    flat = combine({"box": [0.3] * 4, "answer": coarse}, WEIGHTS, normalise=True)
    assert flat.tolist() == pytest.approx([c / 4 for c in scores[1]])
    nothing = combine({"box": [0.1] * 4, "answer": [1 / 3] * 4}, WEIGHTS, normalise=True)
    assert not group_advantages(nothing[None], "group_std").any()
    alone = combine({"box": [0.1, None, None], "answer": [None] * 3}, WEIGHTS, normalise=True)
    assert alone.tolist() == [0.0] * 3


def test_overlong_answers_cost_linearly() -> None:
    """DAPO, eq. 13."""
    lengths = [1, 60, 61, 70, 80, 79]
    assert overlong_penalties(lengths, longest=80, overlong_tokens=20) == [0, 0, -0.05, -0.5, -1.0, -0.95]


def without_the_mask(rewards_PG: Tensor, kind: Advantage) -> Tensor:
    return (rewards_PG - rewards_PG.mean(1, keepdim=True)) / (rewards_PG.std(1, keepdim=True) + 1e-12)


def across_groups(rewards_PG: Tensor, kind: Advantage) -> Tensor:
    return rewards_PG - rewards_PG.mean()


@pytest.mark.parametrize("wrong", [without_the_mask, across_groups])
def test_a_wrong_advantage_is_noticed(monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Tensor]) -> None:
    monkeypatch.setattr(module, "group_advantages", wrong)
    with pytest.raises(AssertionError):
        assert_advantages("centred", [[0.1] * 7, [0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 0.0]])
