"""What fails on one process ends all of them within the timeout, and each names the cause.

An exception, an image that is missing, another number of batches, a process that hangs.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medmo_recipes.training.distributed import world as distributed
from medmo_recipes.training.distributed.world import connect, World

TIMEOUT_S = 100.0
Outcome = tuple[str, str]
"""Kind of the error that a process ended with, and what it says."""


def end_of(task: Callable[[World], None], timeout_s: float = TIMEOUT_S) -> Outcome:
    """Do a task among processes and return how this one ended; called in every process."""
    started = time.monotonic()
    try:
        with connect("cpu", shard=True, timeout_s=timeout_s) as world:
            task(world)
    except Exception as error:
        assert time.monotonic() - started < TIMEOUT_S, "waited for what cannot come"
        return type(error).__name__, str(error)
    return "nothing", ""


def check(outcomes: list[Outcome], failed: int, kind: str, cause: str) -> None:
    """The process that failed says so itself; the other names it and the cause."""
    own, other = outcomes[failed], outcomes[1 - failed]
    assert own[0] == kind and cause in own[1]
    assert other[0] == "ProcessFailed"
    assert f"process {failed}: {kind}: " in other[1] and cause in other[1]


@pytest.mark.parametrize("failed", [0, 1])
def test_an_exception_where_all_wait_for_one_another(run_processes: Callable[..., Any], failed: int) -> None:
    """`World.together`: the others learn of it at once, and nobody goes on."""

    def task(world: World) -> None:
        with world.together("making the batch"):
            if world.rank == failed:
                raise OSError("scan-7.png: truncated")
        raise AssertionError("went on")

    outcomes = run_processes(lambda: end_of(task))
    check(outcomes, failed, "OSError", "scan-7.png: truncated")
    assert "making the batch failed on another process" in outcomes[1 - failed][1]


def test_an_exit_of_one_process_ends_all(run_processes: Callable[..., Any]) -> None:
    def task(world: World) -> None:
        with world.together("rewarding"):
            if world.rank == 1:
                raise SystemExit(0)

    def end() -> Outcome:
        try:
            return end_of(task)
        except SystemExit:
            return "SystemExit", ""

    other, own = run_processes(end)
    assert own[0] == "SystemExit"
    assert other == ("ProcessFailed", "rewarding failed on another process; process 1: SystemExit: 0")


def test_success_goes_on(run_processes: Callable[..., Any]) -> None:
    def task(world: World) -> None:
        with world.together("making the batch"):
            pass
        world.agree("batches", 3)

    assert run_processes(lambda: end_of(task)) == [("nothing", "")] * 2


def missing_image(training: Any) -> Callable[[World], None]:
    """A sharded step in which one process's text shows an image that the batch lacks."""

    def task(world: World) -> None:
        model = training.lay(world, training.model())
        batch = training.batches()["image"]
        if world.rank == 1:
            batch = replace(batch, patches={}, image_grid_thw={})
        training.step(world, model, training.optimizer(model), [batch], 0)

    return task


def test_a_missing_image(training: Any, run_processes: Callable[..., Any]) -> None:
    """In the middle of the exchanges of a step."""
    outcomes = run_processes(lambda: end_of(missing_image(training)))
    check(outcomes, 1, "ValueError", "the text holds 10 image placeholder tokens, the images make 0 visual tokens")


def test_another_number_of_batches(run_processes: Callable[..., Any]) -> None:
    def task(world: World) -> None:
        world.agree("batches of step 3", 2 + world.rank)

    for kind, message in run_processes(lambda: end_of(task)):
        assert kind == "ProcessFailed"
        assert message.startswith("batches of step 3: process 0 has 2, process 1 has 3; ")


def test_a_process_that_hangs(tmp_path: Path, run_processes: Callable[..., Any]) -> None:
    """Nobody can name a cause then, but nobody waits for ever."""
    given_up = tmp_path / "given up"

    def task(world: World) -> None:
        while world.rank == 1 and not given_up.exists():
            time.sleep(0.05)
        if world.rank == 0:
            world.barrier()

    def end() -> Outcome:
        outcome = end_of(task, timeout_s=4)
        given_up.touch()
        return outcome

    outcomes = run_processes(end)
    assert outcomes[0][0] == "RuntimeError" and "Timed out" in outcomes[0][1]


def test_a_process_that_leaves_no_word_is_noticed(
    training: Any, run_processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the word in the store the other only knows that a connection was lost."""
    monkeypatch.setattr(distributed, "_first_failure", lambda store, rank, error: None)
    outcomes = run_processes(lambda: end_of(missing_image(training)))
    with pytest.raises(AssertionError):
        check(outcomes, 1, "ValueError", "the text holds 10 image placeholder tokens")
