"""An encoder and its projector under the official flat names.

Shapes: M visual tokens, E decoder width.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..encoders.protocol import Encoder
from ..errors import InputError
from ..modules.projector import Projector


class VisionTower(nn.Module):
    """An encoder and its projector, their children side by side under the official flat names.

    State: the encoder's children (`patch_embed`, `pos_embed`, `blocks`, ...) and the projector's (`merger`,
    `deepstack_merger_list`).

    Args:
        encoder: encoder that owns child modules only.
        projector: map from the encoder's width to the decoder's.
    """

    encoder: Encoder
    projector: Projector

    def __init__(self, encoder: Encoder, projector: Projector) -> None:
        super().__init__()
        assert isinstance(encoder, nn.Module)
        loose = [name for name, _ in encoder.named_parameters(recurse=False)]
        if loose:
            raise InputError(
                f"encoder {encoder.name!r} owns parameters directly ({', '.join(loose)}): use child modules"
            )
        for part in (encoder, projector):
            for name, child in part.named_children():
                self.add_module(name, child)
        # Not registered: their children already are, and a parameter must have one name only.
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "projector", projector)

    def forward(self, patches: dict[str, Tensor], image_grid_thw: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Turn patches into (M, E) visual tokens and (M, E) deepstack additions."""
        return self.projector(*self.encoder.forward(patches, image_grid_thw))
