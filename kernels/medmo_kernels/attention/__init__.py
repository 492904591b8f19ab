"""Packed variable-length attention with grouped key/value heads."""

from .op import attention, check_prompts
from .reference import attention_reference
from .sdpa import rotated

__all__ = ["attention", "attention_reference", "check_prompts", "rotated"]
