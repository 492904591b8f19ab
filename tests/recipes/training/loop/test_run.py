"""A run's equipment: whose folder it is, when it saves and exports, what comes back, what failures and signals do."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmo_core.errors import InputError
from medmo_core.models.medmo import MedMO
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import ConfigError, RunConfig
from medmo_recipes.training.checkpoints import shard_writer
from medmo_recipes.training.checkpoints.checkpoints import Best
from medmo_recipes.training.checkpoints.manifest import CheckpointError
from medmo_recipes.training.checkpoints.shard_reader import read_model
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loop import run_folder as run_folder_module
from medmo_recipes.training.loop.run import Run, open_run
from medmo_recipes.training.loop.run_folder import claimed
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.trainable import make_trainable
from medmo_recipes.training.monitoring.log import read_metrics
from medmo_recipes.training.monitoring.spikes import NonFiniteLoss

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def config(tmp_path: Path, **train: object) -> RunConfig:
    """debug_align, six steps that save every second one, in its own folder."""
    defaults = {"steps": 6, "save_every": 2, "out_dir": str(tmp_path / "run"), "keep_checkpoints": 0}
    return CONFIGS["debug_align"]().change(train={**defaults, **train})


@contextmanager
def opened(config: RunConfig) -> Iterator[Run]:
    with claimed(config.train, ALONE):
        kit = load_kit(config, "cpu")
        make_trainable(kit.model, config.model.trainable)
        with open_run(config, ALONE, kit) as run:
            yield run


def advance(run: Run, until: int, val_losses: Mapping[int, float] | None = None) -> bool:
    """Take made-up steps up to `until` finished ones; returns whether the run was not asked to stop."""
    for step in range(run.start_step, until):
        for index, parameter in enumerate(run.optimizer.named.values()):
            parameter.grad = torch.full_like(parameter, 1e-3 * (1 + step + index))
        run.optimizer.step(step)
        if val_losses and step + 1 in val_losses:
            run.note_validation(step, val_losses[step + 1])
        if run.close_step(step, shared={"loader": {"next": step + 1}}):
            return False
    return True


def steps(config: RunConfig) -> list[int]:
    folder = Path(config.train.out_dir) / "checkpoints"
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.kit.model.named_parameters()}


def test_a_run_continues_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = config(tmp_path, out_dir=str(tmp_path / "whole"))
    with opened(whole) as run:
        assert (run.start_step, run.shared) == (0, {})
        advance(run, 6)
        wanted = weights(run)
    first = config(tmp_path)
    with opened(first) as run:
        run.skipped.add(3, [])
        advance(run, 4)
    with opened(first.change(train={"resume": True, "save_every": 3})) as run:
        assert (run.start_step, run.shared, run.skipped.drawn) == (4, {"loader": {"next": 4}}, 3)
        advance(run, 6)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(run).items())
    assert "resumed after step 4; changed since: train.save_every: 2 -> 3" in capsys.readouterr().err
    assert steps(whole) == steps(first) == [2, 4, 6]


@pytest.mark.parametrize("async_save", [True, False])
def test_a_new_best_is_saved_at_its_step_and_stays(tmp_path: Path, async_save: bool) -> None:
    run_config = config(tmp_path, steps=9, save_every=4, keep_checkpoints=1, async_save=async_save)
    with opened(run_config) as run:
        advance(run, 7, {1: float("nan"), 3: 2.0, 5: 1.0, 6: 1.5})
        run.checkpoints.wait()
        assert steps(run_config) == [5]  # the newest and the best at once
        advance(run, 8)
    assert steps(run_config) == [5, 8]
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == {"step": 5, "val_loss": 1.0}
    with opened(run_config.change(train={"resume": True})) as run:
        assert run.checkpoints.best == Best(5, 1.0)
        advance(run, 9, {9: 1.25})
    assert steps(run_config) == [5, 9]


@pytest.mark.parametrize("async_save", [True, False])
def test_models_are_exported_on_the_way(tmp_path: Path, async_save: bool) -> None:
    run_config = config(tmp_path, export_every=2, async_save=async_save)
    with opened(run_config) as run:
        advance(run, 6)
        run.finish()
    exports = Path(run_config.train.out_dir) / "exports"
    assert sorted(path.name for path in exports.iterdir()) == ["step-000002", "step-000004", "step-000006"]
    for step in (2, 4):  # as the weights were then, though training went on
        exported = load_file(exports / f"step-{step:06d}" / "model.safetensors")
        saved = read_model(Path(run_config.train.out_dir) / "checkpoints" / f"step-{step:06d}")
        assert exported.keys() <= saved.keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in exported.items())
    last, final = exports / "step-000006", Path(run_config.train.out_dir) / "final"
    assert {path.name for path in last.iterdir()} == {path.name for path in final.iterdir()}
    for path in final.iterdir():
        assert path.read_bytes() == (last / path.name).read_bytes(), path.name
    assert MedMO.from_pretrained(last).config.to_dict() == run.kit.model.config.to_dict()


@pytest.mark.parametrize("what", ["save", "export"])
def test_what_cannot_be_written_stops_the_run_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full_disk(*args: object) -> None:
        raise OSError("No space left on device")

    if what == "save":
        monkeypatch.setattr(shard_writer, "write_shards", full_disk)
    else:
        monkeypatch.setattr("medmo_recipes.training.loop.run.write_official", full_disk)
    with (
        pytest.raises((CheckpointError, OSError), match="No space left"),
        opened(config(tmp_path, steps=100, save_every=2, export_every=2)) as run,
    ):
        advance(run, 2)
        while not (run.checkpoints.background.failed or run.exports.failed):
            pass
        run.start_step = 2
        advance(run, 3)
        pytest.fail("the failure was not raised")
    assert steps(config(tmp_path)) == ([] if what == "save" else [2])


def test_an_error_in_the_loop_lets_the_save_under_way_finish(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), opened(config(tmp_path)) as run:
        advance(run, 2)
        raise RuntimeError("broken")
    assert steps(config(tmp_path)) == [2]
    with opened(config(tmp_path, resume=True)) as run:
        assert run.start_step == 2


def test_sigterm_saves_and_stops(tmp_path: Path) -> None:
    run_config = config(tmp_path, save_every=100)
    with opened(run_config) as run:
        assert advance(run, 2)
        os.kill(os.getpid(), signal.SIGTERM)
        run.start_step = 2
        assert not advance(run, 6)
        assert steps(run_config) == [3]  # on the disk before the process ends
    with opened(run_config.change(train={"resume": True})) as run:
        assert run.start_step == 3


def test_damaged_checkpoints_are_passed_over_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_config = config(tmp_path)
    with opened(run_config) as run:
        advance(run, 4)
    (Path(run_config.train.out_dir) / "checkpoints" / "step-000004" / "state.json").unlink()
    with opened(run_config.change(train={"resume": True})) as run:
        assert run.start_step == 2
    assert "passed over step-000004: state.json is missing" in capsys.readouterr().err
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["passed_over"] for e in events if e.get("event") == "resumed"] == [["step-000004: state.json is missing"]]


def test_only_a_restart_of_the_same_launch_needs_no_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = config(tmp_path, save_every=4)
    with opened(first) as run:
        advance(run, 1)  # dies before its first checkpoint
    with pytest.raises(ConfigError, match="already holds a run"), opened(first):
        pass
    with opened(first.change(train={"resume": True})) as run:
        assert run.start_step == 0
    assert "holds no checkpoint yet: the run begins again" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with opened(first) as run:
        assert run.start_step == 0
        advance(run, 4)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    with opened(first) as run:
        assert run.start_step == 4
    with monkeypatch.context() as elsewhere:  # another torchrun, whose first attempt was refused
        elsewhere.setattr(run_folder_module, "launcher", lambda: "another")
        with pytest.raises(ConfigError, match="already holds a run"), opened(first):
            pass
    (tmp_path / "run" / run_folder_module.MARKER).unlink()
    with pytest.raises(ConfigError, match="already holds a run"), opened(first):
        pass


def test_the_launcher_is_told_from_others() -> None:
    name = run_folder_module.launcher()
    assert name == run_folder_module.launcher()
    read, report = os.pipe()
    child = os.fork()
    if child == 0:  # this process is now the launcher of that one
        os.write(report, run_folder_module.launcher().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1000).decode() != name


def test_a_cut_last_line_is_taken_off_and_the_run_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As kill -9 or a power cut leaves it; without the repair the next line would be glued to it."""
    run_config = config(tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    with opened(run_config) as run:
        advance(run, 2)
        run.log.metrics(1, {"loss": 2.0})
    whole = metrics.read_bytes()
    for cut in (b'{"step": 2, "lo', b"\x00" * 40):
        metrics.write_bytes(whole + cut)
        with opened(run_config.change(train={"resume": True})) as run:
            assert metrics.read_bytes().startswith(whole) and cut not in metrics.read_bytes()
            run.log.metrics(2, {"loss": 1.0})
            run.finish()
        assert f"the last line was cut short ({len(cut)} bytes" in capsys.readouterr().err
    assert [line["loss"] for line in read_metrics(metrics)[0]] == [2.0, 1.0]
    metrics.write_bytes(b'{"step": 1, "lo{"step": 2}\n' + whole)
    with (
        pytest.raises(InputError, match=r"metrics\.jsonl:1: no line of metrics"),
        opened(run_config.change(train={"resume": True})),
    ):
        pass  # before any step, not at the end of all


def test_weights_that_the_last_step_broke_are_no_finished_run(tmp_path: Path) -> None:
    """No loss has seen them: the last update is the one that no later step judges."""
    with opened(config(tmp_path)) as run:
        name, parameter = list(run.optimizer.named.items())[1]
        with torch.no_grad():
            parameter.view(-1)[-1] = float("inf")
        with pytest.raises(NonFiniteLoss, match=f"1 weights are not finite, as {name}; no final/ is written"):
            run.finish()
    assert not (tmp_path / "run" / "final").exists()
