"""A run among several processes that is stopped or killed: it saves and ends, or torchrun takes it up again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medmo_recipes import align
from medmo_recipes.training.loop.run import STOPPED, Run
from medmo_recipes.training.monitoring import summary as summary_module

SETTINGS = ["--config=debug_align", "train.steps=4", "train.save_every=2", "train.device=cpu", "parallel.shard=true"]
KILLED = """
import os, signal, sys
from medmo_recipes import align
from medmo_recipes.training.distributed.torchrun import leave
from medmo_recipes.training.loop.run import Run
from medmo_recipes.training.monitoring import summary

summary.write_summary = lambda out_dir: out_dir
close_step = Run.close_step


def close_or_die(self, step, *rest, **named):
    if os.environ["RANK"] == "1" and (os.environ["TORCHELASTIC_RESTART_COUNT"], step) in (("0", 0), ("1", 3)):
        os.kill(os.getpid(), signal.SIGKILL)
    return close_step(self, step, *rest, **named)


Run.close_step = close_or_die
leave(align.main(sys.argv[1:]))
"""
"""Align, in which the second process dies in step 1 and, at the second attempt, in step 4."""


@pytest.fixture(autouse=True)
def no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "write_summary", lambda out_dir: out_dir)  # drawing takes longer than the steps


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == name]


def test_a_killed_process_is_restarted(tmp_path: Path, run_processes: Callable[..., Any]) -> None:
    """Killed before the first checkpoint and after it: the weights are those of a run that nobody killed."""
    whole, restarted = tmp_path / "whole", tmp_path / "restarted"
    assert run_processes(lambda: align.main([*SETTINGS, f"train.out_dir={whole}"])) == [0, 0]
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    done = subprocess.run(
        [*launcher, str(program), *SETTINGS, f"train.out_dir={restarted}"],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert [(event["step"], event["restart"]) for event in events(restarted, "resumed")] == [(2, 2)]
    ours, theirs = (load_file(folder / "final" / "model.safetensors") for folder in (restarted, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_to_one_process_stops_all(
    tmp_path: Path, run_processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    """They end after the same step, with the same status, and leave a checkpoint of it."""
    close_step = Run.close_step

    def close_or_be_asked(run: Run, step: int, *rest: Any, **named: Any) -> bool:
        if run.world.rank == asked and step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return close_step(run, step, *rest, **named)

    monkeypatch.setattr(Run, "close_step", close_or_be_asked)
    folder = tmp_path / "run"
    words = [*SETTINGS, f"train.out_dir={folder}"]
    assert run_processes(lambda: align.main(words)) == [STOPPED, STOPPED] == [143, 143]
    assert [event["step"] for event in events(folder, "stopped")] == [1]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000001"]
    assert run_processes(lambda: align.main([*words, "train.resume=true"])) == [0, 0]
