"""The pixel budget, the grid and the order of patches, against transformers' Qwen3-VL image processor."""

import random

import numpy as np
import pytest
from PIL import Image

from medmo_core.batch import PatchSpec
from medmo_core.data.images.patches import patchify, resize_pixels, smart_resize, unpatchify

QWEN3_VL = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
MIN_PIXELS, MAX_PIXELS = 65_536, 16_777_216  # of the published Qwen3-VL preprocessor


def processor(min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS):  # noqa: ANN201 - a transformers class
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.Qwen2VLImageProcessorPil(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
    )


def random_sizes(n: int) -> list[tuple[int, int]]:
    rng = random.Random(0)
    ordinary = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(n // 2)]
    narrow = [(rng.randint(1, 40), rng.randint(1, 9000)) for _ in range(n // 4)]
    edges = [
        (rng.choice([1, 15, 16, 17, 47, 48, 49, 80, 256]), rng.choice([31, 32, 33, 3200, 3201, 9600]))
        for _ in range(n // 4)
    ]
    return [size if rng.random() < 0.5 else size[::-1] for size in ordinary + narrow + edges]


@pytest.mark.parametrize(("min_pixels", "max_pixels"), [(MIN_PIXELS, MAX_PIXELS), (4096, 50_000)])
def test_thousand_random_sizes_agree_with_the_processor(min_pixels: int, max_pixels: int) -> None:
    theirs = processor(min_pixels, max_pixels)
    refused = 0
    for height, width in random_sizes(1000):
        try:
            expected = theirs.get_number_of_image_patches(height, width, {}), True
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match=f"{width}x{height} px is .* times longer than wide; at most 200"):
                smart_resize(height, width, factor=32, min_pixels=min_pixels, max_pixels=max_pixels)
            continue
        new_height, new_width = smart_resize(height, width, factor=32, min_pixels=min_pixels, max_pixels=max_pixels)
        assert (new_height // 16) * (new_width // 16) == expected[0], (height, width)
        assert new_height % 32 == new_width % 32 == 0
    assert refused > 20


def test_the_grid_and_not_only_its_area_agrees() -> None:
    theirs = processor(4096, 50_000)
    for height, width in random_sizes(60):
        if max(height, width) / min(height, width) > 200 or height * width > 2_000_000:
            continue
        grid = theirs(images=[Image.new("RGB", (width, height))])["image_grid_thw"][0]
        new_height, new_width = smart_resize(height, width, factor=32, min_pixels=4096, max_pixels=50_000)
        assert [1, new_height // 16, new_width // 16] == [int(n) for n in grid], (height, width)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0)])
def test_an_empty_image_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="has no pixels"):
        smart_resize(height, width, factor=32, min_pixels=1, max_pixels=10)


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="min_pixels=100, max_pixels=10"):
        smart_resize(10, 10, factor=32, min_pixels=100, max_pixels=10)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processor_rows(pixels: np.ndarray, min_pixels: int, max_pixels: int) -> tuple[np.ndarray, list[int]]:
    """The processor's rows without the repeated frame, back on the 0..255 scale."""
    out = processor(min_pixels, max_pixels)(images=[Image.fromarray(pixels)])
    values = np.asarray(out["pixel_values"]).reshape(-1, 3, 2, 16 * 16)
    assert np.array_equal(values[:, :, 0], values[:, :, 1])
    return (values[:, :, 0].reshape(len(values), -1) * 0.5 + 0.5) * 255, [int(n) for n in out["image_grid_thw"][0]]


def test_patches_come_in_the_processors_order() -> None:
    pixels = noise(64, 128)
    rows, grid = processor_rows(pixels, 1024, 10**7)
    patches, our_grid = patchify(pixels, QWEN3_VL, (64, 128))
    assert patches.dtype == np.uint8 and list(our_grid) == grid == [1, 4, 8]
    assert np.array_equal(np.rint(rows).astype(np.uint8), patches)
    assert np.abs(rows - patches).max() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(100, 150), (37, 300), (500, 333)])
def test_resized_patches_agree_to_the_resampling(height: int, width: int) -> None:
    """Both antialias with a bicubic kernel; rounding between the two passes differs by a grey level or two."""
    smooth = np.asarray(
        Image.fromarray(noise(height // 8 + 1, width // 8 + 1)).resize((width, height), Image.Resampling.BILINEAR)
    )
    size = smart_resize(height, width, factor=32, min_pixels=16_384, max_pixels=40_000)
    rows, grid = processor_rows(smooth, 16_384, 40_000)
    patches, our_grid = patchify(smooth, QWEN3_VL, size)
    assert list(our_grid) == grid
    error = np.abs(rows - patches.astype(np.float64))
    assert error.max() <= 2.01 and error.mean() < 0.3, (error.max(), error.mean())


@pytest.mark.parametrize(
    "spec", [QWEN3_VL, PatchSpec(patch_size=14, merge_size=1), PatchSpec(patch_size=8, merge_size=3)]
)
def test_unpatchify_is_the_inverse(spec: PatchSpec) -> None:
    size = (spec.token_px * 3, spec.token_px * 2)
    pixels = noise(*size)
    patches, grid = patchify(pixels, spec, size)
    assert patches.shape == (grid[1] * grid[2], 3 * spec.patch_size**2)
    assert np.array_equal(unpatchify(patches, grid, spec), pixels)


def test_one_token_covers_one_square() -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[32:, :32] = 200  # the third token, reading row by row
    patches, _ = patchify(pixels, QWEN3_VL, (64, 64))
    assert [int(p.max()) for p in patches] == [0] * 8 + [200] * 4 + [0] * 4


def test_resize_keeps_flat_and_read_only_images() -> None:
    flat = np.full((30, 40, 3), 77, dtype=np.uint8)
    flat.setflags(write=False)
    assert np.array_equal(resize_pixels(flat, (64, 96)), np.full((64, 96, 3), 77, dtype=np.uint8))
    assert resize_pixels(flat, (30, 40)) is flat


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 image, got shape \(4, 4\) of uint8"):
        resize_pixels(np.zeros((4, 4), dtype=np.uint8), (32, 32))
    with pytest.raises(ValueError, match="size 40x32 px must be a multiple of 32 px"):
        patchify(noise(32, 32), QWEN3_VL, (32, 40))
