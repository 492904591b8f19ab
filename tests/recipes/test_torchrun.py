"""Two processes over gloo train the same model as one, with whole copies and with shards, and resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmo_recipes import align

SETTINGS = [
    "model.dtype=float64",
    "optim.schedule=constant",  # so that a run of two steps is the beginning of one of three
    "optim.warmup_ratio=0",
    "train.steps=3",
    "train.docs_per_step=5",
    "train.save_every=2",
    "train.device=cpu",
]


def torchrun(out_dir: Path, *overrides: str) -> str:
    """Run align in two processes; returns what it said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "medmo_recipes.align",
        "--config",
        "debug_align",
        *SETTINGS,
        f"train.out_dir={out_dir}",
        *overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert align.main(["--config", "debug_align", *SETTINGS, f"train.out_dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("shard", [False, True], ids=["copies", "shards"])
def test_two_processes_equal_one(tmp_path: Path, alone: Path, shard: bool) -> None:
    """Five documents do not divide by two: one process has an uneven share, and (sharded) a filler."""
    folder, switch = tmp_path / "run", f"parallel.shard={str(shard).lower()}"
    said = torchrun(folder, switch, f"train.steps={2 if shard else 3}")
    assert said.count("trains ") == 1  # one process speaks
    assert said.count("no sample was left out") == 2  # and says it for both
    if shard:  # the third step comes from a checkpoint that both have written
        torchrun(folder, switch, "train.resume=true")
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-9)
    assert len(losses(folder)) == 3
    ours, theirs = load_file(folder / "final" / "model.safetensors"), load_file(alone / "final" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-9), name
