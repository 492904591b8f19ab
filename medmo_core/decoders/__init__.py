"""Language decoders."""

from .qwen3 import DecoderLayer, Qwen3Decoder

__all__ = ["DecoderLayer", "Qwen3Decoder"]
