"""A checkpoint folder: where it is, which files it has, what tensors stand in them. Nothing is read but headers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...demo.checkpoint import DEMO_NAME, demo_folder
from ...errors import InputError
from .names import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
MAX_LISTED = 8


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and what stands in it; no tensor has been read.

    Attributes:
        folder: where it lies.
        config: the parsed config.json.
        files: tensor name -> file that holds it.
        shapes: tensor name -> shape in that file.
    """

    folder: Path
    config: dict[str, Any]
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]


def names_folder(name: str | Path) -> bool:
    """Whether a name means a folder of this machine, there or not; otherwise it is a hub id, `owner/name`.

    What begins with a dot, a slash, `~` or a folder that exists is a path, and so is what has any number of slashes
    but one: a mistyped path never asks the network.
    """
    text = str(name)
    owner, slash, rest = text.partition("/")
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or not slash or not rest or "/" in rest:
        return True
    return Path(owner).is_dir()


def find_folder(path_or_hub_id: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint, downloading it when the name is a hub id, which is said before.

    Args:
        path_or_hub_id: a folder in the official layout, a run's folder (its final/ is taken), `medmo-tiny-demo` for
            the checkpoint in this package, or `owner/name` on the Hugging Face hub; see `names_folder`.
        revision: branch, tag or commit on the hub; ignored for folders.

    Raises:
        FileNotFoundError: neither a folder nor an id that can be reached from here, or a run that has not finished.
        ImportError: the name is a hub id and huggingface_hub is not installed.
        ValueError: the path is a file.
    """
    if path_or_hub_id == DEMO_NAME:
        return demo_folder()
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return _finished(path)
    if path.is_file():
        raise InputError(f"{path} is a file; give the folder that holds it together with its {CONFIG_FILE}")
    name = str(path_or_hub_id)
    if names_folder(path_or_hub_id):
        raise FileNotFoundError(f"{path}: no such checkpoint folder (a hub id would look like owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name} is not a local folder; reading it from the hub needs huggingface_hub: pip install huggingface_hub"
        ) from error
    _announce(name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_PATTERNS))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise FileNotFoundError(
            f"{name} is neither a local folder nor a model that can be fetched from the hub now "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'}). "
            "Offline: copy the checkpoint folder here and give its path."
        ) from error


@cache
def _announce(name: str) -> None:
    """Say once that a name is looked for outside of this machine."""
    print(f"{name} is no folder here: looking for it on the Hugging Face hub", file=sys.stderr, flush=True)


def _finished(path: Path) -> Path:
    """Return the folder with the weights: a run's final/ where the path is a run's."""
    if (path / "final").is_dir():
        return path / "final"
    if (path / "checkpoints").is_dir() or (path / "state.json").is_file():
        raise FileNotFoundError(
            f"{path} holds training checkpoints but no finished model; "
            f"write one with: medmo export --run {path} --out exported/"
        )
    if not (path / CONFIG_FILE).is_file():
        runs = sorted((folder for folder in path.glob("*/final") if folder.is_dir()), key=lambda f: f.stat().st_mtime)
        hint = f"it holds runs: load the last one, {runs[-1]}" if runs else f"name the folder that holds {CONFIG_FILE}"
        raise FileNotFoundError(f"{path} holds no checkpoint ({CONFIG_FILE} is missing); {hint}")
    return path


def open_checkpoint(path_or_hub_id: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Read a checkpoint's config and the headers of its weight files.

    Args:
        path_or_hub_id: a local folder, or `owner/name` on the hub.
        revision: branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: no folder, no config.json, no safetensors, or a shard that the index names is missing.
        ValueError: a file is truncated, is not what its name says, or lacks a tensor that the index puts there.
    """
    folder = find_folder(path_or_hub_id, revision=revision)
    config = _read_json(folder / CONFIG_FILE, "a checkpoint folder needs it; an interrupted copy may lack it")
    files, shapes = _read_headers(folder)
    return Checkpoint(folder, config, files, shapes)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, with a message that names it when it is broken."""
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a complete safetensors file ({error}; {path.stat().st_size:,} bytes); "
            "copy or download it again"
        ) from None
    with handle as file:
        yield file


def listed(names: list[str]) -> str:
    """Join names for a message, cutting a long list short."""
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {hint}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of too many digits, nested too deeply
        raise InputError(f"{path}: not valid JSON ({error}); copy the file again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _read_headers(folder: Path) -> tuple[dict[str, Path], dict[str, tuple[int, ...]]]:
    """Find every tensor of a folder without reading any."""
    if (folder / INDEX_FILE).is_file():
        index = _read_json(folder / INDEX_FILE, "")
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX_FILE}: no weight_map, so nothing says which shard holds what")
        named = {str(file) for file in weight_map.values()}
        outside = sorted(file for file in named if Path(file).name != file)
        if outside:
            raise InputError(f"{folder / INDEX_FILE}: shard {outside[0]!r} is a path; shards lie beside the index")
    elif (folder / WEIGHTS_FILE).is_file():
        weight_map, named = None, {WEIGHTS_FILE}
    else:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise InputError(
                f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code when opened; "
                "only safetensors are read. Convert them with transformers: "
                "model.save_pretrained(folder, safe_serialization=True)"
            )
        raise FileNotFoundError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    found: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(named):
        path = folder / name
        if not path.is_file():
            owned = sum(file == name for file in (weight_map or {}).values())
            raise FileNotFoundError(
                f"{path} is missing: {INDEX_FILE} puts {owned} of the {len(weight_map or {})} tensors there; "
                "copy or download that shard again"
            )
        with opened(path) as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                if weight_map is None or weight_map.get(key) == name:
                    found[key] = path
                    shapes[key] = tuple(file.get_slice(key).get_shape())
    lost = [key for key in weight_map or {} if key not in found]
    if lost:
        assert weight_map is not None
        raise InputError(
            f"{folder / weight_map[lost[0]]} lacks {listed(lost)}, which {INDEX_FILE} puts there: "
            "index and shards are not of one checkpoint"
        )
    return found, shapes
