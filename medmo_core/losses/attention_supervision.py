"""Attention supervision: one head must look at the boxes while the model says them.

A box's place reaches the answer only through attention. Its gradient is weak until the head looks near the right
place, so a model that starts from nothing learns likely boxes for long before it looks at all. Here the attention of
one head is learned directly: over what a token sees, spread over the visual tokens as the boxes cover them; and nowhere
on the pictures where the answer is that nothing is there. No weight is added, and use of the model does not change.

Shapes: L looks, T packed tokens, D head width.

Reference: Liu et al., Attention correctness in neural image captioning, arXiv 1605.09553 (supervised attention).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_losses(query: Tensor, key: Tensor, seen: Tensor, cover: Tensor, is_visual: Tensor) -> Tensor:
    """Return how far each look's attention is from where it should be, in nats.

    With a_t the attention of a look over the tokens it sees and p_t its cover divided by the sum: KL(p || a). Where the
    cover is zero everywhere: -log(1 - the attention on visual tokens).

    Numerics: fp32, float64 for float64.

    Args:
        query: (L, D) rotated queries of one head.
        key: (T, D) rotated keys of that head.
        seen: (L, T) bool, tokens that a look may see; each sees at least one that is not visual.
        cover: (L, T), not negative: where it should look; 0 at tokens that are not visual or not seen.
        is_visual: (T,) bool.

    Returns:
        (L,), each 0 or more.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    logits = (query.to(dtype) @ key.to(dtype).T / math.sqrt(query.shape[1])).masked_fill(~seen, -math.inf)
    everywhere = logits.logsumexp(-1)
    outside = logits.masked_fill(is_visual, -math.inf).logsumexp(-1)
    cover = cover.to(dtype)
    whole = cover.sum(-1, keepdim=True)
    share = cover / whole.clamp(min=torch.finfo(dtype).tiny)
    # 0 log 0 = 0: also where a token is not seen and its logit is infinite.
    divergence = torch.xlogy(share, share) - share * (logits.masked_fill(share == 0, 0.0) - everywhere[:, None])
    return torch.where(whole[:, 0] > 0, divergence.sum(-1), everywhere - outside)
