"""Checkpoints that are whole or absent, and continue a run bit for bit.

    out_dir/checkpoints/step-000100/
        state.json              step, config, number of processes, generator states, the stage's own values
        model-0-of-1.safetensors, optimizer-0-of-1.safetensors

Each folder is written beside its place, flushed to the disk and renamed: a crash leaves the older checkpoint. Tensors
are safetensors and the rest is JSON, so reading a checkpoint never runs code. Whole copies are written once; sharded
tensors by every process, which ties such a checkpoint to its number of processes. `final/` is the official layout.
"""

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .config import RunConfig
from .distributed import World
from .optim import Optimizer


class CheckpointError(ValueError):
    """A checkpoint that cannot be read here; the message names the folder and the way out."""


@dataclass(frozen=True)
class Resumed:
    """What came back beside weights and optimiser."""

    step: int
    """Finished steps."""
    extra: dict[str, Any]
    """This process's values given to `save`."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        out_dir: the run's folder.
        world: every process calls save and load; files are divided among them.
        keep: newest checkpoints kept; 0 = all.
    """

    def __init__(self, out_dir: str | Path, world: World, *, keep: int = 0) -> None:
        self.folder, self.world, self.keep = Path(out_dir) / "checkpoints", world, keep

    def all(self) -> list[Path]:
        """Return the finished checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def newest(self) -> Path | None:
        """Return the newest finished checkpoint."""
        found = self.all()
        return found[-1] if found else None

    def save(
        self,
        step: int,
        config: RunConfig,
        model: nn.Module,
        optimizer: Optimizer,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the checkpoint of `step` finished steps; every process calls this.

        Args:
            step: finished steps.
            config: stored whole.
            model: all its weights are stored.
            optimizer: its moments, step counts and master weights.
            extra: JSON values of this process to get back on resume.

        Returns:
            The finished folder.
        """
        target = self.folder / f"step-{step:06d}"
        partial = self.folder / f".{target.name}.partial"
        if self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.world.barrier()
        model_tensors, optimizer_tensors = _own(model), optimizer.state_tensors()
        sharded = any(isinstance(t, DTensor) for t in model_tensors.values())
        if sharded or self.world.is_main:
            suffix = self._suffix(sharded)
            _write_tensors(partial / f"model-{suffix}", model_tensors)
            _write_tensors(partial / f"optimizer-{suffix}", optimizer_tensors)
        ranks = self.world.gather({"extra": dict(extra or {}), "generators": _generators(self.world.device)})
        if self.world.is_main:
            state = {"step": step, "world_size": self.world.size, "sharded": sharded, "ranks": ranks}
            _write_json(partial / "state.json", {**state, "config": config.to_dict()})
            _flush(partial)
            shutil.rmtree(target, ignore_errors=True)  # the same step of an earlier attempt
            partial.rename(target)
            _flush(self.folder)
            if self.keep:
                for old in self.all()[: -self.keep]:
                    shutil.rmtree(old)
        self.world.barrier()
        return target

    def load(self, path: Path, model: nn.Module, optimizer: Optimizer) -> Resumed:
        """Bring model, optimiser and random generators to where `save` left them; every process calls this.

        Raises:
            CheckpointError: a file is missing or has other tensors, or the number of processes differs where the
                checkpoint is sharded.
        """
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path}: no readable state.json ({error}); remove this folder") from error
        sharded = any(isinstance(t, DTensor) for t in _own(model).values())
        if state["sharded"] != sharded or (sharded and state["world_size"] != self.world.size):
            raise CheckpointError(
                f"{path}: written by {state['world_size']} processes, parallel.shard={str(state['sharded']).lower()}; "
                "resume it the same way, or start a new run with model.init at a final/ folder"
            )
        suffix = self._suffix(sharded)
        _fill(path / f"model-{suffix}", _own(model))
        optimizer_file = path / f"optimizer-{suffix}"
        templates = {name: p for name, p in optimizer.named.items() if isinstance(p, DTensor)}
        optimizer.load_state_tensors(_read_optimizer(optimizer_file, templates))
        mine = state["ranks"][self.world.rank] if self.world.rank < len(state["ranks"]) else {"extra": {}}
        if state["world_size"] == self.world.size:
            _set_generators(mine["generators"], self.world.device)
        return Resumed(step=state["step"], extra=mine["extra"])

    def _suffix(self, sharded: bool) -> str:
        return f"{self.world.rank}-of-{self.world.size}.safetensors" if sharded else "0-of-1.safetensors"


def _own(model: nn.Module) -> dict[str, Tensor]:
    """Return every distinct tensor of the model once, under its first name; a tied head is its embedding."""
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    state_names = model.state_dict().keys()
    tensors.update({name: b for name, b in model.named_buffers() if name in state_names})
    return tensors


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: _local(t).detach().cpu().contiguous() for name, t in tensors.items()}, path)
    _flush(path)


def _fill(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy the file's tensors into `tensors`, which must have the same names and shapes."""
    if not path.is_file():
        raise CheckpointError(f"{path}: file missing; remove this checkpoint folder to use an older one")
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        if names != tensors.keys():
            odd = sorted(names ^ tensors.keys())
            raise CheckpointError(f"{path}: holds another model ({len(odd)} names differ, as {odd[0]})")
        for name, tensor in tensors.items():
            stored, here = file.get_tensor(name), _local(tensor)
            if stored.shape != here.shape:
                raise CheckpointError(f"{path}: {name} is {tuple(stored.shape)}, the model's {tuple(here.shape)}")
            here.copy_(stored)


def _read_optimizer(path: Path, templates: Mapping[str, DTensor]) -> dict[str, Tensor]:
    """Read optimiser tensors; those of sharded parameters become shards again (step counts stay plain)."""
    if not path.is_file():
        raise CheckpointError(f"{path}: file missing; remove this checkpoint folder to use an older one")
    tensors: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            stored, like = file.get_tensor(key), templates.get(key.split(":", 1)[1])
            if like is not None and not key.startswith("step:"):
                local = stored.to(like.to_local().device)
                stored = DTensor.from_local(
                    local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
                )
            tensors[key] = stored
    return tensors


def _generators(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's and torch's generators as JSON values."""
    version, numbers, gauss = random.getstate()
    states = {"python": [version, list(numbers), gauss], "torch": bytes(torch.get_rng_state().tolist()).hex()}
    if device.type == "cuda":
        states["cuda"] = bytes(torch.cuda.get_rng_state(device).tolist()).hex()
    return states


def _set_generators(states: Mapping[str, Any], device: torch.device) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(states["torch"])), dtype=torch.uint8))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(states["cuda"])), dtype=torch.uint8), device)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
