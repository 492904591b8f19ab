"""The small modules against their formulas: folded normalisation, collapsed stills, rotations, 16-bit numbers."""

import pytest
import torch

from medmo_core.batch import Batch
from medmo_core.models import MedMO
from medmo_core.modules import PatchEmbed, PatchMerger, RMSNorm, apply_rope, merge_order, mrope_table
from medmo_core.modules.patch_embed import patch_embed

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def draw_pixels(rows: int, frames: int, patch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, 3, frames, patch, patch), generator=generator, dtype=torch.uint8)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1, 1) for x in (MEAN, STD))
    return (pixels.double() / 255 - mean) / std


@pytest.mark.parametrize("frames", [1, 2], ids=["still", "frame-pair"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_folded_normalisation_equals_a_convolution(frames: int, has_bias: bool) -> None:
    """Raw uint8 rows through the folded product, against normalising and convolving; gradients too."""
    torch.manual_seed(1)
    weight = torch.randn(7, 3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True) if has_bias else None
    pixels = draw_pixels(5, frames, 4)
    out = patch_embed(pixels.flatten(1), weight, bias, image_mean=MEAN, image_std=STD)
    both = normalised(pixels).expand(-1, -1, 2, -1, -1)
    expected = torch.nn.functional.conv3d(both, weight, bias).flatten(1)
    torch.testing.assert_close(out, expected)
    inputs = (weight, bias) if bias is not None else (weight,)
    grads = (torch.autograd.grad(y.square().sum(), inputs) for y in (out, expected))
    torch.testing.assert_close(*grads)
    floats = normalised(pixels).flatten(1)
    torch.testing.assert_close(patch_embed(floats, weight, bias, image_mean=MEAN, image_std=STD), expected)


def test_weights_without_a_time_axis() -> None:
    torch.manual_seed(2)
    weight = torch.randn(7, 3, 4, 4, dtype=torch.float64)
    pixels = draw_pixels(5, 1, 4)
    out = patch_embed(pixels.flatten(1), weight, None, image_mean=MEAN, image_std=STD)
    torch.testing.assert_close(out, torch.nn.functional.conv2d(normalised(pixels)[:, :, 0], weight).flatten(1))
    with pytest.raises(ValueError, match=r"96 values each; the encoder takes 48 \(stills: 3 x 4 x 4\)$"):
        patch_embed(draw_pixels(5, 2, 4).flatten(1), weight, None, image_mean=MEAN, image_std=STD)


def test_pixels_are_not_changed_by_embedding() -> None:
    pixels = draw_pixels(3, 1, 4).flatten(1)
    floats = normalised(draw_pixels(3, 1, 4)).flatten(1).float()
    before = pixels.clone(), floats.clone()
    module = PatchEmbed(4, 2, 6)
    module(pixels), module(floats)
    assert torch.equal(pixels, before[0])
    assert torch.equal(floats, before[1])


def test_bf16_patches_stay_close_to_fp32() -> None:
    module = PatchEmbed(16, 2, 64)
    pixels = draw_pixels(8, 1, 16).flatten(1)
    exact = module(pixels)
    half = module.to(torch.bfloat16)(pixels)
    assert half.dtype == torch.bfloat16
    assert (half - exact).norm() / exact.norm() < 6e-3


def test_merge_order_by_hand() -> None:
    rows, columns = merge_order(2, 4, 2, torch.device("cpu"))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        *[(0, 0), (0, 1), (1, 0), (1, 1)],
        *[(0, 2), (0, 3), (1, 2), (1, 3)],
    ]
    with pytest.raises(ValueError, match="3 x 4 patches does not divide into 2 x 2"):
        merge_order(3, 4, 2, torch.device("cpu"))


def test_rotation_equals_its_formula_and_its_gradient() -> None:
    torch.manual_seed(3)
    positions = torch.randint(0, 50, (3, 6))
    cos, sin = (part.double() for part in mrope_table(positions, 16, 1e4, (4, 2, 2)))
    x = torch.randn(6, 3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: apply_rope(y, (cos, sin)), x)
    turned = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.complex(cos, sin)[:, None]
    torch.testing.assert_close(apply_rope(x, (cos, sin)), torch.cat([turned.real, turned.imag], -1))
    sliced = torch.stack([x, x], dim=1)[:, 0]
    torch.testing.assert_close(apply_rope(sliced, (cos, sin)), apply_rope(x, (cos, sin)))


def test_interleaved_axes_by_hand() -> None:
    """Sections [4, 2, 2]: frequencies 1 and 4 follow the height, 2 and 5 the width, the others time."""
    positions = torch.tensor([[1], [10], [100]])
    cos, _ = mrope_table(positions, 16, 1e4, (4, 2, 2))
    frequencies = 1e4 ** (-torch.arange(8) / 8)
    axes = torch.tensor([1, 10, 100, 1, 10, 100, 1, 1])
    torch.testing.assert_close(cos[0], (axes * frequencies).cos())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotation_of_16_bit_heads_is_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    table = mrope_table(torch.randint(0, 5000, (3, 6)), 16, 5e6, (4, 2, 2))
    x = torch.randn(6, 2, 16, dtype=dtype)
    out = apply_rope(x, table)
    assert out.dtype == dtype
    assert torch.equal(out, apply_rope(x.float(), table).to(dtype))


def test_rms_norm_of_16_bit_vectors_is_computed_in_fp32() -> None:
    norm = RMSNorm(64).to(torch.bfloat16)
    x = (300 * torch.randn(4, 64)).to(torch.bfloat16)
    exact = x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(norm(x).float(), exact, rtol=8e-3, atol=1e-3)


def test_mergers_normalise_before_or_after_the_view() -> None:
    torch.manual_seed(5)
    x = torch.randn(8, 6, dtype=torch.float64) + 2
    for after in (False, True):
        merger = PatchMerger(6, 5, 2, norm_after_merge=after, dtype=torch.float64)
        merged = x.view(2, 24)
        normal = torch.nn.functional.layer_norm(merged if after else x, (24 if after else 6,), eps=1e-6).view(2, 24)
        hidden = merger.linear_fc1(normal)
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        torch.testing.assert_close(merger(x), merger.linear_fc2(hidden))


def test_the_whole_model_runs_in_bf16() -> None:
    torch.manual_seed(6)
    model = MedMO.from_config("debug")
    image = model.config.image_token_id
    ids = torch.tensor([3, image, 4, 5, 6])
    batch = Batch(
        input_ids=ids,
        labels=torch.where(ids == image, -100, ids),
        position_ids=torch.arange(5).expand(3, 5),
        cu_seqlens=torch.tensor([0, 5], dtype=torch.int32),
        patches={"qwen3_vl": draw_pixels(4, 1, 16).flatten(1)},
        image_grid_thw={"qwen3_vl": torch.tensor([[1, 2, 2]])},
    )
    exact = model.loss(batch)
    half = model.to(torch.bfloat16).loss(batch)
    half.backward()
    assert half.dtype == torch.float32
    assert abs(half - exact) < 0.02 * exact
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert len(model.generate(batch, max_new_tokens=2, stop_token_ids=())[0][0].tokens) == 2
