"""SigLIP 2 with native resolution (NaFlex): learned positions resized to any grid.

Shapes: N patches in merge order, D embedding width, p patch size.
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

OFFICIAL_PREFIX = "vision_model."


class Siglip2Encoder(nn.Module):
    """Vision tower of a SigLIP 2 model, which encodes stills.

    Parameters bear the names of the `google/siglip2-*-naflex` checkpoints: `vision_model.embeddings.*`,
    `vision_model.encoder.layers.{i}.*`, `vision_model.post_layernorm.*`. The attention-pooling head
    (`vision_model.head.*`) makes one vector per image, for which a decoder has no use: it is not built, and left out
    when weights are read. Frames of a video are encoded one by one.

    Args:
        embed_dim: width D.
        depth: layers.
        num_heads: heads of each layer.
        mlp_dim: width of the feed-forward layers.
        patch_size: side of a patch in pixels.
        merge_size: patches along one side of a visual token.
        num_positions: entries of the square table of learned positions.
        eps: small number added inside the layer norms.

    Reference: Tschannen et al., SigLIP 2, 2025; transformers `Siglip2VisionModel`.
    """

    name = "siglip2"
    num_deepstack = 0
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "num_positions": 16},
        "tiny": {"embed_dim": 128, "depth": 4, "num_heads": 4, "mlp_dim": 512, "num_positions": 144},
        "base": {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
        "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
        "so400m": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
    }

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        patch_size: int = 16,
        merge_size: int = 2,
        num_positions: int = 256,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        if round(num_positions**0.5) ** 2 != num_positions:
            raise InputError(f"num_positions {num_positions} is not the square of a whole number")
        self.embed_dim = embed_dim
        self.specs = {self.name: PatchSpec(patch_size, merge_size)}
        where = {"device": device, "dtype": dtype}
        self.vision_model = _VisionModel(embed_dim, depth, num_heads, mlp_dim, patch_size, num_positions, eps, **where)

    @classmethod
    def tiny(cls, **overrides: Any) -> Siglip2Encoder:
        """Build the size that trains on a laptop."""
        return cls(**{**cls.SIZES["tiny"], **overrides})

    @staticmethod
    def official_name(name: str) -> str | None:
        """Return our name for a tensor of a transformers SigLIP 2 checkpoint, None for what is left out.

        The whole model and the vision tower saved alone (whose names lack `vision_model.`) are both understood.
        """
        if name.startswith(("text_model.", "logit_", "classifier.")):
            return None
        bare = name.removeprefix(OFFICIAL_PREFIX)
        return None if bare.startswith("head.") else OFFICIAL_PREFIX + bare

    def forward(self, patches: dict[str, Tensor], image_grid_thw: dict[str, Tensor]) -> EncoderOutput:
        """Encode packed images.

        Args:
            patches: (N, 3 * p * p) under "siglip2"; uint8 pixels or normalised floats.
            image_grid_thw: (I, 3) under "siglip2".

        Returns:
            (N, D) features after the last layer norm, no deepstack.

        Raises:
            ValueError: rows and grids disagree, or the rows have a wrong width.
        """
        spec = self.specs[self.name]
        rows = patches[self.name]
        frames = frame_grids(image_grid_thw[self.name], len(rows))
        model = self.vision_model
        x = model.embeddings(rows, spec) + model.embeddings.positions(frames, spec.merge_size)
        cu_seqlens = torch.tensor([0, *(height * width for height, width in frames)]).cumsum(0, dtype=torch.int32)
        cu_seqlens = cu_seqlens.to(x.device)  # once for all layers
        for layer in model.encoder.layers:
            x = layer(x, cu_seqlens)
        return EncoderOutput(model.post_layernorm(x))


class _VisionModel(nn.Module):
    """The official module tree: embeddings, encoder.layers, post_layernorm."""

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        patch_size: int,
        num_positions: int,
        eps: float,
        **where: Any,
    ) -> None:
        super().__init__()
        self.embeddings = _Embeddings(embed_dim, patch_size, num_positions, **where)
        self.encoder = _Layers(_Layer(embed_dim, num_heads, mlp_dim, eps, **where) for _ in range(depth))
        self.post_layernorm = nn.LayerNorm(embed_dim, eps=eps, **where)


class _Layers(nn.Module):
    """Holds the layers under their official name."""

    def __init__(self, layers: Iterable[_Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class _Embeddings(nn.Module):
    """Linear patch embedding and a square table of positions."""

    def __init__(self, embed_dim: int, patch_size: int, num_positions: int, **where: Any) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(3 * patch_size**2, embed_dim, **where)
        self.position_embedding = nn.Embedding(num_positions, embed_dim, **where)

    def forward(self, rows: Tensor, spec: PatchSpec) -> Tensor:
        """Embed (N, 3 * p * p) rows. The official weight reads channels last, our rows are channels first."""
        weight = self.patch_embedding.weight.unflatten(1, (spec.patch_size, spec.patch_size, 3)).permute(0, 3, 1, 2)
        return patch_embed(
            rows, weight, self.patch_embedding.bias, image_mean=spec.image_mean, image_std=spec.image_std
        )

    def positions(self, frames: list[tuple[int, int]], merge_size: int) -> Tensor:
        """Resize the table to each grid with an antialiased bilinear filter: (N, D) in merge order."""
        return resized_positions(self.position_embedding.weight, frames, merge_size, mode="bilinear", antialias=True)


class _Layer(nn.Module):
    """Attention and feed-forward, each after a layer norm."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, eps: float, **where: Any) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(embed_dim, eps=eps, **where)
        self.self_attn = _Attention(embed_dim, num_heads, **where)
        self.layer_norm2 = nn.LayerNorm(embed_dim, eps=eps, **where)
        self.mlp = _MLP(embed_dim, mlp_dim, **where)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Transform (N, D) patches within the segments of `cu_seqlens`."""
        x = x + self.self_attn(self.layer_norm1(x), cu_seqlens)
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    """Full attention within each image, four projections with biases."""

    def __init__(self, embed_dim: int, num_heads: int, **where: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.k_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.v_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.attend = PackedAttention()

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Mix the tokens of each segment."""
        q_NHD, k_NHD, v_NHD = (
            project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(self.attend(q_NHD, k_NHD, v_NHD, cu_seqlens, False).flatten(1))


class _MLP(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, embed_dim: int, mlp_dim: int, **where: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, mlp_dim, **where)
        self.fc2 = nn.Linear(mlp_dim, embed_dim, **where)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis of `x`."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
