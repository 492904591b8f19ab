"""Write a checkpoint in the official Qwen3-VL layout, whole or not at all.

The files are written into a hidden folder beside the target and moved into place at the end, so an interrupted save
leaves the previous checkpoint, or none, never a half of one. A process killed outright may leave its hidden folder
(`.NAME.saving-PID`) behind, or, between the two renames that exchange old and new, the old one (`.NAME.replaced-PID`).
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

from ...errors import InputError
from ...profile import CheckpointProfile
from .names import CONFIG_FILE, INDEX_FILE, TIED_HEAD, WEIGHTS_FILE

DEFAULT_SHARD_BYTES = 5 * 10**9
VIDEO_PIXELS = {"shortest_edge": 4096, "longest_edge": 25165824}
IMAGE_PIXELS = {"shortest_edge": 65536, "longest_edge": 16777216}


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
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Path:
    """Write config, weights, generation and processor settings, and the tokenizer where one is given.

    Args:
        folder: made if need be. A checkpoint that stands there is replaced at the very end; other files in it stay.
        tensors: official name -> tensor on any device; the head of a tied model is left out.
        config: the official config.json.
        tokenizer: writes its own files.
        profile: how the checkpoint writes boxes; None: nothing is written, which readers take for Qwen3-VL's way.
        max_shard_bytes: a shard holds at least one tensor and otherwise no more than this.

    Returns:
        The folder.

    Raises:
        ValueError: nothing to save, or a shard limit that is not positive.
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.with_name(f".{folder.name}.saving-{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        stated = {"dtype": str(dtypes.pop()).removeprefix("torch.")} if len(dtypes) == 1 else {}
        _write_shards(staged, tensors, max_shard_bytes)
        _write_json(staged / CONFIG_FILE, {**config, **stated})
        _write_json(staged / "generation_config.json", generation_config(config))
        for name, values in processor_configs(config).items():
            _write_json(staged / name, values)
        if tokenizer is not None:
            tokenizer.save(staged)
        if profile is not None:
            profile.save(staged)
        _publish(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation_config.json: the ids that end an answer, and greedy decoding."""
    text = config["text_config"]
    end, endoftext = text["eos_token_id"], text["bos_token_id"]
    return {"bos_token_id": endoftext, "do_sample": False, "eos_token_id": [end, endoftext], "pad_token_id": endoftext}


def processor_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of transformers' image and video processors, by file name.

    Only Qwen3-VL's own tower has them: transformers has no processor for the others.
    """
    if config["model_type"] != "qwen3_vl":
        return {}
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
        "preprocessor_config.json": {
            **shared,
            "size": IMAGE_PIXELS,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        "video_preprocessor_config.json": {
            **shared,
            "size": VIDEO_PIXELS,
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
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
        _flush(folder / file)
    if not one:
        total = sum(tensor.nbytes for tensor in tensors.values())
        parameters = sum(tensor.numel() for tensor in tensors.values())
        metadata = {"total_parameters": parameters, "total_size": total}
        _write_json(folder / INDEX_FILE, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _own_copy(tensor: Tensor) -> Tensor:
    """Bring a tensor to the host; copy one that shares its storage, which safetensors would refuse."""
    host = tensor.to("cpu").contiguous()
    return host if host.untyped_storage().nbytes() == host.nbytes else host.clone()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    """Wait until a file is on the disk, so that the move that follows never outruns its content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _publish(staged: Path, folder: Path) -> None:
    """Move the finished files to where readers look."""
    if not folder.exists() or not any(folder.iterdir()):
        staged.replace(folder)
        return
    if not (folder / CONFIG_FILE).exists():
        # Not a checkpoint yet, hence nothing to mix with: the config, which makes it one, comes last.
        for path in sorted(staged.iterdir(), key=lambda path: path.name == CONFIG_FILE):
            path.replace(folder / path.name)
        return
    previous = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    folder.replace(previous)
    try:
        staged.replace(folder)
    except BaseException:
        previous.replace(folder)
        raise
    for path in previous.iterdir():
        stale = path.name == INDEX_FILE or (path.name.startswith("model") and path.suffix == ".safetensors")
        if not stale and not (folder / path.name).exists():
            path.replace(folder / path.name)
    shutil.rmtree(previous)
