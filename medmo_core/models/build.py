"""Parts of a model built from its config, and their random weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..decoders.qwen3 import Qwen3Decoder
from ..encoders import ENCODERS
from ..encoders.protocol import Encoder
from ..errors import InputError
from .config import ENCODER_SIZES, PRESETS, ModelConfig, TextConfig
from .config_values import check_arguments

INIT_GAIN = 0.7


def resolve(config: str | ModelConfig, overrides: Mapping[str, Any]) -> ModelConfig:
    """Return the config of a preset or of itself, with changed fields; a preset also sizes an encoder of another kind.

    Args:
        config: a name in `PRESETS` or a config.
        overrides: changed fields, see `ModelConfig.override`.

    Raises:
        InputError: unknown preset or field.
    """
    size = None
    if isinstance(config, str):
        if config not in PRESETS:
            raise InputError(f"unknown model {config!r}; known: {', '.join(PRESETS)}")
        size, config = ENCODER_SIZES[config], PRESETS[config]
    config = config.override(**overrides)
    sizes = getattr(ENCODERS.get(config.encoder), "SIZES", {})
    if size in sizes and not config.encoder_kwargs:
        config = config.override(encoder_kwargs=sizes[size])
    return config


def build_encoder(config: ModelConfig, where: dict[str, Any]) -> Encoder:
    """Return the encoder that a config names, with random weights.

    Args:
        config: sizes of the model.
        where: `device` and `dtype` of the parameters.

    Raises:
        InputError: no encoder of that name.
    """
    if config.encoder not in ENCODERS:
        raise InputError(f"unknown encoder {config.encoder!r}; known: {', '.join(ENCODERS)}")
    if config.encoder != "qwen3_vl":
        check_arguments(ENCODERS[config.encoder], config.encoder_kwargs, "medmo_encoder.kwargs")
        return ENCODERS[config.encoder](**config.encoder_kwargs, **where)
    vision = config.vision
    return ENCODERS["qwen3_vl"](
        embed_dim=vision.hidden_size,
        depth=vision.depth,
        num_heads=vision.num_heads,
        mlp_dim=vision.intermediate_size,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        num_position_embeddings=vision.num_position_embeddings,
        deepstack_layers=vision.deepstack_visual_indexes,
        **where,
    )


def build_decoder(text: TextConfig, where: Mapping[str, Any]) -> Qwen3Decoder:
    """Return the decoder of a text config, with random weights.

    Args:
        text: sizes of the decoder.
        where: `device` and `dtype` of the parameters.
    """
    return Qwen3Decoder(
        vocab_size=text.vocab_size,
        embed_dim=text.hidden_size,
        depth=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        mlp_dim=text.intermediate_size,
        rope_theta=text.rope_theta,
        mrope_sections=text.mrope_section,
        eps=text.rms_norm_eps,
        bias=text.attention_bias,
        **where,
    )


@torch.no_grad()
def init_weights(model: nn.Module, embedding_std: float) -> None:
    """Draw all weights anew: matrices by their fan-in, tables with a given deviation, zero biases, unit norms.

    A matrix of n inputs gets the deviation 0.7 / sqrt(n): at 128 inputs that is three times the usual 0.02, and a
    small model begins to look at its images within hundreds of steps instead of thousands.

    Args:
        model: its parameters are overwritten.
        embedding_std: deviation of embedding tables.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(module.weight, std=INIT_GAIN * module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=embedding_std)
        elif isinstance(weight, nn.Parameter):
            nn.init.ones_(weight)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
