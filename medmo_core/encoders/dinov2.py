"""DINOv2: a self-supervised vision transformer with layer scale and a class token.

Shapes: N patches in merge order, I frames, D embedding width, p patch size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import PatchSpec
from ..errors import InputError
from ..modules.attention import PackedAttention
from ..modules.patch_embed import patch_embed
from .positions import frame_grids, resized_positions
from .protocol import EncoderOutput

OFFICIAL_PREFIX = "dinov2."
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Dinov2Encoder(nn.Module):
    """DINOv2 backbone that encodes stills.

    Parameters bear the names of the `facebook/dinov2-*` checkpoints under `dinov2.`: `embeddings.*`,
    `encoder.layer.{i}.*`, `layernorm.*`. The class token takes part in attention but is not handed on: features are of
    patches only. The mask token (`embeddings.mask_token`) serves pre-training alone: it is not built, and left out
    when weights are read. Frames of a video are encoded one by one.

    Args:
        embed_dim: width D.
        depth: layers.
        num_heads: heads of each layer.
        mlp_ratio: width of the feed-forward layers over `embed_dim`.
        swiglu: gated feed-forward layers of two thirds that width (the giant model).
        qkv_bias: give queries, keys and values a bias.
        patch_size: side of a patch in pixels.
        merge_size: patches along one side of a visual token.
        image_size: side in pixels of the square image whose positions the table holds.
        layer_scale: initial value of the layer scales.
        eps: small number added inside the layer norms.

    Reference: Oquab et al., DINOv2, 2023; transformers `Dinov2Model`, whose bicubic resizing of positions is followed
    (the first release shifted the grid by 0.1 patch).
    """

    name = "dinov2"
    num_deepstack = 0
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"embed_dim": 32, "depth": 2, "num_heads": 2, "image_size": 56},
        "tiny": {"embed_dim": 128, "depth": 4, "num_heads": 4, "image_size": 168},
        "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
        "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
        "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
        "giant": {"embed_dim": 1536, "depth": 40, "num_heads": 24, "swiglu": True},
    }

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4,
        swiglu: bool = False,
        qkv_bias: bool = True,
        patch_size: int = 14,
        merge_size: int = 2,
        image_size: int = 518,
        layer_scale: float = 1.0,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.specs = {self.name: PatchSpec(patch_size, merge_size, 1, IMAGENET_MEAN, IMAGENET_STD)}
        where = {"device": device, "dtype": dtype}
        mlp_dim = int(embed_dim * mlp_ratio)
        self.dinov2 = _Backbone(
            _Embeddings(embed_dim, patch_size, (image_size // patch_size) ** 2, **where),
            [_Layer(embed_dim, num_heads, mlp_dim, swiglu, qkv_bias, layer_scale, eps, **where) for _ in range(depth)],
            nn.LayerNorm(embed_dim, eps=eps, **where),
        )

    @classmethod
    def tiny(cls, **overrides: Any) -> Dinov2Encoder:
        """Build the size that trains on a laptop."""
        return cls(**{**cls.SIZES["tiny"], **overrides})

    @staticmethod
    def official_name(name: str) -> str | None:
        """Return our name for a tensor of a transformers DINOv2 checkpoint, None for what is left out.

        The backbone alone and the classifier (whose names begin with `dinov2.`) are both understood.
        """
        bare = name.removeprefix(OFFICIAL_PREFIX)
        return None if bare == "embeddings.mask_token" or bare.startswith("classifier.") else OFFICIAL_PREFIX + bare

    def forward(self, patches: dict[str, Tensor], image_grid_thw: dict[str, Tensor]) -> EncoderOutput:
        """Encode packed images.

        Args:
            patches: (N, 3 * p * p) under "dinov2"; uint8 pixels or normalised floats.
            image_grid_thw: (I, 3) under "dinov2".

        Returns:
            (N, D) patch features after the last layer norm, no deepstack.

        Raises:
            ValueError: rows and grids disagree, or the rows have a wrong width.
        """
        spec = self.specs[self.name]
        rows = patches[self.name]
        frames = frame_grids(image_grid_thw[self.name], len(rows))
        embeddings = self.dinov2.embeddings
        x = embeddings(rows, spec) + embeddings.positions(frames, spec.merge_size)
        sizes = torch.tensor([height * width for height, width in frames])
        starts = torch.arange(len(frames)) + sizes.cumsum(0) - sizes
        is_class = torch.zeros(len(rows) + len(frames), dtype=torch.bool)
        is_class[starts] = True
        patch_rows = (~is_class).nonzero().squeeze(1).to(x.device)
        order = torch.where(is_class, is_class.cumsum(0) - 1, len(frames) + (~is_class).cumsum(0) - 1).to(x.device)
        x = torch.cat([embeddings.class_token().expand(len(frames), -1), x])[order]
        cu_seqlens = torch.cat([sizes.new_zeros(1), (sizes + 1).cumsum(0)]).int()
        for layer in self.dinov2.encoder.layer:
            x = layer(x, cu_seqlens)
        return EncoderOutput(self.dinov2.layernorm(x[patch_rows]))


class _Backbone(nn.Module):
    """The official module tree: embeddings, encoder.layer, layernorm."""

    def __init__(self, embeddings: _Embeddings, layers: Iterable[_Layer], layernorm: nn.LayerNorm) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = _Layers(layers)
        self.layernorm = layernorm


class _Layers(nn.Module):
    """Holds the layers under their official name."""

    def __init__(self, layers: Iterable[_Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class _Embeddings(nn.Module):
    """Patch embedding, class token and positions (the first is the class token's)."""

    def __init__(self, embed_dim: int, patch_size: int, num_positions: int, **where: Any) -> None:
        super().__init__()
        if round(num_positions**0.5) ** 2 != num_positions:
            raise InputError(f"{num_positions} positions are not the square of a whole number")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **where))
        self.position_embeddings = nn.Parameter(torch.empty(1, num_positions + 1, embed_dim, **where))
        self.patch_embeddings = _PatchEmbeddings(embed_dim, patch_size, **where)
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, rows: Tensor, spec: PatchSpec) -> Tensor:
        """Embed (N, 3 * p * p) rows."""
        projection = self.patch_embeddings.projection
        return patch_embed(
            rows, projection.weight, projection.bias, image_mean=spec.image_mean, image_std=spec.image_std
        )

    def class_token(self) -> Tensor:
        """Return the class token at its own position: (1, D)."""
        return self.cls_token[0] + self.position_embeddings[0, :1]

    def positions(self, frames: list[tuple[int, int]], merge_size: int) -> Tensor:
        """Resize the patches' positions to each grid: (N, D) in merge order."""
        return resized_positions(self.position_embeddings[0, 1:], frames, merge_size, mode="bicubic", antialias=False)


class _PatchEmbeddings(nn.Module):
    """Holds a convolution, which never runs, for its parameters' official names."""

    def __init__(self, embed_dim: int, patch_size: int, **where: Any) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size, **where)


class _Layer(nn.Module):
    """Attention and feed-forward, each after a layer norm and under a layer scale."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        swiglu: bool,
        qkv_bias: bool,
        layer_scale: float,
        eps: float,
        **where: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=eps, **where)
        self.attention = _Attention(embed_dim, num_heads, qkv_bias, **where)
        self.layer_scale1 = _LayerScale(embed_dim, layer_scale, **where)
        self.norm2 = nn.LayerNorm(embed_dim, eps=eps, **where)
        self.mlp = _SwiGLU(embed_dim, hidden_dim, **where) if swiglu else _MLP(embed_dim, hidden_dim, **where)
        self.layer_scale2 = _LayerScale(embed_dim, layer_scale, **where)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Transform (N + I, D) tokens within the segments of `cu_seqlens`."""
        x = x + self.layer_scale1(self.attention(self.norm1(x), cu_seqlens))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    """Full attention within each image; names as on disk: attention.{query,key,value}, output.dense."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool, **where: Any) -> None:
        super().__init__()
        self.attention = _SelfAttention(embed_dim, num_heads, qkv_bias, **where)
        self.output = _AttentionOutput(embed_dim, **where)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Mix the tokens of each segment."""
        return self.output.dense(self.attention(x, cu_seqlens))


class _SelfAttention(nn.Module):
    """Attention up to, but without, the output projection."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool, **where: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, **where)
        self.key = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, **where)
        self.value = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, **where)
        self.attend = PackedAttention()

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return the heads' (N + I, D) values, weighted within each segment."""
        q_NHD, k_NHD, v_NHD = (
            project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.query, self.key, self.value)
        )
        return self.attend(q_NHD, k_NHD, v_NHD, cu_seqlens, False).flatten(1)


class _AttentionOutput(nn.Module):
    """Holds the output projection under its official name."""

    def __init__(self, embed_dim: int, **where: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim, **where)


class _LayerScale(nn.Module):
    """Learned factor for each channel."""

    def __init__(self, embed_dim: int, value: float, **where: Any) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((embed_dim,), value, **where))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis of `x`."""
        return x * self.lambda1


class _MLP(nn.Module):
    """Linear, erf-GELU, linear."""

    def __init__(self, embed_dim: int, hidden_dim: int, **where: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim, **where)
        self.fc2 = nn.Linear(hidden_dim, embed_dim, **where)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis of `x`."""
        return self.fc2(F.gelu(self.fc1(x)))


class _SwiGLU(nn.Module):
    """SiLU-gated feed-forward; gate and value share one weight, as on disk."""

    def __init__(self, embed_dim: int, hidden_dim: int, **where: Any) -> None:
        super().__init__()
        width = (int(hidden_dim * 2 / 3) + 7) // 8 * 8
        self.weights_in = nn.Linear(embed_dim, 2 * width, **where)
        self.weights_out = nn.Linear(width, embed_dim, **where)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis of `x`."""
        gate, value = self.weights_in(x).chunk(2, dim=-1)
        return self.weights_out(F.silu(gate) * value)
