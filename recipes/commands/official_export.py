"""A run's weights as an official folder, read back bit for bit: the work of `medmo export`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from medmo_core.errors import InputError
from medmo_core.inference.kit import Kit
from medmo_core.inference.load import DTYPES, load
from medmo_core.models.official.folder import open_checkpoint

from ..settings.run_config import STAGES, RunConfig
from ..training.checkpoints.checkpoints import STATE, list_checkpoints, step_of
from ..training.checkpoints.official import write_official
from ..training.checkpoints.shard_reader import read_model
from ..training.model.kit import load_kit
from ..training.model.lora import add_adapters, merged_tensors


def find_source(run: str | Path, step: int | None = None) -> Path:
    """Return what to export: a finished model's folder, or a training checkpoint.

    Raises:
        FileNotFoundError: there is nothing to export, or not that step; the message lists what there is.
    """
    path = Path(run).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; --run takes the out_dir of a run")
    found = list_checkpoints(path / "checkpoints")
    if step is not None:
        wanted = path / "checkpoints" / f"step-{step:06d}"
        if wanted not in found:
            there = ", ".join(str(step_of(folder)) for folder in found) or "none"
            raise FileNotFoundError(f"{path}: no checkpoint of step {step}; there are: {there}")
        return wanted
    if (path / "final").is_dir():
        return path / "final"
    if found:
        return found[-1]
    if (path / STATE).is_file() or any(path.glob("*.safetensors")):
        return path
    runs = [name for name in STAGES if (path / name).is_dir()]
    if runs:
        raise FileNotFoundError(f"{path} holds the runs of {', '.join(runs)}; name one of them, as {path / runs[-1]}")
    raise FileNotFoundError(f"{path}: neither final/ nor checkpoints/; nothing has been saved there yet")


def export(source: Path, out: Path, *, dtype: str | None = None) -> Path:
    """Write `source` to `out` in the official layout and verify what was written.

    Args:
        source: folder in the official layout, or a training checkpoint (with state.json).
        out: folder to write.
        dtype: key of DTYPES; None: as stored.

    Returns:
        The folder.

    Raises:
        InputError: `out` holds something, the source is broken, or what was written differs from it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; name a new one")
    if (source / STATE).is_file():
        kit, tensors = read_training_checkpoint(source)
    else:
        kit = load(source, device="cpu")
        tensors = dict(_stored_tensors(source))
    if dtype is not None:
        tensors = {name: t.to(DTYPES[dtype]) if t.is_floating_point() else t for name, t in tensors.items()}
    write_official(out, tensors, kit)
    verify(out, tensors)
    return out


def read_training_checkpoint(folder: Path) -> tuple[Kit, dict[str, Tensor]]:
    """Read the weights of a checkpoint written while training, by however many processes.

    Returns:
        The run's kit on the meta device (sizes, tokenizer, profile), and every tensor by its official name
        (adapters added into the weights).

    Raises:
        CheckpointError: a file is missing, or differs from what was written.
    """
    tensors = read_model(folder)
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    config = RunConfig.from_dict(state["config"])
    kit = load_kit(config, "meta")
    if config.lora.rank:
        add_adapters(kit.model, config.lora)
        tensors = merged_tensors(kit.model, tensors)
    return kit, tensors


def verify(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read an exported folder back and compare it with what was to be written.

    Raises:
        InputError: the folder does not load, or a tensor differs.
    """
    kit = load(folder, device="cpu")  # names and shapes fit the config, tokenizer and profile read
    del kit
    written = set()
    for name, tensor in _stored_tensors(folder):
        written.add(name)
        if name not in tensors or tensor.dtype != tensors[name].dtype or not torch.equal(tensor, tensors[name]):
            raise InputError(f"{folder}: {name} does not read back as it was written; check the disk and export again")
    # A head tied to the embedding is one tensor and is stored once.
    lost = sorted(name for name in tensors if name not in written and name != "lm_head.weight")
    if lost:
        raise InputError(f"{folder}: {len(lost)} tensors were not written, as {lost[0]}")


def _stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of an official folder, one at a time."""
    checkpoint = open_checkpoint(folder)
    for path in sorted(set(checkpoint.files.values())):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, file.get_tensor(name)
