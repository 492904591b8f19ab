"""Packed variable-length attention with grouped key/value heads."""

from .checks import check_prompts
from .op import attention
from .reference import attention_reference
from .rotary import rotated

__all__ = ["attention", "attention_reference", "check_prompts", "rotated"]
