"""Checkpoints that are written atomically, and continue a run bit for bit, on any number of processes.

    out_dir/best.json                         {"step": 100, "val_loss": 1.25}: the least held-out loss so far
    out_dir/checkpoints/step-000100/
        manifest.json                         every other file with its size and SHA-256 sum; written last
        state.json                            step, config, number of processes, values that all processes share
        process-0.json                        generators and own values of a process
        tensors-0-0.safetensors               weights and optimiser state that a process wrote (DCP's layout)

A save copies what trains to the host and writes while training goes on; the next save waits for it, and its failure
stops the run at the next step. A folder is filled under a hidden name, flushed to the disk and renamed, so a crash at
any moment leaves the checkpoints before it. Sharded or not, a checkpoint loads into any number of processes.

Nothing in a checkpoint is ever run: tensors are safetensors, the rest is JSON, and a folder that holds any other file,
or one that differs from the manifest, is refused. The manifest finds accidents. Who can write the folder can put other
numbers into it, with a manifest that fits.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medmo_core.durable import publish, remove, shared_aside, write_json, write_text

from ...settings.run_config import RunConfig
from ..distributed.shards import local_part
from ..distributed.world import World
from .background import Background
from .manifest import CheckpointError, FileSum, find_damage, sum_file, write_manifest
from .shard_reader import read_tensors
from .shard_writer import ShardWriter, own_file, write_tensors
from .state import HostCopies, KeepsTensors, frozen_names, generator_states, run_tensors, set_generators

STATE = "state.json"


@dataclass(frozen=True)
class Best:
    """The checkpoint with the least held-out loss so far."""

    step: int
    """Finished steps."""
    val_loss: float


@dataclass(frozen=True)
class Resumed:
    """Values that came back beside weights, optimiser and generators."""

    step: int
    """Finished steps."""
    config: dict[str, Any]
    """The run's config when it was written."""
    shared: dict[str, Any]
    """Values that were the same on all processes."""
    own: list[dict[str, Any]]
    """Values of each process that this one continues: one; several, or none, where the number of processes changed."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        out_dir: the run's folder, on a file system that all processes share.
        world: every process calls save and load; files are divided among them.
        keep: newest checkpoints kept; 0 = all.
        keep_every: checkpoints whose step is a multiple of this stay; 0 = none. The best one stays anyway.
        in_background: write while the caller goes on.
        timeout_s: time in s that a process waits for the slowest one to write its files.
    """

    def __init__(
        self,
        out_dir: str | Path,
        world: World,
        *,
        keep: int = 0,
        keep_every: int = 0,
        in_background: bool = False,
        timeout_s: float = 600.0,
    ) -> None:
        self.folder, self.world, self.keep, self.keep_every = Path(out_dir) / "checkpoints", world, keep, keep_every
        self.in_background = in_background
        self.best: Best | None = None
        self.background = Background()
        self._copies = HostCopies()
        self._group: dist.ProcessGroup | None = None
        if world.size > 1:
            # Its own group: the writing thread must not mix its messages with those of the training loop.
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            assert isinstance(group, dist.ProcessGroup)  # this process belongs to it
            self._group = group

    def all(self) -> list[Path]:
        """Return the finished checkpoints, oldest first."""
        return list_checkpoints(self.folder)

    def newest(self) -> Path | None:
        """Return the newest finished checkpoint."""
        found = self.all()
        return found[-1] if found else None

    def save(
        self,
        step: int,
        config: RunConfig,
        model: nn.Module,
        optimizer: KeepsTensors,
        *,
        shared: Mapping[str, Any] | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the checkpoint of `step` finished steps; every process calls this.

        Args:
            step: finished steps.
            config: stored whole.
            model: all its weights are stored.
            optimizer: its moments and master weights.
            shared: JSON values, the same on all processes.
            own: JSON values of this process.

        Returns:
            The folder, which appears when all is written: on return, or after `wait` if writing in the background.

        Raises:
            CheckpointError: this save, or the one before in the background, could not be written.
        """
        self.wait()  # its copies on the host are used again
        tensors = run_tensors(model, optimizer)
        if self.in_background:
            local = self._copies.take(tensors, frozen_names(model))
        else:
            local = {name: local_part(tensor) for name, tensor in tensors.items()}
        target = self.folder / f"step-{step:06d}"
        state = {
            "step": step,
            "world_size": self.world.size,
            "config": config.to_dict(),
            "shared": dict(shared or {}),
            "best": None if self.best is None else asdict(self.best),
        }
        own_values = {"own": dict(own or {}), "generators": generator_states(self.world.device)}
        text = json.dumps(state)  # now: training goes on changing what it is made of

        def finish(files: dict[str, FileSum]) -> None:
            self._finish(target, text, files)

        partial = shared_aside(target)
        writer = ShardWriter(partial, rank=self.world.rank, own=own_values, finish=finish)
        if self.in_background:
            self.background.start(lambda: self._write(writer, tensors, local))
        else:
            self._write(writer, tensors, local)
        return target

    def _write(self, writer: ShardWriter, tensors: Mapping[str, Tensor], local: Mapping[str, Tensor]) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.set_device(self.world.device)  # a new thread begins on the first GPU
        write_tensors(tensors, local, writer, self._group)

    def _finish(self, target: Path, state: str, files: dict[str, FileSum]) -> None:
        """Complete the folder, give it its name, and delete what is no longer kept; the main process does this."""
        partial = shared_aside(target)
        write_text(partial / STATE, state)
        write_manifest(partial, {**files, STATE: sum_file(partial / STATE)})
        publish(partial, target)
        best = json.loads(state)["best"]
        if best is None:
            (self.folder.parent / "best.json").unlink(missing_ok=True)  # of a best that is no longer there
        else:
            write_json(self.folder.parent / "best.json", best)
        paths = self.all()
        for path in paths[: -self.keep] if self.keep else []:
            step = step_of(path)
            if not (self.keep_every and step % self.keep_every == 0) and (best is None or step != best["step"]):
                remove(path)

    def wait(self) -> None:
        """Wait until the save in the background is written.

        Raises:
            CheckpointError: it could not be.
        """
        self.background.wait()

    def load(self, path: Path, model: nn.Module, optimizer: KeepsTensors) -> Resumed:
        """Bring model, optimiser and random generators to where `save` left them; every process calls this.

        Raises:
            CheckpointError: the folder is incomplete or changed, or belongs to another model; names what differs, and
                an older checkpoint that is whole.
        """
        if damage := self._find_damage(path):
            older = [p for p in self.all() if step_of(p) < step_of(path)]
            whole = next((p for p in reversed(older) if self._find_damage(p) is None), None)
            instead = "no older one is whole" if whole is None else f"{whole} is whole"
            raise CheckpointError(f"{path}: {damage}; {instead}")
        return self._read(path, model, optimizer)

    def load_newest(self, model: nn.Module, optimizer: KeepsTensors) -> tuple[Resumed, list[str]]:
        """Load the newest checkpoint that is whole and set damaged newer ones aside; every process calls this.

        Returns:
            What came back, and a sentence for each checkpoint passed over.

        Raises:
            CheckpointError: none is whole, or it belongs to another model.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self.all()):
            damage = self._find_damage(path)
            if damage is None:
                resumed = self._read(path, model, optimizer)
                if self.world.is_main:
                    for passed in damaged:  # kept to be looked at, but no longer counted among the newest
                        aside = self.folder / f"damaged-{passed.name}"
                        if aside.exists():
                            remove(aside)
                        passed.rename(aside)
                self.world.barrier()
                return resumed, [f"{passed.name}: {why}" for passed, why in damaged.items()]
            damaged[path] = damage
        reasons = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
        raise CheckpointError(f"{self.folder}: no checkpoint can be resumed: {reasons}")

    def _find_damage(self, path: Path) -> str | None:
        found = self.world.gather(find_damage(path, self.world.rank, self.world.size))
        return next((damage for damage in found if damage is not None), None)

    def _read(self, path: Path, model: nn.Module, optimizer: KeepsTensors) -> Resumed:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        read_tensors(path, run_tensors(model, optimizer), self._group)
        continued = range(self.world.rank, state["world_size"], self.world.size)
        processes = [json.loads((path / own_file(rank)).read_text(encoding="utf-8")) for rank in continued]
        if processes:
            set_generators(processes[0]["generators"], self.world.device)
        best = None if state["best"] is None else Best(**state["best"])
        self.best = best if best is not None and (self.folder / f"step-{best.step:06d}").is_dir() else None
        own = [process["own"] for process in processes]
        return Resumed(step=state["step"], config=state["config"], shared=state["shared"], own=own)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints in `folder`, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    """Return the number of finished steps of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))
