"""One policy for both entrances: what a user can fix is one line and status 2, the rest keeps its traceback."""

import errno
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from medmo_core.errors import UserError
from medmo_recipes import cli
from medmo_recipes.reinforcement.reward_calls.reward_call import RewardError
from medmo_recipes.settings.section import ConfigError
from medmo_recipes.training.checkpoints.manifest import CheckpointError
from medmo_recipes.training.distributed.world import ProcessFailed
from medmo_recipes.training.loading.skipped import BadData
from medmo_recipes.training.loop.launch import launch
from medmo_recipes.training.monitoring.spikes import LossSpike, NonFiniteLoss

Enter = Callable[[Exception], int]
OWN = (ConfigError, CheckpointError, BadData, NonFiniteLoss, LossSpike, RewardError, ProcessFailed)


def enter_stage(error: Exception) -> int:
    """Launch a stage whose run raises."""

    def run(config: object) -> bool:
        raise error

    return launch(["--config", "debug_align"], stage="align", run=run, about=None)


@pytest.fixture(params=["stage", "command"])
def enter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Enter:
    if request.param == "stage":
        return enter_stage

    def enter_command(error: Exception) -> int:
        def main(argv: Sequence[str]) -> int:
            raise error

        monkeypatch.setitem(sys.modules, "medmo_recipes.commands.validate", SimpleNamespace(main=main))
        return cli.main(["validate", "my.jsonl"])

    return enter_command


@pytest.mark.parametrize("kind", [*OWN, FileNotFoundError, ImportError])
def test_what_a_user_can_fix_is_one_line(
    enter: Enter, kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    assert enter(kind("train.steps: expected 1 or more")) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "train.steps: expected 1 or more" in shown


def test_a_full_disk_is_one_line_that_cannot_move_the_cursor(enter: Enter, capsys: pytest.CaptureFixture[str]) -> None:
    assert enter(OSError(errno.ENOSPC, "No space left on device", "runs/\x1b[2J")) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "runs/\\x1b[2J: No space left on device" in shown


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
def test_a_fault_of_the_program_keeps_its_traceback(enter: Enter, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        enter(kind("a bug"))


@pytest.mark.parametrize("kind", OWN)
def test_every_error_of_a_run_has_the_one_base(kind: type[Exception]) -> None:
    assert issubclass(kind, UserError)


def test_process_failures_stay_runtime_errors() -> None:
    assert issubclass(ProcessFailed, RuntimeError) and not issubclass(ProcessFailed, ValueError)


@pytest.mark.parametrize("code", [0, None, "bye"])
def test_an_exit_inside_a_run_is_no_success(code: object) -> None:
    """A reward or a library that calls sys.exit would else end the run early with a status of its choice."""

    def run(config: object) -> bool:
        sys.exit(code)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match=r"called sys\.exit\(.*\): it has not reached its end"):
        launch(["--config", "debug_align"], stage="align", run=run, about=None)
