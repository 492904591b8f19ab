"""Kernels add up in fp32 what comes in bf16: sums so long that in bf16 they would stand still half way.

The walkers' sizes are small, so that there a sum in 16 bits stays within one rounding of the result.
"""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medmo_kernels import runtime
from medmo_kernels.decode_attention import decode_attention
from medmo_kernels.projector import ProjectorWeights, projector

from .checked import checked

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LONG = 1 << 14
"""Below this number bf16 knows multiples of 64 only, and above it of 128: adding 48 changes too much, or nothing."""


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bfloat16, device=DEVICE)


def of_values() -> Tensor:
    """Return the mean of values that are all 1, at weights of 1 and 0.6 by turns."""
    values = ones(1, 1, LONG, 16)
    keys = 0 * values
    keys[:, :, ::2, 0] = -0.5
    return decode_attention(ones(1, 1, 16), keys, values, scale=1.0, num_splits=1)


def of_products() -> Tensor:
    """Return sums of the first product: vectors that the norm turns into its bias."""
    width, hidden = LONG // 4, 16
    weights = ProjectorWeights(
        ones(width), ones(width), 0.75 * ones(hidden, LONG), 0 * ones(hidden), ones(16, hidden) / hidden, 0 * ones(16)
    )
    return projector([ones(4, width)], [weights])[0] / (0.75 * LONG)


def of_patches() -> Tensor:
    """Return the gradient of the one entry that all patches read."""
    from medmo_kernels.patch_embed.launch import table_gradient

    return table_gradient(ones(LONG, 16), torch.zeros(LONG, 2, device=DEVICE), ones(1, 16)) / LONG


@pytest.mark.parametrize("sums", [of_values, of_products, of_patches])
def test_long_sums_do_not_stand_still(sums: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.SWITCH, "triton")
    with checked():
        found = sums()
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0.01, atol=0.0)
