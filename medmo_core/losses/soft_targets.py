"""Cross-entropy with a distribution in place of one target, as what it adds to cross-entropy with the target.

Both are the log of the same denominator less logits: sum_j p_j (log Z - z_j) - (log Z - z_y) = z_y - sum_j p_j z_j. So
only the logits of the tokens that the distribution knows are needed.

Shapes: L rows, H width, V vocabulary, C tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def softened(hidden: Tensor, weight: Tensor, tokens: Tensor, shares: Tensor, own: Tensor) -> Tensor:
    """Return what the distributions add to the summed cross-entropy of the rows.

    Args:
        hidden: (L, H) rows.
        weight: (V, H) of the head.
        tokens: (C,) int64 that the distributions are over.
        shares: (L, C) of each row how likely each is, 1 in all; or 0 in all for a row without a distribution.
        own: (L,) int64, index in `tokens` of the row's target; any where it has no distribution.

    Returns:
        A scalar with a graph, in fp32 at least.
    """
    dtype = torch.promote_types(hidden.dtype, shares.dtype)
    logits, shares = F.linear(hidden, weight[tokens]).to(dtype), shares.to(dtype)
    target = logits.gather(1, own[:, None]).squeeze(1) * shares.sum(1)
    return (target - (shares * logits).sum(1)).sum()
