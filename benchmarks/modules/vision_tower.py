"""The vision tower: uint8 patches to visual tokens and deepstack additions, whole and for the width of its decoder.

Transformers' model gets its pixels normalised beforehand: its processor does that on the host.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from medmo_core.models.medmo import MedMO
from medmo_recipes.training.monitoring.flops import BatchWork, UsefulFlops

from ..peers.transformers_model import Flavour, flavours
from ..suite.comparison import Comparison, Work
from .documents import ENCODER, pixel_values, random_model, skeleton
from .sides import BOTH, FORWARD, ModelPart, Side, compare

LEARNABLE_PATCHES = 8192
"""With more than these the activations of a whole tower, none computed again, do not fit beside one another."""


@dataclass(frozen=True)
class Images:
    """Square images: how many, and patches along a side."""

    count: int
    side: int

    def make(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw patches, and give their grids."""
        generator = torch.Generator().manual_seed(0)
        patches = torch.randint(0, 256, (self.count * self.side**2, 768), dtype=torch.uint8, generator=generator)
        grids = torch.tensor([[1, self.side, self.side]]).expand(self.count, -1).contiguous()
        return patches.to(device), grids.to(device)


def our_side(model: MedMO, images: tuple[torch.Tensor, torch.Tensor]) -> Side:
    """Return our tower."""
    tower, (patches, grids) = model.model.visual, images

    def run() -> list[torch.Tensor]:
        visual, additions = tower({ENCODER: patches}, {ENCODER: grids})
        return [visual, *additions]

    return Side(run, (), dict(tower.named_parameters()))


def their_side(model: Any, flavour: Flavour, images: tuple[torch.Tensor, torch.Tensor]) -> Side:
    """Return transformers' tower."""
    tower, (patches, grids) = model.model.visual, images
    vision = model.config.vision_config
    pixels = pixel_values(patches, vision.patch_size, vision.temporal_patch_size, tower.dtype)

    def run() -> list[torch.Tensor]:
        output = tower(pixels, grid_thw=grids)
        return [output.pooler_output, *output.deepstack_features]

    return Side(run, (), dict(tower.named_parameters()))


def make_model(preset: str, device: torch.device, dtype: torch.dtype) -> MedMO:
    """Build a model whose decoder is next to nothing."""
    return random_model(preset, device, dtype, vocab_size=64, num_hidden_layers=1)


def work_of(preset: str, images: Images) -> dict[str, Work]:
    """Count the operations."""
    patches, model = images.count * images.side**2, skeleton(preset)
    counted = BatchWork(0, 0, 0, 0, patches // model.merge_size**2, {ENCODER: patches},
                      {ENCODER: patches * images.side**2}, {ENCODER: patches * 768})  # fmt: skip
    work = {}
    for direction, trains in ((FORWARD, False), (BOTH, True)):
        flops = UsefulFlops(model.requires_grad_(trains)).of(counted)
        work[direction] = Work(flops=flops, items=images.count, unit="images")
    if patches > LEARNABLE_PATCHES:
        del work[BOTH]
    return work


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    if device.type == "cuda":
        dtype, shown, small = torch.bfloat16, {"medmo-4b": "4B", "medmo-8b": "8B"}, 32
        sizes = [Images(count, side) for side in (80, 48, 32) for count in (8, 1)]
    else:
        dtype, shown, small = torch.float32, {"tiny": "tiny"}, 8
        sizes = [Images(2, 8)] if short else [Images(1, 32), Images(4, 16)]
    return [
        compare(
            ModelPart(
                partial(make_model, preset, device, dtype),
                our_side,
                their_side,
                partial(Images(1, small).make, device),
                partial(images.make, device),
            ),
            dtype,
            flavours(device),
            subject="vision_tower",
            case=f"{name}, {16 * images.side} px, {images.count} image{'s'[: images.count - 1]}",
            work=work_of(preset, images),
            seconds=1.5 if device.type == "cuda" else 1.0,
        )
        for preset, name in shown.items()
        for images in sizes
    ]
