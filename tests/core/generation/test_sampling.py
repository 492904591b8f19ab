"""The choice of one token against sums by hand, and the numbers that it is drawn with."""

import math
from typing import Any

import pytest
import torch

from medmo_core.generation import kv_cache
from medmo_core.generation.sampling import Sampler, Sampling

SETTINGS: dict[str, Any] = {
    "max_new_tokens": 3, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "num_generations": 1,
    "stop_token_ids": frozenset(), "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", math.inf), ("temperature", "warm"), ("top_p", math.nan), ("top_p", None),
        ("max_new_tokens", 2.0), ("max_new_tokens", True), ("top_k", None), ("seed", "1"), ("num_generations", 0),
        ("top_p", 0.0), ("top_p", 1.01), ("top_k", -1), ("temperature", -0.1),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}.*expected|{name}.*must"):
        Sampling(**{**SETTINGS, name: value})


PROBS = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("settings", "uniform", "token"),
    [
        # All tokens in the order of their ids: bounds 0.1, 0.5, 0.7, 1.
        ({}, 0.0, 0), ({}, 0.0999, 0), ({}, 0.1001, 1), ({}, 0.4999, 1), ({}, 0.5001, 2), ({}, 0.7001, 3),
        ({}, 1 - 2**-53, 3),
        # The two likeliest, in their order: 4/7 of token 1, then token 3.
        ({"top_k": 2}, 0.57, 1), ({"top_k": 2}, 0.573, 3), ({"top_k": 2}, 1 - 2**-53, 3),
        # The fewest that hold 0.6: the same two; 0.75 takes token 2 too, and just above 0.9 all.
        ({"top_p": 0.6}, 0.573, 3), ({"top_p": 0.6}, 1 - 2**-53, 3), ({"top_p": 0.75}, 1 - 2**-53, 2),
        ({"top_p": 0.91}, 1 - 2**-53, 0), ({"top_p": 0.3}, 1 - 2**-53, 1),
        # First the three likeliest (4/9, 3/9, 2/9), and of those the fewest that hold 0.8: all three.
        ({"top_k": 3, "top_p": 0.8}, 1 - 2**-53, 2), ({"top_k": 3, "top_p": 0.75}, 1 - 2**-53, 3),
    ],
)  # fmt: skip
def test_a_number_chooses_the_token_whose_share_it_falls_in(
    settings: dict[str, Any], uniform: float, token: int
) -> None:
    sampler = Sampler(torch.eye(4), Sampling(**{**SETTINGS, **settings}), banned=())
    tokens, logps = sampler(PROBS.log(), torch.tensor([uniform], dtype=torch.float64))
    assert tokens.tolist() == [token]
    assert logps.tolist() == pytest.approx(PROBS[0, [token]].log().tolist())


def test_a_banned_token_is_not_chosen_however_likely_it_is() -> None:
    sampler = Sampler(torch.eye(4), Sampling(**SETTINGS), banned=(0,))
    hidden = torch.tensor([[100.0, 0.0, 0.0, 0.0]])  # what the ban leaves is below the smallest fp32 share
    drawn = [sampler(hidden, torch.tensor([u], dtype=torch.float64))[0].item() for u in (0.0, 0.34, 0.99)]
    assert drawn == [1, 2, 3]
    assert sampler(hidden, None)[0].item() == 1
    rows = torch.cat([20 * hidden, PROBS.log()])  # each row is scaled by itself
    assert sampler(rows, torch.tensor([0.34, 0.99], dtype=torch.float64))[0].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_log_probabilities_are_wide(dtype: torch.dtype, wide: torch.dtype) -> None:
    _, logps = Sampler(torch.eye(4, dtype=dtype), Sampling(**SETTINGS), banned=())(PROBS.to(dtype), None)
    assert logps.dtype == wide


def test_the_temperature_divides_the_logits() -> None:
    warm = Sampler(torch.eye(4), Sampling(**{**SETTINGS, "temperature": 0.5}), banned=())
    _, logps = warm(PROBS.log(), torch.zeros(1, dtype=torch.float64))
    assert logps.exp().item() == pytest.approx(0.01 / (0.01 + 0.16 + 0.04 + 0.09))


def test_numbers_are_named_by_all_that_tells_continuations_apart() -> None:
    def noise(seed: int = 3, name: str = "a", occurrence: int = 0, generation: int = 0) -> tuple[float, ...]:
        drawn = Sampling(**{**SETTINGS, "seed": seed}).noise(name, occurrence, generation)
        assert drawn is not None and drawn.shape == (3,) and (drawn >= 0).all() and (drawn < 1).all()
        return tuple(drawn.tolist())

    different = [noise(), noise(seed=4), noise(name="b"), noise(occurrence=1), noise(generation=1)]
    assert len(set(different)) == 5
    assert noise() == noise() == noise(seed=3 + 2**32)
    assert noise(seed=-1) == noise(seed=2**32 - 1)
    assert Sampling(**{**SETTINGS, "temperature": 0.0}).noise("a", 0, 0) is None


def test_sharing_pays_from_the_bound_on() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("meta")
    assert kv_cache.sharing_pays([kv_cache.SHARE_FROM], 2, cpu)
    assert not kv_cache.sharing_pays([kv_cache.SHARE_FROM - 1], 2, cpu)
    assert kv_cache.sharing_pays([1], 2, gpu) and not kv_cache.sharing_pays([1], 1, gpu)
