"""Cases of patch_embed for the walkers, the compiler gate and the benchmark."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..spec import Arguments, Bench, Compile, Gate, OpSpec, Tolerance
from .op import BACK_ENDS, FEW_PATCHES, _patch_embed, choices, patch_embed, shape_class
from .reference import patch_embed_reference

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Size(NamedTuple):
    """A case: N patches of side p in `frames` frames, width D, `taps` temporal taps, `side` of the position table."""

    num_patches: int
    embed_dim: int
    patch_size: int = 16
    frames: int = 1
    taps: int | None = 2  # None: a weight without a time axis
    side: int = 0  # 0: no positions
    has_bias: bool = True
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF


def _pixels(size: Size, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    """Return raw pixels, weights about as large as a trained model's, and places that include the table's corners."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, d, p = size.num_patches, size.embed_dim, size.patch_size
    values = 3 * p * p * (size.taps or 1)
    weight = normal(d, 3, *([] if size.taps is None else [size.taps]), p, p) / math.sqrt(values)
    table, coordinates = None, None
    if size.side:
        table = normal(size.side**2, d).to(dtype)
        coordinates = torch.rand(n, 2, generator=generator, dtype=torch.float64) * (size.side - 1)
        coordinates[::4] = coordinates[::4].round()
        coordinates[-1:] = size.side - 1
    return {
        "patches": torch.randint(0, 256, (n, 3 * size.frames * p * p), generator=generator, dtype=torch.uint8),
        "weight": weight.to(dtype),
        "bias": normal(d).to(dtype) if size.has_bias else None,
        "position_table": table,
        "coordinates": None if coordinates is None else coordinates.float(),
        "image_mean": size.mean,
        "image_std": size.std,
    }


def _floats(size: Size, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    """Return the same with rows that are normalised already."""
    arguments = _pixels(size, generator, dtype)
    return {**arguments, "patches": (arguments["patches"].double() / 127.5 - 1).to(dtype)}


def _first_tap(*, weight: Tensor, patches: Tensor, **rest: Any) -> Tensor:
    taps = weight if weight.dim() == 5 else weight.unsqueeze(2)
    is_still = patches.shape[1] == taps[0, :, 0].numel()
    return patch_embed(patches, taps[:, :, :1] if is_still else taps, **rest)


def _turned(*, coordinates: Tensor | None, **rest: Any) -> Tensor:
    return patch_embed(coordinates=None if coordinates is None else coordinates.flip(1), **rest)


def _nearest(*, coordinates: Tensor | None, **rest: Any) -> Tensor:
    return patch_embed(coordinates=None if coordinates is None else coordinates.round(), **rest)


def _one_std(*, image_std: tuple[float, ...], **rest: Any) -> Tensor:
    return patch_embed(image_std=(image_std[0],) * 3, **rest)


def _one_mean(*, image_mean: tuple[float, ...], **rest: Any) -> Tensor:
    return patch_embed(image_mean=(image_mean[0],) * 3, **rest)


def _flops(arguments: Arguments) -> float:
    n, width = arguments["patches"].shape
    return 2.0 * n * width * arguments["weight"].shape[0]


def _bytes(arguments: Arguments) -> float:
    """Count every input and the output once."""
    given = sum(a.numel() * a.element_size() for a in arguments.values() if isinstance(a, Tensor))
    weight = arguments["weight"]
    return float(given + arguments["patches"].shape[0] * weight.shape[0] * weight.element_size())


def _backward_flops(arguments: Arguments) -> float:
    """Count the product of the weight's gradient; pixels have none, the table's is added up."""
    return _flops(arguments)


def _gate(kernel: str, constants: Mapping[str, Any]) -> Gate:
    if kernel != "forward_kernel":
        return Gate()
    # The product of fp32 weights is in full precision, which tensor cores do not offer. Words are copied four at a time
    # where tiles divide a row of them.
    return Gate(hgmma=constants["BLOCK_N"] > 64, wide_copies=constants["NUM_WORDS"] % (constants["BLOCK_K"] // 4) == 0)


def _kinds(size: Size) -> dict[str, Size]:
    """Return other numbers of patches; the class of many for one model only, for its time on a CPU."""
    many = {"many": size._replace(num_patches=FEW_PATCHES + 4)} if (size.embed_dim, size.frames) == (1024, 1) else {}
    return {"one": size._replace(num_patches=1), "odd": size._replace(num_patches=65)} | many


def _passes(kernel: str, numbers: Mapping[str, int]) -> int | None:
    """Count the tiles of BLOCK_K pixels in a row of them."""
    return math.ceil(4 * numbers["NUM_WORDS"] / numbers["BLOCK_K"]) if kernel == "forward_kernel" else None


_TOLERANCE = {
    torch.float64: Tolerance(1e-12, "another order of summation and folded constants"),
    torch.float32: Tolerance(4e-6, "at most 1,536 products in another order, folded constants"),
    torch.float16: Tolerance(1e-3, "summed weights are rounded to fp16 before the product"),
    torch.bfloat16: Tolerance(8e-3, "summed weights are rounded to bf16 before the product"),
}

WIDTHS = {"8B": 1152, "4B": 1024}
PATCHES = {1280: 6400, 512: 1024, 768: 2304}
"""Of a square image, by its side in pixels."""
RAGGED = (6400, 1024, 256, 2304, 1600, 400, 4096, 576)
"""Patches of eight images of a mixed batch."""
_IMAGES = {
    f"{model}, {side} px, {count} image{'s' * (count > 1)}": Size(count * PATCHES[side], WIDTHS[model], side=48)
    for side in PATCHES
    for count in (8, 1)
    for model in WIDTHS
}

SPECS = (
    OpSpec(
        name="patch_embed",
        function=patch_embed,
        reference=patch_embed_reference,
        make=_pixels,
        sizes={
            "none": Size(0, 5, 4, side=3),
            "one": Size(1, 1, 4, side=1),
            "still, positions": Size(37, 130, side=7),
            "video, positions": Size(19, 40, frames=2, side=5),
            "video without a table": Size(9, 24, frames=2, has_bias=False),
            "other means, no time axis": Size(33, 48, 14, 1, None, 4, True, *IMAGENET),
            "other means, no bias": Size(5, 17, 4, 2, 2, 0, False, *IMAGENET),
            "odd patches": Size(7, 9, 3, side=3),
        },
        tolerance=_TOLERANCE,
        differentiable=("weight", "bias", "position_table"),
        faults={
            "first tap only": _first_tap,
            "row and column exchanged": _turned,
            "nearest position": _nearest,
            "one deviation for all channels": _one_std,
            "one mean for all channels": _one_mean,
        },
        op=_patch_embed,
        kernel_sizes={
            "none": Size(0, 5, 4, side=3),
            "one": Size(1, 1, 4, side=1),
            "two tiles": Size(130, 132, 4, side=5),
            "video, odd tiles": Size(9, 24, 6, 2, 2, 3, False),
            "other means, no time axis": Size(5, 17, 14, 1, None, 4, True, *IMAGENET),
            "no table": Size(3, 9, 8),
        },
        choices=choices,
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: shape_class(arguments["patches"]),
        compile=Compile(
            sizes={
                "4B": (Size(1024, 1024, side=48), torch.bfloat16),
                "8B": (Size(1024, 1152, side=48), torch.bfloat16),
                "8B, video": (Size(1024, 1152, frames=2, side=48), torch.bfloat16),
                "8B, no positions": (Size(1024, 1152), torch.bfloat16),
                "8B, fp32": (Size(64, 1152, side=48), torch.float32),
                "patches of 14": (Size(64, 1024, 14, 1, None, 0, True, *IMAGENET), torch.bfloat16),
            },
            gate=_gate,
            kinds=_kinds,
            passes=_passes,
        ),
        bench=Bench(
            sizes={
                **_IMAGES,
                "8B, ragged, 8 images": Size(sum(RAGGED), 1152, side=48),
                "8B, video of 4 frame pairs, 1280 px": Size(4 * 6400, 1152, frames=2, side=48),
            },
            cpu_sizes={
                "4B, 128 px, 1 image": Size(64, 1024, side=48),
                "8B, 256 px, 1 image": Size(256, 1152, side=48),
            },
            num_bytes=_bytes,
            num_flops=_flops,
            num_backward_flops=_backward_flops,
        ),
    ),
    OpSpec(
        name="patch_embed_floats",
        function=patch_embed,
        reference=patch_embed_reference,
        make=_floats,
        sizes={
            "none": Size(0, 5, 4, side=3),
            "still, positions": Size(21, 40, side=7),
            "video": Size(9, 24, 4, frames=2),
            "no time axis": Size(5, 17, 14, taps=None),
        },
        tolerance=_TOLERANCE,
        differentiable=("patches", "weight", "bias", "position_table"),
    ),
)
