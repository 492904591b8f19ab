"""Two processes over gloo train the same model as one, with whole copies and with shards, and resume."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medmo_recipes import align
from medmo_recipes.training.distributed.torchrun import torchrun
from medmo_recipes.training.distributed.world import connect

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


def test_two_processes_with_copies_equal_one(tmp_path: Path, alone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Under torchrun itself, as the quickstart starts its stages."""
    words = [*SETTINGS, f"train.out_dir={tmp_path / 'run'}"]
    status = torchrun("medmo_recipes.align", words, num_processes=2)
    said = capfd.readouterr().err
    assert status == 0, said
    assert said.count("trains ") == 1  # one process speaks
    assert said.count("no sample was left out") == 2  # and says it for both
    assert_same_training(tmp_path / "run", alone)


def test_two_processes_with_shards_resume_and_equal_one(
    tmp_path: Path, alone: Path, capfd: pytest.CaptureFixture[str], run_processes: Callable[..., list[Any]]
) -> None:
    words = [*SETTINGS, "parallel.shard=true", f"train.out_dir={tmp_path / 'run'}"]
    assert run_processes(lambda: align.main([*words, "train.steps=2"])) == [0, 0]
    assert run_processes(lambda: align.main([*words, "train.resume=true"])) == [0, 0]
    assert "resumed after step 2" in capfd.readouterr().err
    newest = tmp_path / "run" / "checkpoints" / "step-000003"
    assert {"tensors-0-0.safetensors", "tensors-1-0.safetensors"} <= {path.name for path in newest.iterdir()}
    assert_same_training(tmp_path / "run", alone)


def test_the_error_of_a_process_is_ours(run_processes: Callable[..., list[Any]]) -> None:
    """What the tests of several processes rest on: no failure passes, none is waited for."""

    def fails_in_one() -> None:
        with connect("cpu") as world:
            if world.rank == 1:
                raise ValueError("not in this process")
            world.barrier()

    with pytest.raises(ValueError, match="not in this process") as caught:
        run_processes(fails_in_one)
    assert "process 1 of 2" in caught.value.__notes__[0] and "in fails_in_one" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="status 3, without an answer"):
        run_processes(lambda: os._exit(3))
    with pytest.raises(TimeoutError, match=r"from process \[0, 1\]"):
        run_processes(lambda: time.sleep(60), timeout_s=0.1)
