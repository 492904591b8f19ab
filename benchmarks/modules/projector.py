"""The projector: the merger of the last features and those of the deepstack taps, beside transformers' mergers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medmo_core.models.config import PRESETS
from medmo_core.models.medmo import MedMO

from ..peers.transformers_model import Flavour, flavours
from ..suite.comparison import Comparison, Work
from .documents import random_model
from .sides import BACKWARD, BOTH, FORWARD, ModelPart, Side, compare

Taps = tuple[Tensor, ...]
"""(N, width) features of the last block, then of each tap."""


def make_taps(count: int, patches: int, width: int, device: torch.device) -> Taps:
    """Draw features."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(patches, width, generator=generator).to(device) for _ in range(count))


def our_side(model: MedMO, taps: Taps) -> Side:
    """Return our projector."""
    projector, inputs = model.projector, _leaves(taps, model.head_weight.dtype)

    def run() -> list[Tensor]:
        visual, additions = projector(inputs[0], inputs[1:])
        return [visual, *additions]

    return Side(run, inputs, dict(projector.named_parameters()))


def their_side(model: Any, flavour: Flavour, taps: Taps) -> Side:
    """Return transformers' mergers, which stand between the blocks of its tower."""
    tower = model.model.visual
    mergers: list[nn.Module] = [tower.merger, *tower.deepstack_merger_list]
    inputs = _leaves(taps, tower.dtype)
    if flavour.compiled:
        for merger in mergers:
            merger.compile()
    named = {name: p for name, p in tower.named_parameters() if "merger" in name.partition(".")[0]}
    return Side(lambda: [merger(tap) for merger, tap in zip(mergers, inputs, strict=True)], inputs, named)


def _leaves(taps: Taps, dtype: torch.dtype) -> list[Tensor]:
    return [tap.to(dtype, copy=True).requires_grad_() for tap in taps]


def make_model(preset: str, num_deepstack: int, device: torch.device, dtype: torch.dtype) -> MedMO:
    """Build a model that is little beside its projector."""
    vision = {"depth": max(1, num_deepstack), "deepstack_visual_indexes": tuple(range(num_deepstack))}
    return random_model(preset, device, dtype, vocab_size=64, num_hidden_layers=1, vision=vision)


def work_of(preset: str, taps: int, patches: int) -> dict[str, Work]:
    """Count the operations of two linear layers per merger, and of their gradients."""
    config = PRESETS[preset]
    merged = config.vision.hidden_size * config.vision.spatial_merge_size**2
    tokens = patches // config.vision.spatial_merge_size**2
    flops = 2 * taps * tokens * merged * (merged + config.text.hidden_size)
    factors = {FORWARD: 1, BACKWARD: 2, BOTH: 3}
    return {direction: Work(flops=n * flops, items=tokens, unit="tokens") for direction, n in factors.items()}


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    if device.type == "cuda":
        sizes = {f"{16 * side} px, {count} image{'s'[: count - 1]}": count * side**2
                 for side in (80, 48, 32) for count in (8, 1)}  # fmt: skip
        return [_comparison(preset, f"{name}, {what}", patches, 4, torch.bfloat16, device)
                for preset, name in (("medmo-4b", "4B"), ("medmo-8b", "8B"))
                for what, patches in sizes.items()]  # fmt: skip
    found = [_comparison("tiny", "tiny, 64 tokens", 256, 3, torch.float32, device)]
    if not short:  # one merger at the real width is what a small machine does in seconds
        found += [_comparison("tiny", "tiny, 1,024 tokens", 4096, 3, torch.float32, device),
                  _comparison("medmo-4b", "4B, one merger, 64 tokens", 256, 1, torch.float32, device)]  # fmt: skip
    return found


def _comparison(
    preset: str, case: str, patches: int, taps: int, dtype: torch.dtype, device: torch.device
) -> Comparison:
    width = PRESETS[preset].vision.hidden_size
    part = ModelPart(
        partial(make_model, preset, taps - 1, device, dtype), our_side, their_side,
        partial(make_taps, taps, 32, width, device), partial(make_taps, taps, patches, width, device),
    )  # fmt: skip
    return compare(
        part, dtype, _touching(flavours(device)), subject="projector", case=case,
        work=work_of(preset, taps, patches), seconds=1.0,
    )  # fmt: skip


def _touching(found: Sequence[tuple[Flavour, str]]) -> list[tuple[Flavour, str]]:
    """Keep the flavours that touch a merger: it has no attention, no patches, and no layer that Liger knows."""
    return [(flavour, absent) for flavour, absent in found if flavour.compiled or not flavour.linear_patch_embed]
