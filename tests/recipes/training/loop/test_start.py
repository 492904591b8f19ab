"""Before any work: one run per folder for as long as it lives, a folder that can be written, files that are there."""

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medmo_recipes import align, reinforce
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import ConfigError, Train
from medmo_recipes.training.distributed.world import World, connect
from medmo_recipes.training.loading.files import check_files
from medmo_recipes.training.loop import run_lock
from medmo_recipes.training.loop.run_folder import claimed
from medmo_recipes.training.loop.run_lock import LOCK, locked

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def no_model(*args: object) -> None:
    raise AssertionError("a model was built first")


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_before_any_work_and_told_who_holds_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    monkeypatch.setattr("medmo_recipes.align.load_kit", no_model)
    words = ["--config", "debug_align", f"train.out_dir={tmp_path / 'run'}", f"train.resume={str(resume).lower()}"]
    with claimed(Train(out_dir=str(tmp_path / "run")), ALONE):
        (tmp_path / "run" / "metrics.jsonl").write_text("")
        assert align.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: train.out_dir: {tmp_path / 'run'} is in use by a run that is going on: process ")
    assert f"process {os.getpid()} on " in told and told.count("\n") == 1
    with claimed(Train(out_dir=str(tmp_path / "run"), resume=True), ALONE):
        pass  # free again


def test_a_killed_run_locks_nothing(tmp_path: Path) -> None:
    read, report = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "run"):
            (tmp_path / "run" / "begun").touch()
            if os.fork() == 0:  # a worker that outlives the run has a copy of its handles
                os.write(report, b"%d" % os.getpid())
                signal.pause()
            signal.pause()
    worker = int(os.read(read, 20))
    try:
        with pytest.raises(ConfigError, match=f"process {child} on "), locked(tmp_path / "run"):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == child  # what is left locks nothing
        with locked(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_every_process_of_a_second_run_is_refused(tmp_path: Path, run_processes: Callable[..., Any]) -> None:
    def begin() -> str:
        train = Train(out_dir=str(tmp_path))
        with (
            pytest.raises((ConfigError, RuntimeError)) as caught,
            connect("cpu", timeout_s=60) as world,
            claimed(train, world),
        ):
            pass
        return str(caught.value)

    with locked(tmp_path):
        first, second = run_processes(begin)
    assert f"in use by a run that is going on: process {os.getpid()} on " in first
    assert second.startswith("claiming the run's folder failed on another process; process 0: ConfigError: ")


def test_a_folder_without_anything_is_taken_away_and_a_waiting_run_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    flock, calls = run_lock.fcntl.flock, []

    def removed_meanwhile(handle: int, how: int) -> None:
        if not calls:
            (tmp_path / "run" / LOCK).unlink()
        calls.append(flock(handle, how))

    monkeypatch.setattr(run_lock.fcntl, "flock", removed_meanwhile)
    with locked(tmp_path / "run"):
        assert len(calls) == 2 and (tmp_path / "run" / LOCK).exists()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", flock)
    with locked(tmp_path):
        assert "knows no locks" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_file_for_a_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str) -> None:
    (tmp_path / "file").write_text("kept")
    assert align.main(["--config", "debug_align", f"train.out_dir={tmp_path / 'file'}{below}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: train.out_dir: ") and told.count("\n") == 1
    assert ("Not a directory" if below else "is a file, expected a folder") in told


@pytest.mark.parametrize(("call", "number"), [("mkdir", errno.EROFS), ("open", errno.EACCES), ("fsync", errno.ENOSPC)])
def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path if call == "mkdir" else run_lock.os, call, refuse)
    assert align.main(["--config", "debug_align", f"train.out_dir={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert f"cannot be written ({os.strerror(number)}); choose another" in told and told.count("\n") == 1


MISSING = {
    "data": {"sources": {"nowhere.jsonl": 1.0, "embedded:captoin": 1.0, "unused.jsonl": 0.0}, "root": "no-root"},
    "model": {"init": "runs/nope/final/x", "encoder_init": {"siglip2": "./no-encoder"}, "tokenizer": "no.json"},
}


def test_all_that_is_missing_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIGS["debug_align"]()
    check_files(config)
    with pytest.raises(ConfigError) as caught:
        check_files(config.change(**MISSING))
    told = str(caught.value)
    assert told.startswith("6 things that this run needs are missing: model.init: runs/nope/final/x is no folder")
    for words in ("model.encoder_init.siglip2: ./no-encoder", "model.tokenizer: no.json", "data.root: no-root",
                  "nowhere.jsonl is no file", "did you mean 'embedded:caption'"):  # fmt: skip
        assert words in told
    assert "unused" not in told
    words = ["--config", "debug_align", "--data", "a.jsonl", "--data", "b.jsonl", "--dry-run"]
    assert align.main(words) == 2  # the sizes are shown all the same
    shown = capsys.readouterr()
    assert "parameters:" in shown.out and "a.jsonl is no file" in shown.err and "b.jsonl is no file" in shown.err


@pytest.mark.parametrize("setting", ["data.sources=embedded:captoin", "data.sources=nowhere.jsonl"])
def test_an_unknown_source_is_refused_before_a_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    for stage in ("align", "reinforce"):
        monkeypatch.setattr(f"medmo_recipes.{stage}.load_kit", no_model)
    words = [f"train.out_dir={tmp_path / 'run'}", setting]
    assert align.main(["--config", "debug_align", *words]) == 2
    assert reinforce.main(["--config", "debug_reinforce", *words]) == 2
    words = [f"train.out_dir={tmp_path / 'run'}", "rewards.weights.bxo=1"]
    assert reinforce.main(["--config", "debug_reinforce", *words]) == 2
    assert not (tmp_path / "run").exists()


def test_full_shared_memory_is_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medmo_recipes.align.load_kit", no_model)
    full = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=4096))
    monkeypatch.setattr("medmo_recipes.training.loading.workers.shutil", full)
    words = ["--config", "debug_align", "data.num_workers=2", f"train.out_dir={tmp_path / 'run'}"]
    assert align.main(words) == 2
    told = capsys.readouterr().err
    assert "data.num_workers=2: /dev/shm has 4,096 bytes free; shared memory ran out: enlarge" in told
