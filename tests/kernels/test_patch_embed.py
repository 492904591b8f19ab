"""Laws of patch_embed: transformers' patch embedding and positions, what interpolation must keep."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmo_core.modules import position_coordinates
from medmo_kernels import runtime
from medmo_kernels.patch_embed import patch_embed

CPU = torch.device("cpu")
GRIDS = [(4, 6), (2, 2), (14, 8)]  # the table below is 8 x 8: grids smaller and larger than it, and its middle


def random_inputs(count: int, frames: int, patch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3 * frames * patch**2), generator=generator, dtype=torch.uint8)


def weights(embed_dim: int, patch: int, side: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, a bias and a position table in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (embed_dim, 3, 2, patch, patch), (embed_dim,), (side**2, embed_dim)
    weight, bias, table = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return weight / (6 * patch**2) ** 0.5, bias, table


@pytest.mark.parametrize("frames", [1, 2], ids=["still", "video"])
@pytest.mark.parametrize(
    ("dtype", "mode"), [(torch.float32, "auto"), (torch.bfloat16, "auto"), (torch.float32, "triton")]
)
def test_pixels_equal_what_transformers_makes_of_processed_rows(
    frames: int, dtype: torch.dtype, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What enters the first block of transformers' tower, from rows that its processor normalised in float32."""
    modeling = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
    config = modeling.Qwen3VLVisionConfig(
        depth=1, hidden_size=48, num_heads=4, intermediate_size=32, patch_size=8, num_position_embeddings=64,
        out_hidden_size=16, deepstack_visual_indexes=(),
    )  # fmt: skip
    tower = modeling.Qwen3VLVisionModel(config)
    weight, bias, table = (x.to(dtype) for x in weights(48, 8, 8))
    entering: list[Tensor] = []
    tower.blocks[0].register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    count = sum(rows * columns for rows, columns in GRIDS)
    pixels = random_inputs(count, frames, 8)
    shown = pixels.view(count, 3, frames, 64).expand(-1, -1, 2, -1).flatten(1)
    grid_thw = torch.tensor([[1, rows, columns] for rows, columns in GRIDS])

    def theirs(precision: torch.dtype, rows: Tensor) -> Tensor:
        with torch.no_grad():
            for parameter, value in zip(
                (tower.patch_embed.proj.weight, tower.patch_embed.proj.bias, tower.pos_embed.weight),
                (weight, bias, table),
                strict=True,
            ):
                parameter.data = value.to(precision)
            tower.blocks.to(precision), tower.merger.to(precision)
            tower(rows, grid_thw)
        return entering.pop().double()

    truth = theirs(torch.float64, (shown.double() / 255 - 0.5) / 0.5)
    plain = theirs(dtype, (shown.float() / 255 - 0.5) / 0.5)
    monkeypatch.setenv(runtime.SWITCH, mode)
    coordinates = position_coordinates(GRIDS, 8, 2, CPU)
    ours = patch_embed(pixels, weight, bias, table, coordinates)
    assert ours.dtype == dtype
    bound = 2 * (plain - truth).abs().max() + 1e-6 * truth.abs().max()
    assert (ours.double() - truth).abs().max() <= bound
    shifted = patch_embed(pixels, weight, bias, table, coordinates.flip(1))
    assert (shifted.double() - truth).abs().max() > bound


@settings(max_examples=25, deadline=None)
@given(side=st.integers(1, 9), grids=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3))
def test_a_plane_over_the_table_stays_a_plane(side: int, grids: list[tuple[int, int]]) -> None:
    """Interpolation reproduces every bilinear function, and the corners of a grid are those of the table."""
    sizes = [(2 * rows, 2 * columns) for rows, columns in grids]
    at = torch.arange(side, dtype=torch.float64)
    row, column = (axis.flatten() for axis in torch.meshgrid(at, at, indexing="ij"))
    table = torch.stack([row, column, 3 + row - 2 * column + row * column / 7], dim=1)
    coordinates = position_coordinates(sizes, side, 2, CPU)
    pixels, weight = torch.zeros(len(coordinates), 12, dtype=torch.uint8), torch.zeros(3, 3, 2, 2).double()
    out = patch_embed(pixels, weight, None, table, coordinates)
    r, c = coordinates.double().unbind(1)
    torch.testing.assert_close(out, torch.stack([r, c, 3 + r - 2 * c + r * c / 7], dim=1), rtol=1e-5, atol=1e-5)
    start = 0
    for rows, columns in sizes:
        corners = out[[start, start + rows * columns - 1], :2]
        assert torch.equal(corners, torch.tensor([[0.0, 0.0], [side - 1, side - 1]]).double())
        start += rows * columns


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 12), seed=st.integers(0, 1000))
def test_patches_do_not_see_one_another(count: int, seed: int) -> None:
    weight, bias, table = weights(5, 4, 3)
    pixels = random_inputs(count, 1, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    places = 2 * torch.rand(count, 2, generator=generator)
    order = torch.randperm(count, generator=generator)
    out = patch_embed(pixels, weight, bias, table, places)
    torch.testing.assert_close(patch_embed(pixels[order], weight, bias, table, places[order]), out[order])
    torch.testing.assert_close(patch_embed(pixels[:1], weight, bias, table, places[:1]), out[:1])


@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_the_table_receives_every_gradient_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the four taps add up to 1, at corners and edges too."""
    monkeypatch.setenv(runtime.SWITCH, mode)
    weight, bias, table = (x.float() for x in weights(6, 4, 4))
    places = torch.tensor([[0, 0], [3, 3], [3, 0.25], [1.5, 2], [2, 1], [0.1, 2.9]])
    grad = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    patch_embed(random_inputs(6, 1, 4), weight, bias, table.requires_grad_(), places).backward(grad)
    assert table.grad is not None
    torch.testing.assert_close(table.grad.sum(0), grad.sum(0))
    # The last corner is read by the patch on it alone; the middle of the left edge by nobody.
    assert torch.equal(table.grad[15], grad[1])
    assert torch.equal(table.grad[4], torch.zeros(6))


@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_a_still_is_a_video_that_stands_still(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, and the gradients of both taps."""
    monkeypatch.setenv(runtime.SWITCH, mode)
    weight, bias, _ = (x.float() for x in weights(9, 4, 1))
    still = random_inputs(7, 1, 4)
    video = still.view(7, 3, 1, 16).expand(-1, -1, 2, -1).flatten(1)
    weight.requires_grad_()
    outputs = [patch_embed(pixels, weight, bias, image_mean=(0.4, 0.5, 0.6)) for pixels in (still, video)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), weight)[0] for out in outputs]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_centred_pixels_are_exact_in_16_bits(dtype: torch.dtype) -> None:
    """The ground of the numerics: no pixel is rounded."""
    pixels = torch.arange(256, dtype=torch.uint8)
    centred = torch.sub(pixels, 127.5, out=torch.empty(256, dtype=dtype))
    assert torch.equal(centred.double(), pixels.double() - 127.5)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_meets_its_weight_and_is_exact(
    dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that see one value of a patch each, in both orders in which the kernel reads pixels and weights."""
    monkeypatch.setenv(runtime.SWITCH, "triton")
    monkeypatch.setattr(runtime, "DEFAULT_CAPABILITY", capability)
    pixels = ((torch.arange(256)[:, None] + 37 * torch.arange(108)) % 256).to(torch.uint8)
    out = patch_embed(pixels, torch.eye(108, dtype=dtype).view(108, 3, 1, 6, 6))
    expected = (pixels.double() / 127.5 - 1).to(dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_any_size_keep_their_digits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel multiplies in fp16, whose range is narrow: a power of two on a column is one on its tokens."""
    monkeypatch.setenv(runtime.SWITCH, "triton")
    weight, bias, _ = (x.to(dtype) for x in weights(7, 4, 1))
    powers = torch.tensor([-100.0, -60, -20, 0, 20, 60, 100], dtype=torch.float64).exp2().to(dtype)
    pixels = random_inputs(5, 2, 4)
    out = patch_embed(pixels, weight, bias)
    scaled = patch_embed(pixels, weight * powers.view(-1, 1, 1, 1, 1), bias * powers)
    assert torch.equal(scaled, out * powers)
    assert torch.equal(patch_embed(pixels, torch.zeros_like(weight), bias), bias.expand(5, -1))


def test_views_and_unaligned_rows_are_read_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads words of four bytes from rows that begin anywhere."""
    monkeypatch.setenv(runtime.SWITCH, "triton")
    weight, bias, _ = (x.float() for x in weights(9, 4, 1))
    pixels = random_inputs(5, 1, 4)
    expected = patch_embed(pixels, weight, bias)
    odd = torch.zeros(5 * 48 + 1, dtype=torch.uint8)[1:].view(5, 48).copy_(pixels)
    columns = torch.zeros(5, 50, dtype=torch.uint8)[:, 1:49].copy_(pixels)
    for view in (odd, columns):
        assert torch.equal(patch_embed(view, weight, bias), expected)


def test_errors_tell_both_shapes() -> None:
    weight, bias, table = weights(5, 4, 3)
    pixels, places = random_inputs(2, 1, 4), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"47 values each; the encoder takes 48 .* or 96"):
        patch_embed(pixels[:, :-1], weight)
    with pytest.raises(ValueError, match=r"bias \(4,\), weight \(5, 3, 2, 4, 4\): expected \(5,\)"):
        patch_embed(pixels, weight, bias[:-1])
    with pytest.raises(ValueError, match="give both or neither"):
        patch_embed(pixels, weight, bias, table)
    with pytest.raises(ValueError, match=r"position_table \(8, 5\).*expected \(S \* S, 5\)"):
        patch_embed(pixels, weight, bias, table[:-1], places)
    with pytest.raises(ValueError, match=r"coordinates \(1, 2\).*expected \(2, 2\)"):
        patch_embed(pixels, weight, bias, table, places[:1])
    with pytest.raises(ValueError, match="patches are torch.int32"):
        patch_embed(pixels.int(), weight)
