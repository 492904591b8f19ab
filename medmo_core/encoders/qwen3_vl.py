"""The vision tower of Qwen3-VL.

Shapes: N patches in merge order, I images, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import PatchSpec
from ..errors import InputError
from ..modules.attention import VisionAttention
from ..modules.mlp import MLP
from ..modules.patch_embed import PatchEmbed, position_coordinates
from ..modules.rope import RopeTable, axial_table
from .positions import frame_grids
from .protocol import EncoderOutput

ROPE_THETA = 10_000.0
POSITION_BASE = 100.0  # longest wave of a new position table, in patches, over 2 pi
POSITION_SCALE = 0.5  # beside patches of about unit size


class VisionBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual.

    State: `norm1`, `attn`, `norm2`, `mlp`.

    Args:
        embed_dim: width D.
        num_heads: attention heads.
        mlp_dim: width of the feed-forward layer.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6, device=device, dtype=dtype)
        self.attn = VisionAttention(embed_dim, num_heads, device=device, dtype=dtype)
        self.mlp = MLP(embed_dim, mlp_dim, approximate="tanh", device=device, dtype=dtype)

    def forward(self, x: Tensor, cu_seqlens: Tensor, table: RopeTable) -> Tensor:
        """Transform (N, D) patches within the segments of `cu_seqlens`."""
        x = x + self.attn(self.norm1(x), cu_seqlens, table)
        return x + self.mlp(self.norm2(x))


class Qwen3VLEncoder(nn.Module):
    """Encoder of stills and frame pairs; every frame attends to itself only.

    State: `patch_embed.proj.*`, `pos_embed.weight`, `blocks.{i}.*`.

    Args:
        embed_dim: width D.
        depth: blocks.
        num_heads: heads of each block.
        mlp_dim: width of the feed-forward layers.
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames in a video row.
        merge_size: patches along one side of a visual token.
        num_position_embeddings: entries of the square table of learned positions.
        deepstack_layers: blocks whose output is also handed on, counted from 0.
        image_mean: mean per channel, of pixels scaled to [0, 1].
        image_std: standard deviation per channel.
    """

    name = "qwen3_vl"

    def __init__(
        self,
        *,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_dim: int = 4096,
        patch_size: int = 16,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        num_position_embeddings: int = 2304,
        deepstack_layers: Sequence[int] = (5, 11, 17),
        image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        image_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if round(num_position_embeddings**0.5) ** 2 != num_position_embeddings:
            raise InputError(f"num_position_embeddings {num_position_embeddings} is not the square of a whole number")
        if any(not 0 <= layer < depth for layer in deepstack_layers):
            raise InputError(f"deepstack_layers {list(deepstack_layers)} reach outside the {depth} blocks")
        self.embed_dim = embed_dim
        self.head_dim = embed_dim // num_heads
        self.deepstack_layers = tuple(deepstack_layers)
        self.num_deepstack = len(self.deepstack_layers)
        spec = PatchSpec(patch_size, merge_size, temporal_patch_size, image_mean, image_std)
        self.specs = {self.name: spec}
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.patch_embed = PatchEmbed(
            patch_size, temporal_patch_size, embed_dim, image_mean=image_mean, image_std=image_std, **where
        )
        self.pos_embed = nn.Embedding(num_position_embeddings, embed_dim, **where)
        self.blocks = nn.ModuleList(VisionBlock(embed_dim, num_heads, mlp_dim, **where) for _ in range(depth))

    def forward(self, patches: dict[str, Tensor], image_grid_thw: dict[str, Tensor]) -> EncoderOutput:
        """Encode packed images.

        Args:
            patches: (N, width) under "qwen3_vl"; uint8 pixels or normalised floats.
            image_grid_thw: (I, 3) under "qwen3_vl".

        Returns:
            (N, D) features and one (N, D) tensor per deepstack tap.

        Raises:
            ValueError: rows and grids disagree, or the rows have a wrong width.
        """
        rows = patches[self.name]
        frames = frame_grids(image_grid_thw[self.name], len(rows))
        merge_size = self.specs[self.name].merge_size
        positions = self.pos_embed.weight
        coordinates = position_coordinates(frames, math.isqrt(len(positions)), merge_size, positions.device)
        x = self.patch_embed(rows, positions, coordinates)
        table = self._rope_table(frames, merge_size, x.device)
        cu_seqlens = torch.tensor([0, *(height * width for height, width in frames)]).cumsum(0, dtype=torch.int32)
        cu_seqlens = cu_seqlens.to(x.device)  # once for all layers
        taps = []
        for index, block in enumerate(self.blocks):
            x = block(x, cu_seqlens, table)
            if index in self.deepstack_layers:
                taps.append(x)
        return EncoderOutput(x, tuple(taps))

    @torch.no_grad()
    def init_positions(self) -> None:
        """Fill the learned position table with sines and cosines of row and column.

        A new model can tell places apart from its first step on; drawn at random the table would have to grow first.
        """
        weight = self.pos_embed.weight
        side, quarter = int(weight.shape[0] ** 0.5), weight.shape[1] // 4
        rates = POSITION_BASE ** -(torch.arange(quarter, device=weight.device) / quarter)
        angles = torch.arange(side, device=weight.device)[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        rows = waves[:, None].expand(side, side, -1)
        columns = waves[None].expand(side, side, -1)
        table = POSITION_SCALE * torch.cat([rows, columns], dim=2).flatten(0, 1)
        weight[: side * side, : 4 * quarter].copy_(table)

    def _rope_table(self, frames: list[tuple[int, int]], merge_size: int, device: torch.device) -> RopeTable:
        tables = [axial_table(*grid, merge_size, self.head_dim, ROPE_THETA, device) for grid in frames]
        if len(set(frames)) == 1:
            return tables[0][0].repeat(len(frames), 1), tables[0][1].repeat(len(frames), 1)
        return torch.cat([cos for cos, _ in tables]), torch.cat([sin for _, sin in tables])
