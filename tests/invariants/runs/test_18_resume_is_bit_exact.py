"""Six steps equal three, a save, a load into a differently seeded process, and three more: bit for bit.

Losses, gradient norms, weights, moments, the loader with its packer's waiting documents, and each process's random
generators, with as many processes as before. With fewer the losses stay equal.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from medmo_recipes import instruct
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.checkpoints import checkpoints as checkpoint_module
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.checkpoints.checkpoints import Checkpoints
from medmo_recipes.settings.run_config import RunConfig
from medmo_recipes.training.loading.loader import Loader
from medmo_recipes.training.monitoring import summary as summary_module
from medmo_recipes.training.optim.optimizer import Optimizer

EXACT = ("loss", "grad_norm", "lr", "tokens", "documents")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Six steps of packs by tokens, with a rate that changes, on questions of many lengths about small pictures."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        question, answer = "What is this? " * (1 + index % 4), "a picture " * (1 + index % 3)
        lines.append({"id": f"q{index}", "image": f"{index}.png", "question": question, "answer": answer})
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return CONFIGS["debug_instruct"]().change(
        model={"dtype": "float64"},
        data={"sources": {str(folder / "data.jsonl"): 1.0}, "crops": False},
        train={
            "steps": 6, "save_every": 3, "keep_checkpoints": 0, "device": "cpu", "tokens_per_batch": 160,
            "batches_per_step": 2, "pack_buffer": 6,
        },
    )  # fmt: skip


def train(config: RunConfig, folder: Path, *, seed: int = 0, noise: bool = True, shard: bool = False) -> None:
    """Run a stage whose weights come from the config's seed and whose dropout from `seed` and the process's number."""

    def noisy_kit(config: RunConfig, device: Any) -> Any:
        kit = load_kit(config, device)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.manual_seed(1000 * seed + rank)
        random.seed(1000 * seed + rank)
        if noise:
            kit.model.decoder.norm.register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.2))
        return kit

    resume = (folder / "checkpoints").exists()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(instruct, "load_kit", noisy_kit)
        patched.setattr(summary_module, "write_summary", lambda out_dir: out_dir)  # drawing takes longer than the steps
        run = config.change(train={"out_dir": str(folder), "resume": resume}, parallel={"shard": shard})
        assert instruct.run(run)


def half_of(whole: Path, folder: Path) -> Path:
    """Make a run's folder that holds nothing but the checkpoint of step 3."""
    shutil.copytree(whole / "checkpoints" / "step-000003", folder / "checkpoints" / "step-000003")
    return folder


def numbers(folder: Path, names: tuple[str, ...]) -> list[list[float]]:
    """Return what was logged of steps 4 to 6."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [[line[name] for name in names] for line in lines if line.get("step", 0) > 3]


def stored(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the values of the checkpoint of step 6 (what was timed left out)."""
    step = folder / "checkpoints" / "step-000006"
    tensors = {f"{p.name} {n}": t for p in sorted(step.glob("*.safetensors")) for n, t in load_file(p).items()}
    values = {path.name: json.loads(path.read_text()) for path in step.glob("process-*.json")}
    shared = json.loads((step / "state.json").read_text())["shared"]
    shared["meter"].pop("seconds")
    return tensors, {**values, "shared": shared}


def check(whole: Path, again: Path) -> None:
    """Check that a resumed run ended where the whole one did."""
    wanted = numbers(whole, EXACT)
    assert len(wanted) == 3 and numbers(again, EXACT) == wanted
    (tensors, values), (wanted_tensors, wanted_values) = stored(again), stored(whole)
    assert tensors.keys() == wanted_tensors.keys()
    assert all(torch.equal(tensors[name], wanted_tensors[name]) for name in tensors)
    assert values == wanted_values


@pytest.fixture(scope="module")
def alone(base: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "whole"
    train(base, folder)
    return folder


@pytest.mark.parametrize("forgotten", ["nothing", "generators", "moments", "waiting documents", "step"])
def test_what_is_forgotten_is_noticed(
    base: RunConfig, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    again = half_of(alone, tmp_path / "again")
    load_newest, restore = Checkpoints.load_newest, Loader.restore

    def load_without_moments(self: Checkpoints, model: Any, optimizer: Any) -> Any:
        loaded = load_newest(self, model, optimizer)
        for name, tensor in optimizer.state_tensors().items():
            tensor.mul_(0.0 if name.startswith("exp_avg:") else 1.0)
        return loaded

    def restore_no_documents(self: Loader, state: dict[str, Any]) -> None:
        restore(self, {**state, "packer": self.state()["packer"]})

    if forgotten == "generators":
        monkeypatch.setattr(checkpoint_module, "set_generators", lambda *args: None)
    elif forgotten == "moments":
        monkeypatch.setattr(Checkpoints, "load_newest", load_without_moments)
    elif forgotten == "waiting documents":
        monkeypatch.setattr(Loader, "restore", restore_no_documents)
    elif forgotten == "step":  # of the schedule and the bias correction
        optimizer_step = Optimizer.step
        monkeypatch.setattr(Optimizer, "step", lambda self, step: optimizer_step(self, step - 3))
    train(base, again, seed=7)
    if forgotten == "nothing":
        check(alone, again)
    else:
        with pytest.raises(AssertionError):
            check(alone, again)


@pytest.mark.parametrize("shard", [False, True])
def test_same_number_of_processes(
    base: RunConfig, tmp_path: Path, run_processes: Callable[..., Any], shard: bool
) -> None:
    whole = tmp_path / "whole"
    run_processes(lambda: train(base, whole, shard=shard))
    again = half_of(whole, tmp_path / "again")
    run_processes(lambda: train(base, again, seed=7, shard=shard))
    check(whole, again)
    # It is no accident that the generators and the waiting documents agree: there are some, and they differ.
    _, values = stored(whole)
    assert values["process-0.json"]["generators"] != values["process-1.json"]["generators"]
    assert values["shared"]["loader"]["packer"]["num_packs"] == 12


def test_fewer_processes(base: RunConfig, tmp_path: Path, run_processes: Callable[..., Any]) -> None:
    whole = tmp_path / "whole"
    run_processes(lambda: train(base, whole, noise=False, shard=True))
    again = half_of(whole, tmp_path / "again")
    train(base, again, seed=7, noise=False)
    for found, wanted in zip(numbers(again, EXACT), numbers(whole, EXACT), strict=True):
        assert found == pytest.approx(wanted, rel=1e-9)
