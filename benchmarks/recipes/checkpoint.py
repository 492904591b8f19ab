"""The cost of a checkpoint, beside torch.save and torch.load of the same tensors: model and AdamW in fp32.

- save: until every file is on the disk, on both sides.
- stall: what a training step waits for a save in the background: the copy to the host, into buffers that stand since
  the first save. Its writing follows as a separate way, waited for, so that it does not run beside another way's
  turn. torch.save stalls for all it takes.
- resume: from files that were just written, so mostly out of the page cache. Ours checks every file's SHA-256 sum,
  which torch.load has nothing like.

A way is checked by bringing back every number after all were overwritten. Files are written to the folder for temporary
ones (TMPDIR), which should be on a disk.
"""

import os
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from medmo_core.models import PRESETS, MedMO
from medmo_recipes.settings.run_config import Optim, RunConfig
from medmo_recipes.training.checkpoints.checkpoints import Checkpoints
from medmo_recipes.training.checkpoints.state import run_tensors
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.optim.optimizer import Optimizer

from ..suite.comparison import OURS, Comparison, Ready, Way, Work
from ..suite.made_once import Shared
from ..suite.schema import Check

CONFIG = RunConfig(stage="instruct", name="bench")
DIRECTIONS = ("save", "stall", "resume")
AGAINST = "the state saved"
LAYERS = {"cuda": 24, "cpu": 1}
"""Decoder layers by kind of device: 1.3 and 0.2 GB of state."""


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the one comparison."""
    layers = 0 if short else LAYERS[device.type]
    model = new_model(layers, torch.device("meta"))
    size = 3 * sum(p.nbytes for p in model.parameters())  # a weight and two moments
    state = Shared(partial(State, layers, device))
    ways = [
        Way(OURS, partial(ours, state), "ours"),
        Way("ours, written behind", partial(written_behind, state), "ours"),
        Way("torch.save, torch.load", partial(theirs, state)),
    ]
    case = f"{size / 1e9:.2g} GB of weights and AdamW"
    work: dict[str, Work] = dict.fromkeys(DIRECTIONS, Work(items=size / 1e9, unit="GB"))
    return [Comparison("recipes", "checkpoint", case, "float32", DIRECTIONS, ways, work, seconds=2.0, repeats=9)]


def new_model(layers: int, device: torch.device) -> MedMO:
    """Build a model of the official structure: 4 million parameters a layer and 13 million beside; 0: debug's size."""
    if not layers:
        return MedMO.from_config("debug", dtype=torch.float32, device=device)
    text = {
        "vocab_size": 20_000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "mrope_section": (12, 10, 10),
    }  # fmt: skip
    return MedMO.from_config(PRESETS["tiny"].override(text=text), dtype=torch.float32, device=device)


class State:
    """A model with its optimiser, and where its checkpoints are written: a folder that goes with this object.

    Args:
        layers: number of the model's layers.
        device: device of the model.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = new_model(layers, device)
        self.optimizer = Optimizer(self.model, Optim(), 10)
        with torch.no_grad():
            for tensor in self.optimizer.state_tensors().values():
                tensor.normal_()  # as after some steps: nothing that a file system could leave out
        self.tensors = run_tensors(self.model, self.optimizer)
        self.folder = tempfile.TemporaryDirectory(prefix="medmo-bench-")
        world, path = World(rank=0, size=1, device=device), Path(self.folder.name)
        self.plain = path / "plain"
        self.plain.mkdir()
        self.whole = Checkpoints(path / "whole", world, keep=1)
        self.aside = Checkpoints(path / "aside", world, keep=1, in_background=True)
        self._step = 0

    def save(self, store: Checkpoints) -> None:
        """Save the next step."""
        self._step += 1
        store.save(self._step, CONFIG, self.model, self.optimizer)

    def resume(self, store: Checkpoints) -> None:
        """Bring back the newest step."""
        store.load_newest(self.model, self.optimizer)

    def lost_by(self, save: Callable[[], object], load: Callable[[], object]) -> float:
        """Return the largest difference after all numbers were saved, overwritten and brought back."""
        before = {name: tensor.clone() for name, tensor in self.tensors.items()}
        save()
        with torch.no_grad():
            for tensor in self.tensors.values():
                tensor.fill_(1.0)
        load()
        return max(float((tensor - before[name]).abs().max()) for name, tensor in self.tensors.items())

    @cached_property
    def lost_aside(self) -> float:
        """Return what a save in the background loses, once it is written."""

        def save() -> None:
            self.save(self.aside)
            self.aside.wait()

        return self.lost_by(save, partial(self.resume, self.aside))


def ours(state: Shared[State]) -> Ready:
    """Take our way, both forms of saving checked."""
    s = state()
    save, resume = partial(s.save, s.whole), partial(s.resume, s.whole)
    error = max(s.lost_by(save, resume), s.lost_aside)
    return Ready({"save": save, "stall": partial(s.save, s.aside), "resume": resume}, Check(AGAINST, error, 0.0))


def written_behind(state: Shared[State]) -> Ready:
    """Wait for what our way writes in the background; called after it."""
    s = state()
    return Ready({"stall": s.aside.wait}, Check(AGAINST, s.lost_aside, 0.0))


def theirs(state: Shared[State]) -> Ready:
    """Write one file and flush it; read it and copy."""
    s = state()
    path = s.plain / "state.pt"

    def save() -> None:
        torch.save(s.tensors, path)
        flush(s.plain)

    def resume() -> None:
        loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
        for name, tensor in loaded.items():
            s.tensors[name].copy_(tensor)

    error = s.lost_by(save, resume)
    return Ready({"save": save, "stall": save, "resume": resume}, Check(AGAINST, error, 0.0))


def flush(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
