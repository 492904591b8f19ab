"""Claim of a run's output folder: begin in an empty one, continue our own, refuse that of another run.

torchrun --max-restarts runs the same command again after a process has died. The folder then holds what the attempt
before has written, which is this launch's own work: it is continued without train.resume, from the newest checkpoint
or, where there is none yet, from the beginning. Whose work it is stands in .launch.json.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medmo_core.durable import sweep, write_json

from ...settings.run_config import ConfigError, Train
from ..checkpoints.checkpoints import list_checkpoints
from ..distributed.torchrun import attempt
from ..distributed.world import World, say
from .run_lock import locked

MARKER = ".launch.json"


@contextmanager
def claimed(train: Train, world: World) -> Iterator[None]:
    """Hold the run's folder for this launch alone; every process calls this before anything is read or written.

    Raises:
        ConfigError: another run is going on there, the folder already holds a run and train.resume is off, or it cannot
            be written.
    """
    out_dir = Path(train.out_dir)
    with ExitStack() as stack:
        launchers = world.gather(launcher())
        with world.together("claiming the run's folder"):
            if world.is_main:
                stack.enter_context(locked(out_dir))
                _claim(out_dir, train, world, launchers)
        yield


def _claim(out_dir: Path, train: Train, world: World, launchers: list[str]) -> None:
    """Check whose work a locked folder holds, and tidy up what was interrupted."""
    has_checkpoint = bool(list_checkpoints(out_dir / "checkpoints"))
    begun = has_checkpoint or (out_dir / "metrics.jsonl").exists()
    if begun and not (train.resume or (attempt() > 0 and _is_ours(out_dir, launchers))):
        raise ConfigError(
            f"train.out_dir: {out_dir} already holds a run; train.resume=true continues it, "
            "another train.out_dir starts a new one"
        )
    if begun and not has_checkpoint:
        say(world, f"{out_dir} holds no checkpoint yet: the run begins again")
    sweep(out_dir / "checkpoints")


def mark(out_dir: Path, world: World) -> None:
    """Write down whose work the folder holds from now on; every process calls this."""
    launchers = world.gather(launcher())
    if world.is_main:
        write_json(out_dir / MARKER, {"launchers": launchers})


def launcher() -> str:
    """Name the process that started this one, which outlives a restart by torchrun: host, number, time of start."""
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    # Numbers are given again to later processes; the time it was started at (field 22) tells them apart.
    begun = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19] if stat.exists() else ""
    return f"{socket.gethostname()} {parent} {begun}"


def _is_ours(out_dir: Path, launchers: list[str]) -> bool:
    """Whether one of the launchers had this folder in an attempt before (nodes may come and go in between)."""
    try:
        before = json.loads((out_dir / MARKER).read_text(encoding="utf-8"))["launchers"]
    except FileNotFoundError:
        return False
    return not set(before).isdisjoint(launchers)
