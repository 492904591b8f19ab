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
    "--config=debug_align",
    "model.dtype=float64",
    "optim.schedule=constant",  # so that a run of two steps is the beginning of one of three
    "optim.warmup_ratio=0",
    "train.steps=3",
    "train.docs_per_step=5",  # does not divide by two: one process has an uneven share, or a filler
    "train.save_every=2",
    "train.device=cpu",
]


def torchrun(*words: str) -> str:
    """Run align in two processes; returns what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "medmo_recipes.align", *SETTINGS, *words]
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
    assert align.main([*SETTINGS, f"train.out_dir={folder}"]) == 0
    return folder


def assert_same_training(folder: Path, alone: Path) -> None:
    assert len(losses(folder)) == 3
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-9)
    ours, theirs = load_file(folder / "final" / "model.safetensors"), load_file(alone / "final" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-9), name


def test_two_processes_with_copies_equal_one(tmp_path: Path, alone: Path) -> None:
    said = torchrun(f"train.out_dir={tmp_path / 'run'}")
    assert said.count("trains ") == 1  # one process speaks
    assert said.count("no sample was left out") == 2  # and says it for both
    assert_same_training(tmp_path / "run", alone)


def test_two_processes_with_shards_resume_and_equal_one(tmp_path: Path, alone: Path) -> None:
    words = ["parallel.shard=true", f"train.out_dir={tmp_path / 'run'}"]
    torchrun(*words, "train.steps=2")
    said = torchrun(*words, "train.resume=true")
    assert "resumed after step 2" in said
    newest = tmp_path / "run" / "checkpoints" / "step-000003"
    assert {"model-0-of-2.safetensors", "model-1-of-2.safetensors"} <= {path.name for path in newest.iterdir()}
    assert_same_training(tmp_path / "run", alone)
