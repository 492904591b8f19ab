"""Patches as an encoder takes them.

Shapes: p patch size.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PatchSpec:
    """Size, order and normalisation of the patches that an encoder takes.

    Units: `patch_size` in pixels; `image_mean` and `image_std` of pixel values scaled to [0, 1], per RGB channel.

    Attributes:
        patch_size: side of one square patch.
        merge_size: side, in patches, of the square that becomes one visual token; patches arrive in merge order.
        temporal_patch_size: frames that a video row holds; stills always hold one.
        image_mean: mean to subtract from the scaled pixel.
        image_std: deviation to divide the scaled and centred pixel by.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int = 1
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def token_px(self) -> int:
        """Pixels that one visual token covers along each side."""
        return self.patch_size * self.merge_size

    @property
    def still_width(self) -> int:
        """Values in the row of one still patch: 3 * p * p."""
        return 3 * self.patch_size**2
