"""kill -9 at any moment loses the save under way and nothing else: what is left loads, and is a state the run had."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medmo_core.durable import sweep
from medmo_recipes.settings.run_config import Optim, RunConfig
from medmo_recipes.training.checkpoints.checkpoints import Best, Checkpoints
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.optim.optimizer import Optimizer

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
CONFIG = RunConfig(stage="align", name="test")
NUM_KILLS = 20
LINE = 18  # bytes of a report, which a pipe takes whole


class Trainee:
    """A small run: each step depends on the weights, the moments and the random generator before it."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
        self.optimizer = Optimizer(self.net, Optim(lr=1e-3, warmup_ratio=0.0, schedule="constant"), 10_000)

    def train(self, step: int) -> None:
        """Take the 1-based step `step`."""
        self.net(torch.randn(4, 128)).square().sum().backward()
        self.optimizer.step(step - 1)

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that a step depends on."""
        named = {**dict(self.net.named_parameters()), **self.optimizer.state_tensors()}
        return {**{name: t.detach().clone() for name, t in named.items()}, "generator": torch.get_rng_state()}


class Undisturbed:
    """The states of a run that nobody kills, by step."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            self._run = Trainee()
            self._states = [self._run.state()]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.set_rng_state(self._states[-1]["generator"])
            while len(self._states) <= step:
                self._run.train(len(self._states))
                self._states.append(self._run.state())
        return self._states[step]


def newest_state(out_dir: Path, undisturbed: Undisturbed) -> int:
    """Load the newest checkpoint into a run of another seed and compare it with the run that nobody kills.

    Returns:
        Its step; 0 where there is none.
    """
    store = Checkpoints(out_dir, ALONE)
    if store.newest() is None:
        return 0
    run = Trainee(seed=1)
    resumed, passed_over = store.load_newest(run.net, run.optimizer)
    assert not passed_over, passed_over  # whatever has a checkpoint's name is whole
    assert resumed.shared == {"cursor": 3 * resumed.step}
    found, wanted = run.state(), undisturbed[resumed.step]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    return resumed.step


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """Run `work` in a child process that is gone at the end of the block."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # the threads of a pool do not survive the fork
            work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield child
    finally:
        with suppress(ChildProcessError):  # the block has waited for it
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def train_for_ever(out_dir: Path, report: int) -> None:
    """Continue from the newest checkpoint, save every step, and report (step begun, step known to be saved)."""
    store = Checkpoints(out_dir, ALONE, keep=2, keep_every=50, in_background=True)
    sweep(store.folder)
    run = Trainee()
    step = store.load_newest(run.net, run.optimizer)[0].step if store.newest() else 0
    os.write(report, b"%08d %08d\n" % (step, step))
    while True:
        step += 1
        run.train(step)
        if step % 10 == 0:
            store.best = Best(step, 1.0 / step)
        os.write(report, b"%08d %08d\n" % (step, max(0, step - 2)))  # the save of step - 1 may still be under way
        store.save(step, CONFIG, run.net, run.optimizer, shared={"cursor": 3 * step})
        os.write(report, b"%08d %08d\n" % (step, step - 1))


def test_killed_twenty_times_and_never_a_lost_or_wrong_state(tmp_path: Path) -> None:
    """Each time after it has saved up to two more steps, however long that takes, and a moment more."""
    undisturbed, moments = Undisturbed(), random.Random(0)
    saved = 0
    for _ in range(NUM_KILLS):
        read, report = os.pipe()
        wanted = saved + moments.randrange(3)
        with forked(lambda report=report: train_for_ever(tmp_path, report)):
            os.close(report)  # so that the end of the process is the end of what can be read
            words = os.read(read, LINE).split()  # it has loaded
            while int(words[1]) < wanted:
                words = os.read(read, LINE).split()
            time.sleep(moments.uniform(0.0, 0.05))
        with os.fdopen(read, "rb") as lines:
            words = lines.read().split() or words
        begun, known = int(words[-2]), int(words[-1])
        before, saved = saved, newest_state(tmp_path, undisturbed)
        assert max(before, known, wanted) <= saved <= begun
    assert saved >= 5


def test_half_a_checkpoint_under_a_finished_name_is_noticed(tmp_path: Path) -> None:
    undisturbed, run = Undisturbed(), Trainee()
    store = Checkpoints(tmp_path, ALONE)
    run.train(1)
    folder = store.save(1, CONFIG, run.net, run.optimizer, shared={"cursor": 3})
    assert newest_state(tmp_path, undisturbed) == 1
    half = shutil.copytree(folder, folder.with_name("step-000002"))
    os.truncate(half / "tensors-0-0.safetensors", (half / "tensors-0-0.safetensors").stat().st_size // 2)
    with pytest.raises(AssertionError, match=r"step-000002: tensors-0-0\.safetensors has .* bytes"):
        newest_state(tmp_path, undisturbed)
    run.train(2)
    store.save(2, CONFIG, run.net, run.optimizer, shared={"cursor": 6})
    assert newest_state(tmp_path, undisturbed) == 2
    with torch.no_grad():
        next(run.net.parameters())[0, 0] += 1e-6  # whole, but not a state the run had
    store.save(3, CONFIG, run.net, run.optimizer, shared={"cursor": 9})
    with pytest.raises(AssertionError):
        newest_state(tmp_path, undisturbed)


def die_at(operation: int) -> None:
    """Let the process be killed just before its `operation`-th (from 0) change of the file system or flush."""
    count = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def one_more_step(out_dir: Path, *, die: int | None = None) -> bool:
    """Continue for one step that is the best so far, and save, in a process; returns whether it lived."""

    def work() -> None:
        store, run = Checkpoints(out_dir, ALONE, keep=1), Trainee()
        sweep(store.folder)
        step = 1 + (store.load_newest(run.net, run.optimizer)[0].step if store.newest() else 0)
        run.train(step)
        store.best = Best(step, 1.0 / step)
        if die is not None:
            die_at(die)
        store.save(step, CONFIG, run.net, run.optimizer, shared={"cursor": 3 * step})

    with forked(work) as child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_every_operation_of_a_save_may_be_the_last(tmp_path: Path) -> None:
    undisturbed = Undisturbed()
    assert one_more_step(tmp_path / "first")
    found: list[int] = []
    lived = False
    while not lived:
        out_dir = shutil.copytree(tmp_path / "first", tmp_path / str(len(found)))
        lived = one_more_step(out_dir, die=len(found))
        found.append(newest_state(out_dir, undisturbed))
        # The next attempt is none the worse for it.
        assert one_more_step(out_dir)
        assert newest_state(out_dir, undisturbed) == found[-1] + 1
        assert [path.name for path in (out_dir / "checkpoints").iterdir()] == [f"step-{found[-1] + 1:06d}"]
    assert found[0] == 1 and found[-1] == 2 and found == sorted(found)
    assert len(found) > 15  # operations that were tried
