"""Several encoders on one grid of visual tokens, their features side by side.

Shapes: N patches in merge order, I images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modules.fusion import fuse_features
from .dinov2 import Dinov2Encoder
from .protocol import Encoder, EncoderOutput
from .qwen3_vl import Qwen3VLEncoder
from .siglip2 import Siglip2Encoder

TOWERS: dict[str, Callable[..., Encoder]] = {
    "qwen3_vl": Qwen3VLEncoder,
    "siglip2": Siglip2Encoder,
    "dinov2": Dinov2Encoder,
}


class FusedEncoder(nn.Module):
    """Two (or more) encoders of the same images, whose features are concatenated patch by patch.

    Every image is cut once per tower, so that all towers see the same grid of patches: a token covers 32 px of the
    picture that a patch-16 tower gets and 28 px of the slightly smaller picture that a patch-14 tower gets. Each
    tower keeps its official parameter names, side by side. Deepstack taps are not handed on.

    Args:
        towers: names of the encoders, in the order of their features.
        tower_args: constructor arguments per tower, by name.

    Raises:
        ValueError: an unknown or repeated tower, or towers that merge patches differently.
    """

    name = "fused"
    num_deepstack = 0
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        size: {"tower_args": {"siglip2": Siglip2Encoder.SIZES[size], "dinov2": Dinov2Encoder.SIZES[size]}}
        for size in ("debug", "tiny", "base", "large")
    }

    def __init__(
        self,
        *,
        towers: Sequence[str] = ("siglip2", "dinov2"),
        tower_args: Mapping[str, Mapping[str, Any]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        args = dict(tower_args or {})
        unknown = [name for name in (*towers, *args) if name not in TOWERS]
        if unknown:
            raise InputError(f"unknown tower {unknown[0]!r}; towers can be {', '.join(TOWERS)}")
        if len(set(towers)) != len(towers) or not towers:
            raise InputError(f"towers are {list(towers)}; name each encoder once")
        idle = [name for name in args if name not in towers]
        if idle:
            raise InputError(f"tower_args names {idle[0]!r}, which is not one of the towers {list(towers)}")
        built = {name: TOWERS[name](**args.get(name, {}), device=device, dtype=dtype) for name in towers}
        merges = {name: built[name].specs[name].merge_size for name in towers}
        if len(set(merges.values())) != 1:
            raise InputError(f"towers need one grid of visual tokens, but their merge sizes are {merges}")
        # Kept beside the module tree: the towers' children hang here flat, under their official names.
        object.__setattr__(self, "towers", built)
        for tower in built.values():
            assert isinstance(tower, nn.Module)
            for child_name, child in tower.named_children():
                self.add_module(child_name, child)
        self.embed_dim = sum(tower.embed_dim for tower in built.values())
        self.specs = {name: built[name].specs[name] for name in towers}

    towers: dict[str, Encoder]

    @classmethod
    def tiny(cls, **overrides: Any) -> FusedEncoder:
        """Build the size that trains on a laptop."""
        return cls(**{**cls.SIZES["tiny"], **overrides})

    def forward(self, patches: dict[str, Tensor], image_grid_thw: dict[str, Tensor]) -> EncoderOutput:
        """Encode packed images with every tower.

        Args:
            patches: (N, width) per tower, under its name.
            image_grid_thw: (I, 3) per tower, under its name; equal, since the towers share one grid.

        Returns:
            (N, sum of the towers' widths), no deepstack.

        Raises:
            ValueError: a tower's patches are missing, or the towers' grids differ.
        """
        absent = [name for name in self.towers if name not in patches or name not in image_grid_thw]
        if absent:
            raise InputError(f"the batch has no patches for {absent[0]!r}; it has {sorted(patches) or 'none'}")
        first = next(iter(self.towers))
        for name in self.towers:
            if not torch.equal(image_grid_thw[name], image_grid_thw[first]):
                raise InputError(
                    f"{name} and {first} see different grids: {image_grid_thw[name].tolist()} and "
                    f"{image_grid_thw[first].tolist()}; cut each image to one grid of patches for all towers"
                )
        features = [tower.forward(patches, image_grid_thw).features for tower in self.towers.values()]
        return EncoderOutput(fuse_features(features))
