"""Write a checkpoint in the official Qwen3-VL layout, atomically.

The files are written into a hidden folder beside the target, flushed, and moved into place at the end, so an
interrupted save leaves the previous checkpoint, or none, never a half of one. A process killed outright may leave its
hidden folder (`.NAME.PID.partial`) behind.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

from ...durable import aside, flush, naming, publish, write_json
from ...errors import InputError
from ...profile import CheckpointProfile
from .carried import carry
from .names import (
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    PREPROCESSOR_FILE,
    TIED_HEAD,
    VIDEO_PREPROCESSOR_FILE,
    WEIGHTS_FILE,
)

DEFAULT_SHARD_BYTES = 5 * 10**9
VIDEO_PIXELS = {"shortest_edge": 4096, "longest_edge": 25165824}
IMAGE_PIXELS = {"shortest_edge": 65536, "longest_edge": 16777216}
"""Smallest and largest area of a video and of an image in px; the official files call the two areas edges."""


class SavesFiles(Protocol):
    """A tokenizer, as far as a checkpoint is concerned."""

    def save(self, folder: Path) -> Any:
        """Write the tokenizer's files into the folder."""
        ...


def save_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any],
    tokenizer: SavesFiles | None = None,
    profile: CheckpointProfile | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    base: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Path:
    """Write config, weights, generation and processor settings, and the tokenizer where one is given.

    Args:
        folder: made if need be. A checkpoint that stands there is replaced at the very end; other files in it stay.
        tensors: official name -> tensor on any device; the head of a tied model is left out.
        config: content of the official config.json.
        tokenizer: object whose `save(folder)` writes the tokenizer's files.
        profile: conventions of the checkpoint's box text; None: no file, which readers take for Qwen3-VL's.
        min_pixels: smallest image area in px, for the processor's settings; None: Qwen3-VL's.
        max_pixels: largest image area in px; None: Qwen3-VL's.
        base: folder of the model that this one was made of, whose files beside the weights are taken over; None: none.
        max_shard_bytes: a shard holds at least one tensor and otherwise no more than this.

    Returns:
        The folder.

    Raises:
        ValueError: nothing to save, limits of the image area that exclude each other, or no room in a shard.
        FileExistsError: the path is a file.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a checkpoint is a folder")
    tied = bool(config.get("tie_word_embeddings"))
    tensors = {name: tensor.detach() for name, tensor in tensors.items() if not (tied and name == TIED_HEAD)}
    if not tensors:
        raise InputError(f"{folder}: there is no tensor to save")
    if max_shard_bytes <= 0:
        raise InputError(f"max_shard_bytes is {max_shard_bytes}, expected a positive number of bytes")
    settings = settings_files(config, tensors, min_pixels, max_pixels)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = aside(folder)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        with naming(folder):
            _write_shards(staged, tensors, max_shard_bytes)
            for name, values in settings.items():
                write_json(staged / name, values, indent=2)
            for part in (tokenizer, profile):
                if part is not None:
                    part.save(staged)
            if base is not None:
                carry(base, staged)
            _publish(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def settings_files(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], min_pixels: int | None, max_pixels: int | None
) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a checkpoint by name: config, generation settings, processor settings."""
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    stated = {"dtype": str(dtypes.pop()).removeprefix("torch.")} if len(dtypes) == 1 else {}
    return {
        CONFIG_FILE: {**config, **stated},
        GENERATION_FILE: generation_config(config),
        **processor_configs(config, min_pixels, max_pixels),
    }


def generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation_config.json: the ids that end an answer, and greedy decoding."""
    text = config["text_config"]
    end, endoftext = text["eos_token_id"], text["bos_token_id"]
    return {"bos_token_id": endoftext, "do_sample": False, "eos_token_id": [end, endoftext], "pad_token_id": endoftext}


def processor_configs(
    config: Mapping[str, Any], min_pixels: int | None = None, max_pixels: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return the settings of transformers' image and video processors, by file name.

    Only Qwen3-VL's own tower has them, since transformers has no processor for the others; of another tower the limits
    of the image area are kept, where they are given.

    Args:
        config: content of the official config.json.
        min_pixels: smallest image area in px; None: Qwen3-VL's.
        max_pixels: largest image area in px; None: Qwen3-VL's.

    Raises:
        ValueError: no area lies within the limits.
    """
    low = IMAGE_PIXELS["shortest_edge"] if min_pixels is None else min_pixels
    high = IMAGE_PIXELS["longest_edge"] if max_pixels is None else max_pixels
    if not 0 < low <= high:
        raise InputError(f"min_pixels is {low} and max_pixels is {high}, expected 0 < min_pixels <= max_pixels, in px")
    size = {"shortest_edge": low, "longest_edge": high}
    if config["model_type"] != "qwen3_vl":
        return {} if min_pixels is max_pixels is None else {PREPROCESSOR_FILE: {"size": size}}
    vision = config["vision_config"]
    shared = {
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    return {
        PREPROCESSOR_FILE: {**shared, "size": size, "image_processor_type": "Qwen2VLImageProcessorFast"},
        VIDEO_PREPROCESSOR_FILE: {**shared, "size": VIDEO_PIXELS, "video_processor_type": "Qwen3VLVideoProcessor"},
    }


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> None:
    """Write one file, or numbered shards with an index; one shard at a time is brought to the host."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    one = len(shards) == 1
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS_FILE if one else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(names, file))
        save_file({name: _own_copy(tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
        # safetensors makes files that only their owner may read; give them the rights the folder was made with
        (folder / file).chmod(folder.stat().st_mode & 0o666)
    if not one:
        total = sum(tensor.nbytes for tensor in tensors.values())
        parameters = sum(tensor.numel() for tensor in tensors.values())
        metadata = {"total_parameters": parameters, "total_size": total}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / INDEX_FILE, index, indent=2)


def _own_copy(tensor: Tensor) -> Tensor:
    """Bring a tensor to the host; copy one that shares its storage, which safetensors would refuse."""
    host = tensor.to("cpu").contiguous()
    return host if host.untyped_storage().nbytes() == host.nbytes else host.clone()


def _publish(staged: Path, folder: Path) -> None:
    """Move the finished files to where readers look."""
    is_checkpoint = (folder / CONFIG_FILE).exists()
    if is_checkpoint:
        _keep_others(folder, staged)
    for path in staged.rglob("*"):
        flush(path)
    if is_checkpoint or not folder.exists() or not any(folder.iterdir()):
        publish(staged, folder)
        return
    # Not a checkpoint yet, hence nothing to mix with: the config, which makes it one, comes last.
    for path in sorted(staged.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        path.replace(folder / path.name)
    flush(folder)


def _keep_others(folder: Path, staged: Path) -> None:
    """Add to the new checkpoint what the old one's folder holds besides weights and the files written anew."""
    for path in folder.iterdir():
        stale = path.name == INDEX_FILE or (path.name.startswith("model") and path.suffix == ".safetensors")
        if stale or (staged / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, staged / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, staged / path.name)


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; copy it where the disk has one name per file only."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
