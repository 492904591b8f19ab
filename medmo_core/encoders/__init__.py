"""Vision encoders behind one protocol; a new one is a file and a line in `ENCODERS`."""

from collections.abc import Callable

from .dinov2 import Dinov2Encoder
from .fused import FusedEncoder
from .protocol import Encoder, EncoderOutput
from .qwen3_vl import Qwen3VLEncoder
from .siglip2 import Siglip2Encoder

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "qwen3_vl": Qwen3VLEncoder,
    "siglip2": Siglip2Encoder,
    "dinov2": Dinov2Encoder,
    "fused": FusedEncoder,
}

__all__ = [
    "ENCODERS",
    "Dinov2Encoder",
    "Encoder",
    "EncoderOutput",
    "FusedEncoder",
    "Qwen3VLEncoder",
    "Siglip2Encoder",
]
