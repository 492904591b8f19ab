"""Promises of every vision encoder.

Shapes: N patches in merge order, I images.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ..batch import PatchSpec


class EncoderOutput(NamedTuple):
    """Features of every patch.

    Attributes:
        features: (N, embed_dim) final features, in merge order.
        deepstack: (N, embed_dim) features of earlier layers, first layer first; empty for most encoders.
    """

    features: Tensor
    deepstack: tuple[Tensor, ...] = ()


@runtime_checkable
class Encoder(Protocol):
    """A vision encoder: patches in, one feature vector per patch out.

    An encoder is an `nn.Module` that owns child modules only, no parameters or buffers: `VisionTower` adopts
    its children, so that parameters keep their official flat names.

    Attributes:
        name: key in `ENCODERS`; a plain encoder reads `patches[name]`.
        embed_dim: width of a feature vector.
        num_deepstack: taps handed on for deepstack.
        specs: what patches it eats, by name. The first one is primary: its merge size is the features', and its grid
            places the image in the text.
    """

    name: str
    embed_dim: int
    num_deepstack: int
    specs: dict[str, PatchSpec]

    def forward(self, patches: dict[str, Tensor], image_grid_thw: dict[str, Tensor]) -> EncoderOutput:
        """Encode (N, width) patches laid out by (I, 3) grids."""
        ...
