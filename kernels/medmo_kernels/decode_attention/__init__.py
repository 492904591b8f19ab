"""Attention of one new token per sequence to a key/value cache; the keys and values of a prompt may be shared."""

from .op import decode_attention
from .reference import decode_attention_reference

__all__ = ["decode_attention", "decode_attention_reference"]
