"""The rate of a run against torch's own schedule, which names decay, and the random bits of rounding by value."""

import hashlib

import pytest
import torch
from torch import nn

from medmo_recipes.settings.run_config import Optim
from medmo_recipes.training.optim.adam_bf16 import random_bits
from medmo_recipes.training.optim.optimizer import Optimizer, decays, describe_types, learning_rate


@pytest.mark.parametrize(("steps", "warmup_ratio", "warmup"), [(10, 0.2, 2), (10, 0.0, 0), (7, 0.5, 4), (3, 1.0, 3)])
def test_the_cosine_is_that_of_torch_after_the_warm_up(steps: int, warmup_ratio: float, warmup: int) -> None:
    settings = Optim(lr=2.0, warmup_ratio=warmup_ratio, min_lr_ratio=0.1)
    rates = [learning_rate(step, steps, settings) for step in range(steps + 1)]
    assert rates[:warmup] == pytest.approx([2.0 * (step + 1) / warmup for step in range(warmup)])
    oracle = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(oracle, T_max=max(1, steps - warmup), eta_min=0.2)
    for rate in rates[warmup:]:
        assert rate == pytest.approx(oracle.param_groups[0]["lr"])
        oracle.step()
        cosine.step()


def test_a_constant_rate_stays() -> None:
    settings = Optim(lr=2.0, warmup_ratio=0.5, schedule="constant")
    assert [learning_rate(step, 4, settings) for step in range(5)] == [1.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", (4, 4), True),
        ("model.visual.patch_embed.proj.weight", (4, 3, 2, 2, 2), True),
        ("model.visual.blocks.0.norm1.weight", (4,), False),
        ("model.language_model.embed_tokens.weight", (4, 4), False),
        ("model.visual.pos_embed.weight", (4, 4), False),
    ],
)
def test_what_decays(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert decays(name, torch.zeros(shape)) == expected


def bits_by_hand(key: str, place: int) -> int:
    """Return lowbias32 of the place and half of the key, the other half added in between, in whole numbers."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    x = (int.from_bytes(digest[:4], "little") + place) % 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = ((x ^ x >> 15) + int.from_bytes(digest[4:], "little")) * 0x846CA68B % 2**32
    return x >> 16


@pytest.mark.parametrize("first", [0, 2**31 - 2, 2**32 + 2])
def test_random_bits_are_those_of_the_published_hash(first: int) -> None:
    """Also past 32 bits, where the places of a huge parameter begin anew."""
    for key in ("0:1:weight", "7:250:exp_avg_sq"):
        expected = [bits_by_hand(key, first + place) for place in range(4)]
        assert random_bits(key, first, 4, torch.device("cpu")).tolist() == expected
    assert random_bits("a", first, 4, torch.device("meta")).device.type == "meta"


def test_steps_are_counted_in_a_type_that_holds_them() -> None:
    steps = Optimizer(nn.Linear(2, 2), Optim(), 4).state_tensors()["steps:weight"]
    assert (steps.dtype, steps.shape) == (torch.float64, ())


def test_types_are_spelled_as_in_the_settings() -> None:
    weights = [torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float32)]
    assert describe_types(weights) == "bfloat16 and float32"
