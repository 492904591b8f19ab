"""RMSNorm of queries and keys, then rotary positions, by transformers and by Liger."""

import torch
from torch import Tensor

from .peer import Peer


def _transformers(*, query: Tensor, key: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor,
                  eps: float = 1e-6) -> tuple[Tensor, Tensor]:  # fmt: skip
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)

    cosine, sine = (torch.cat([part, part], dim=-1).to(query.dtype) for part in (cos, sin))
    return apply_rotary_pos_emb(norm(query, query_weight), norm(key, key_weight), cosine, sine)


def _liger(*, query: Tensor, key: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor,
           eps: float = 1e-6) -> tuple[Tensor, Tensor]:  # fmt: skip
    from liger_kernel.ops import LigerRMSNormFunction, LigerRopeFunction

    q, k = (
        LigerRMSNormFunction.apply(x.contiguous(), weight, eps, 0.0, "llama", False)
        for x, weight in ((query, query_weight), (key, key_weight))
    )
    whole = [torch.cat([part, part], dim=-1)[None].to(query.dtype) for part in (cos, sin)]
    turned = LigerRopeFunction.apply(q.transpose(0, 1)[None], k.transpose(0, 1)[None], *whole)
    return turned[0][0].transpose(0, 1), turned[1][0].transpose(0, 1)


PEERS = {
    "transformers": Peer(_transformers, needs=("transformers",)),
    "Liger, RMSNorm twice and rope": Peer(_liger, needs=("liger_kernel",), cuda=True),
}
