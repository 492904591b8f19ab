"""Choices and defaults that a model and the settings of a run share, in a file that does not wait for PyTorch."""

from typing import Literal

DEFAULT_MIN_PIXELS = 65_536
"""Smallest image area after resizing, in px, of a checkpoint that states none: 256 x 256, as Qwen3-VL."""
DEFAULT_MAX_PIXELS = 16_777_216
"""Largest image area after resizing, in px, of a checkpoint that states none: 4096 x 4096, as Qwen3-VL."""

Recompute = Literal["nothing", "all", "selected"]
"""What a block computes again in the backward pass: nothing, all of it, or all but matrix products and attention."""

Loss = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"]
"""Policy losses; the head of `losses/grpo.py` defines them."""
Importance = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
"""Corrections for a sampler whose probabilities are not the trainer's; see `importance_weights`."""
