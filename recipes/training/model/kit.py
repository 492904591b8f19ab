"""Kit of a run, built from its config: model, tokenizer, profile and processor."""

from pathlib import Path
from typing import Any

import torch

from medmo_core.data.coordinates import spread_numbers
from medmo_core.data.processor import Processor
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.encoders import ENCODERS
from medmo_core.inference.kit import Kit
from medmo_core.inference.load import DTYPES
from medmo_core.models.checkpoint_config import read_config
from medmo_core.models.config import PRESETS, ModelConfig
from medmo_core.models.medmo import MedMO
from medmo_core.models.official.folder import find_folder, open_checkpoint
from medmo_core.models.official.read import load_encoder, load_weights
from medmo_core.profile import PROFILES, CheckpointProfile

from ...settings.run_config import ConfigError, Model, RunConfig, unknown_key

HUB_SIZES = {
    "Qwen/Qwen3-VL-4B-Instruct": "medmo-4b",
    "Qwen/Qwen3-VL-8B-Instruct": "medmo-8b",
    "MBZUAI/MedMO-4B": "medmo-4b",
    "MBZUAI/MedMO-8B": "medmo-8b",
}
"""Hub ids whose sizes are known without their files, so that a dry run needs neither disk nor network."""


def load_kit(config: RunConfig, device: torch.device | str) -> Kit:
    """Build model, tokenizer, profile and processor; random weights come from train.seed.

    Args:
        config: the run.
        device: device of the weights; "meta" makes none and reads none. See also `is_filled_later`.

    Raises:
        ConfigError: a name that does not exist, or files that do not fit together.
    """
    if stands_in(config.model, device):
        config = config.change(model={"init": HUB_SIZES[config.model.init]})
    tokenizer = load_tokenizer(config.model)
    torch.manual_seed(config.train.seed)
    model = load_model(config.model, tokenizer, "meta" if is_filled_later(config) else device)
    model.train()
    profile = load_profile(config.model)
    data, spread = config.data, config.train.coordinate_spread
    processor = Processor(
        tokenizer,
        model.encoder.specs,
        profile,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        max_tokens=data.max_tokens,
        root=None if data.root is None else Path(data.root),
        looks=config.train.attention_weight > 0,
        coordinates=spread_numbers(tokenizer, profile, spread) if spread else None,
    )
    base = None if config.model.init in PRESETS else find_folder(config.model.init)
    return Kit(model=model, tokenizer=tokenizer, profile=profile, processor=processor, base=base)


def is_filled_later(config: RunConfig) -> bool:
    """Whether a model is built on the meta device and filled once it is sharded (`sharding.prepare`).

    So are whole checkpoints: every process reads its own part of each tensor. Random weights, new encoders and adapters
    are made whole by every process, the same on each, and then sharded.
    """
    model = config.model
    is_whole = model.init not in PRESETS and model.encoder is None and not model.encoder_init
    return config.parallel.shard and is_whole and config.lora.rank == 0


def stands_in(model: Model, device: torch.device | str) -> bool:
    """Whether a preset stands for a hub id: on the meta device, when no folder of that name is here."""
    return torch.device(device).type == "meta" and model.init in HUB_SIZES and not Path(model.init).is_dir()


def load_tokenizer(model: Model) -> Tokenizer:
    """Return the tokenizer that `model.tokenizer` names."""
    name = model.tokenizer
    if name == "auto" and model.init not in PRESETS:
        return Tokenizer.from_checkpoint(find_folder(model.init))
    if name in ("auto", "embedded"):
        return Tokenizer.embedded()
    path = Path(name)
    if not path.exists():
        raise ConfigError(f'model.tokenizer={name}: no such file; expected "auto", "embedded" or a path')
    if path.is_dir():
        return Tokenizer.from_checkpoint(path)
    return Tokenizer.from_tiktoken(path) if path.suffix == ".tiktoken" else Tokenizer.from_file(path)


def load_profile(model: Model) -> CheckpointProfile:
    """Return the profile that `model.profile` names, or the checkpoint's own."""
    if model.profile != "auto":
        return PROFILES[model.profile]
    return CheckpointProfile() if model.init in PRESETS else CheckpointProfile.load(find_folder(model.init))


def load_model(model: Model, tokenizer: Tokenizer, device: torch.device | str) -> MedMO:
    """Build the model with random weights (a preset) or a checkpoint's, with another encoder if one is named."""
    dtype = DTYPES[model.dtype]
    is_meta = torch.device(device).type == "meta"
    if model.init in PRESETS:
        config = _fit_vocabulary(PRESETS[model.init], tokenizer)
    else:
        config = read_config(open_checkpoint(model.init))
    same_encoder = model.encoder in (None, config.encoder)
    if model.init not in PRESETS and same_encoder and not is_meta:
        loaded = MedMO.from_pretrained(model.init, dtype=dtype, device=device)
    else:
        overrides = {} if same_encoder else {"encoder": model.encoder, "encoder_kwargs": _encoder_sizes(model)}
        loaded = MedMO.from_config(config, device=device, dtype=dtype, **overrides)
        if model.init not in PRESETS and not is_meta:
            _load_decoder(loaded, model.init, dtype)
    for name, folder in model.encoder_init.items():
        towers = getattr(loaded.encoder, "towers", {loaded.encoder.name: loaded.encoder})
        if name not in towers:
            raise unknown_key(name, towers, "encoder in model.encoder_init")
        if not is_meta:
            load_encoder(towers[name], folder)
    if tokenizer.vocab_size > loaded.config.text.vocab_size:
        raise ConfigError(
            f"model.tokenizer: {tokenizer.vocab_size} tokens, but {model.init} has {loaded.config.text.vocab_size} "
            "embeddings; use the checkpoint's own tokenizer (model.tokenizer=auto)"
        )
    return loaded


def _encoder_sizes(model: Model) -> dict[str, Any]:
    """Return the constructor arguments of a new encoder."""
    if model.encoder not in ENCODERS:
        raise unknown_key(str(model.encoder), ENCODERS, "encoder")
    sizes: dict[str, dict[str, Any]] = ENCODERS[model.encoder].SIZES  # type: ignore[attr-defined]
    size = model.encoder_size or (model.init if model.init in sizes else "base")
    if size not in sizes:
        raise unknown_key(size, sizes, "size in model.encoder_size")
    return sizes[size]


def _fit_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Give a small preset the tokenizer's vocabulary; the official sizes keep theirs, as official weights need it."""
    if config.text.vocab_size == ModelConfig().text.vocab_size:
        return config
    return config.override(
        vocab_size=tokenizer.vocab_size,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_id,
        vision_end_token_id=tokenizer.vision_end_id,
        bos_token_id=tokenizer.endoftext_id,
        eos_token_id=tokenizer.im_end_id,
    )


def _load_decoder(model: MedMO, source: str, dtype: torch.dtype) -> None:
    """Read only the decoder and the head of a checkpoint: its encoder and projector do not fit the new encoder."""
    checkpoint = open_checkpoint(source)
    device = model.head_weight.device
    prefix = "model.language_model."

    def decoder_name(name: str) -> str | None:
        return name.removeprefix(prefix) if name.startswith(prefix) else None

    load_weights(model.decoder, checkpoint, dtype=dtype, device=device, official_name=decoder_name)
    if not model.config.tie_word_embeddings:
        head = {"lm_head.weight": "weight"}
        load_weights(model.lm_head, checkpoint, dtype=dtype, device=device, official_name=head.get)
