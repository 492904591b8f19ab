"""Map from vision features to decoder tokens: merge 2x2 patches, two linear layers.

Shapes: N patches in merge order, M = N / merge_size ** 2 visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmo_kernels.projector import ProjectorWeights, projector

EPS = 1e-6


class PatchMerger(nn.Module):
    """Merger of the patches of one visual token into one vector of the decoder's width.

    Patches arrive in merge order, so merging is a view. GELU is the erf form.

    State: `norm.{weight,bias}`, `linear_fc1.{weight,bias}`, `linear_fc2.{weight,bias}`.

    Args:
        embed_dim: width of a patch.
        out_dim: width of the decoder.
        merge_size: patches along one side of a visual token.
        norm_after_merge: normalise the merged vector (deepstack) instead of each patch (main path).
    """

    def __init__(
        self,
        embed_dim: int,
        out_dim: int,
        merge_size: int,
        *,
        norm_after_merge: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.merge_size = merge_size
        self.merged_dim = embed_dim * merge_size**2
        self.norm_after_merge = norm_after_merge
        norm_dim = self.merged_dim if norm_after_merge else embed_dim
        self.norm = nn.LayerNorm(norm_dim, eps=EPS, device=device, dtype=dtype)
        self.linear_fc1 = nn.Linear(self.merged_dim, self.merged_dim, device=device, dtype=dtype)
        self.linear_fc2 = nn.Linear(self.merged_dim, out_dim, device=device, dtype=dtype)

    def forward(self, features: Tensor) -> Tensor:
        """Merge (N, embed_dim) patches into (M, out_dim) tokens."""
        if not self.is_plain:
            merged = self.norm(features.reshape(-1, self.norm.weight.shape[0])).view(-1, self.merged_dim)
            return self.linear_fc2(F.gelu(self.linear_fc1(merged)))
        return projector([features], [self.parameters_of_op()], merge_size=self.merge_size, eps=EPS)[0]

    @property
    def is_plain(self) -> bool:
        """Say whether the op may stand for the layers: adapters, quantisers and hooks need the layers to be called."""
        layers = (self.norm, self.linear_fc1, self.linear_fc2)
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (self, *layers))
        return not hooked and [type(layer) for layer in layers] == [nn.LayerNorm, nn.Linear, nn.Linear]

    def parameters_of_op(self) -> ProjectorWeights:
        """Return the parameters as the op takes them."""
        fc1, fc2 = self.linear_fc1, self.linear_fc2
        return ProjectorWeights(self.norm.weight, self.norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


class Projector(nn.Module):
    """Projection of the final features and of each deepstack tap.

    State: `merger.*` and `deepstack_merger_list.{i}.*`, each a `PatchMerger`.

    Args:
        embed_dim: width of a patch.
        out_dim: width of the decoder.
        num_deepstack: taps of the encoder.
        merge_size: patches along one side of a visual token.
    """

    def __init__(
        self,
        embed_dim: int,
        out_dim: int,
        *,
        num_deepstack: int = 0,
        merge_size: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.merger = PatchMerger(embed_dim, out_dim, merge_size, device=device, dtype=dtype)
        self.deepstack_merger_list = nn.ModuleList(
            PatchMerger(embed_dim, out_dim, merge_size, norm_after_merge=True, device=device, dtype=dtype)
            for _ in range(num_deepstack)
        )

    def forward(self, features: Tensor, deepstack: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Project what an encoder returns (its two fields may be passed as `*output`).

        Args:
            features: (N, embed_dim) in merge order.
            deepstack: as many (N, embed_dim) taps as the projector has deepstack mergers.

        Returns:
            (M, out_dim) visual tokens, and one (M, out_dim) addition per tap.
        """
        mergers = [self.merger, *(cast(PatchMerger, merger) for merger in self.deepstack_merger_list)]
        inputs = [features, *deepstack]
        if all(merger.is_plain for merger in mergers):
            weights = [merger.parameters_of_op() for merger in mergers]
            main, *additions = projector(inputs, weights, merge_size=self.merger.merge_size, eps=EPS)
        else:
            main, *additions = (merger(x) for merger, x in zip(mergers, inputs, strict=True))
        return main, additions
