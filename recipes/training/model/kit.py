"""From a config to the things of a run: model, tokenizer, profile, processor, mixture, and what trains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medmo_core.data.processor import Processor
from medmo_core.data.records.faults import RecordError
from medmo_core.data.sources.mixture import Mixture, Source
from medmo_core.data.sources.open_source import open_source
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.encoders import ENCODERS
from medmo_core.models.config import PRESETS, ModelConfig
from medmo_core.models.medmo import MedMO
from medmo_core.models.official.folder import find_folder, open_checkpoint
from medmo_core.models.official.read import load_encoder, load_weights
from medmo_core.profile import PROFILES, CheckpointProfile

from ...settings.run_config import ConfigError, Data, Lora, Model, RunConfig, unknown_key
from ..optim.optimizer import NameFactor
from .lora import add_adapters, is_adapter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
PARTS = ("encoder", "projector", "decoder")
SAMPLE_PREFIX = "sample:"
HUB_SIZES = {
    "Qwen/Qwen3-VL-4B-Instruct": "medmo-4b",
    "Qwen/Qwen3-VL-8B-Instruct": "medmo-8b",
    "MBZUAI/MedMO-4B": "medmo-4b",
    "MBZUAI/MedMO-8B": "medmo-8b",
}
"""Hub ids whose sizes are known without their files, so that a dry run needs neither disk nor network."""


@dataclass(frozen=True)
class Kit:
    """A model and what belongs to its text and images."""

    model: MedMO
    tokenizer: Tokenizer
    profile: CheckpointProfile
    processor: Processor


def load_kit(config: RunConfig, device: torch.device | str) -> Kit:
    """Build model, tokenizer, profile and processor; random weights come from train.seed.

    Args:
        config: the run.
        device: where the weights go; "meta" makes none and reads none. See also `is_filled_later`.

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
    data = config.data
    processor = Processor(
        tokenizer,
        model.encoder.specs,
        profile,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        max_tokens=data.max_tokens,
        root=None if data.root is None else Path(data.root),
    )
    return Kit(model=model, tokenizer=tokenizer, profile=profile, processor=processor)


def is_filled_later(config: RunConfig) -> bool:
    """Whether a model is built on the meta device and filled once it is sharded (`sharding.prepare`).

    So are whole checkpoints: every process reads its own part of each tensor. Random weights, new encoders and adapters
    are made whole by every process, alike, and then sharded.
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
        config = ModelConfig.from_dict(dict(open_checkpoint(model.init).config))
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


def parameter_parts(model: MedMO) -> dict[str, str]:
    """Return parameter name -> "encoder", "projector" or "decoder" (the head included)."""
    projector = {id(p) for p in model.projector.parameters()}
    parts = {}
    for name, parameter in model.named_parameters():
        vision = "projector" if id(parameter) in projector else "encoder"
        parts[name] = vision if name.startswith("model.visual.") else "decoder"
    return parts


def select(model: MedMO, words: Iterable[str], where: str) -> set[str]:
    """Return the names of the parameters that `words` mean.

    Args:
        model: the model.
        words: "all", a part, or a prefix of parameter names that ends at a dot or at the end of a name.
        where: the setting, for the message.

    Raises:
        ConfigError: a word that means no parameter; the nearest is named.
    """
    parts = parameter_parts(model)
    chosen: set[str] = set()
    for word in words:
        found = {
            name
            for name, part in parts.items()
            if word in ("all", part) or name == word or name.startswith(word.rstrip(".") + ".")
        }
        if not found:
            prefixes = {name[:i] for name in parts for i, letter in enumerate(name) if letter == "."}
            raise unknown_key(word, [*PARTS, "all", *sorted(prefixes)], f"part in {where}")
        chosen |= found
    return chosen


def name_factor(model: MedMO, factors: Mapping[str, float], where: str) -> NameFactor:
    """Return parameter name -> product of the factors whose word means it."""
    return NameFactor(factors, {word: select(model, [word], where) for word in factors})


@dataclass(frozen=True)
class Trainable:
    """What trains, by name."""

    names: tuple[str, ...]
    """Names of the parameters that train, in the model's order."""
    num_parameters: int
    """Numbers in them."""
    total: int
    """Numbers in all parameters of the model."""
    parts: Mapping[str, int]
    """Part -> numbers that train in it; parts without any are absent."""

    def describe(self) -> str:
        """Say what trains: one line in all, one per part."""
        share = 100 * self.num_parameters / self.total
        parts = ", ".join(f"{part} {number:,}" for part, number in self.parts.items())
        return (
            f"trains {self.num_parameters:,} of {self.total:,} parameters ({share:.1f} %) "
            f"in {len(self.names)} tensors: {parts}"
        )


def choose_trainable(model: MedMO, words: Iterable[str], lora: Lora | None = None) -> Trainable:
    """Let exactly the parameters that `words` mean require gradients, or adapters added here and nothing else.

    Args:
        model: changed in place.
        words: of model.trainable.
        lora: with a rank, adapters train in place of what `words` mean.

    Raises:
        ConfigError: a word that means no parameter.
    """
    if lora is not None and lora.rank > 0:
        add_adapters(model, lora)
        chosen = {name for name, _ in model.named_parameters() if is_adapter(name)}
    else:
        chosen = select(model, words, "model.trainable")
    parts = parameter_parts(model)
    numbers: dict[str, int] = {}
    total = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        total += parameter.numel()
        if name in chosen:
            numbers[parts[name]] = numbers.get(parts[name], 0) + parameter.numel()
    names = tuple(name for name, _ in model.named_parameters() if name in chosen)
    return Trainable(names=names, num_parameters=sum(numbers.values()), total=total, parts=numbers)


def assert_only_projector(model: MedMO, trainable: Trainable) -> None:
    """Check by name and by count that the projector trains, whole, and nothing else does."""
    wanted = {name for name, part in parameter_parts(model).items() if part == "projector"}
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    count = sum(p.numel() for p in model.projector.parameters())
    if training != wanted or trainable.num_parameters != count:
        odd = sorted(training ^ wanted)
        raise ConfigError(f"projector-only training: {len(odd)} parameters differ from the projector's, as {odd[:3]}")


def load_mixture(data: Data, *, seed: int, split: str | None = None, index_folder: Path | None = None) -> Mixture:
    """Build the weighted mixture of data.sources.

    Args:
        data: sources and how to draw from them.
        seed: of the order.
        split: in place of data.split.
        index_folder: where what reading all records teaches is kept for the next start; None: nowhere.

    Raises:
        ConfigError: no source, or a task of the embedded data that does not exist.
        RecordError: a record that cannot be used.
    """
    if not data.sources:
        raise ConfigError("data.sources: nothing to train on; name data files or sample:TASK, each with a weight")
    wanted = split or data.split
    parts = {n: (load_source(n, data, wanted, index_folder), w) for n, w in data.sources.items() if w > 0}
    return Mixture(parts, seed)


def load_source(name: str, data: Data, split: str, index_folder: Path | None = None) -> Source:
    """Open one entry of data.sources."""
    if name.startswith(SAMPLE_PREFIX):
        from medmo_core.datasets.embedded.dialogues import Dialogues
        from medmo_core.datasets.embedded.pairs import Pairs
        from medmo_core.datasets.embedded.tasks import TASKS, SampleTasks

        task = name.removeprefix(SAMPLE_PREFIX)
        made = {"dialogue": Dialogues, "pair": Pairs}
        if task not in (*TASKS, *made):
            raise unknown_key(name, [SAMPLE_PREFIX + t for t in (*TASKS, *made)], "data source")
        return made[task](split, data.crops) if task in made else SampleTasks(task, split, crops=data.crops)
    try:
        return open_source(name, data.root, split=split, crops=data.crops, index_folder=index_folder)
    except RecordError:
        raise
    except ValueError as error:
        raise ConfigError(f"data.sources: {error}, or {SAMPLE_PREFIX}TASK") from error
