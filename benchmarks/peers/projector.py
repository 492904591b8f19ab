"""The patch mergers one after another, as transformers runs them."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from medmo_kernels.projector.cases import listed

from .peer import Peer


def _merger_by_merger(**arguments: Any) -> list[Tensor]:
    """Compute each merger in the dtype of its tensors."""
    outputs = []
    for x, weights in zip(*listed(arguments), strict=True):
        width = weights.fc1_weight.shape[1]
        rows = x.reshape(-1, weights.norm_weight.shape[0])
        merged = F.layer_norm(rows, rows.shape[1:], weights.norm_weight, weights.norm_bias, 1e-6).reshape(-1, width)
        hidden = F.gelu(F.linear(merged, weights.fc1_weight, weights.fc1_bias))
        outputs.append(F.linear(hidden, weights.fc2_weight, weights.fc2_bias))
    return outputs


PEERS = {"transformers, merger by merger": Peer(_merger_by_merger)}
