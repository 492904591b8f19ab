"""Patches to tokens: raw pixels through one matrix product, learned positions added on the way out."""

from .op import patch_embed
from .reference import patch_embed_reference

__all__ = ["patch_embed", "patch_embed_reference"]
