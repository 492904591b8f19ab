"""The patch embedding is one matrix product, and equals the Conv3d of the published code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medmo_core.modules.patch_embed import PatchEmbed

PATCH, TAPS, WIDTH = 16, 2, 48
TOLERANCE = 7e-6  # fp32 sums of 1536 products in another order, relative to the largest output


def convolved(module: PatchEmbed, pixels: Tensor) -> Tensor:
    """Embed uint8 rows as the published code does: normalise, shape to a volume, convolve."""
    frames = pixels.shape[1] // (3 * PATCH * PATCH)
    volume = (pixels.float() / 255 - 0.5) / 0.5
    volume = volume.view(-1, 3, frames, PATCH, PATCH).expand(-1, 3, TAPS, PATCH, PATCH)
    return module.proj(volume).flatten(1)


def check(embed: Callable[[Tensor], Tensor], module: PatchEmbed, frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    pixels = torch.randint(0, 256, (37, 3 * frames * PATCH * PATCH), generator=generator, dtype=torch.uint8)
    expected = convolved(module, pixels)
    error = (embed(pixels) - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE, error.item()


@pytest.fixture
def module() -> PatchEmbed:
    torch.manual_seed(0)
    return PatchEmbed(PATCH, TAPS, WIDTH)


@pytest.mark.parametrize("frames", [1, 2], ids=["still", "video"])
def test_it_equals_the_convolution(module: PatchEmbed, frames: int) -> None:
    check(module, module, frames)


def test_no_convolution_runs(module: PatchEmbed, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a convolution ran")

    monkeypatch.setattr(torch.nn.functional, "conv3d", refuse)
    monkeypatch.setattr(module.proj, "forward", refuse)
    module(torch.zeros(4, 3 * PATCH * PATCH, dtype=torch.uint8))


def test_a_still_seen_by_one_tap_only_is_noticed(module: PatchEmbed) -> None:
    """A still is both frames of the video form; a product with the first tap alone is another function."""
    first = PatchEmbed(PATCH, TAPS, WIDTH)
    first.load_state_dict(module.state_dict())
    with torch.no_grad():
        first.proj.weight[:, :, 1] = 0
    with pytest.raises(AssertionError):
        check(first, module, 1)
