"""Rewards weighed together, in float64 throughout."""

import pytest

from medmo_recipes.reinforcement.advantages import combine


def test_weights_are_not_rounded() -> None:
    """0.1 and 0.3 have no exact float32 form: their share would be off by 1e-9."""
    found = combine({"box": [1.0, 0.0], "answer": [0.0, 1.0]}, {"box": 0.1, "answer": 0.3}, normalise=False)
    assert found.tolist() == pytest.approx([0.25, 0.75], rel=0, abs=1e-15)
