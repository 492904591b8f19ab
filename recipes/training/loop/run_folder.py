"""Claim of a run's output folder: begin in an empty one, continue our own, refuse that of another run.

torchrun --max-restarts runs the same command again after a process has died. The folder then holds what the attempt
before has written, which is this launch's own work: it is continued without train.resume, from the newest checkpoint
or, where there is none yet, from the beginning. Whose work it is stands in .launch.json.
"""

import json
import os
import socket
from pathlib import Path

from medmo_core.durable import write_json

from ...settings.run_config import ConfigError, Train
from ..checkpoints.checkpoints import Checkpoints
from ..distributed.torchrun import attempt
from ..distributed.world import World, say

MARKER = ".launch.json"


def claim(train: Train, world: World, checkpoints: Checkpoints) -> bool:
    """Make the run's folder this launch's; every process calls this before anything is written.

    Returns:
        Whether there is a checkpoint to continue from.

    Raises:
        ConfigError: the folder already holds a run and train.resume is off.
    """
    out_dir = Path(train.out_dir)
    launchers = world.gather(launcher())
    has_checkpoint = checkpoints.newest() is not None
    begun = has_checkpoint or (out_dir / "metrics.jsonl").exists()
    seen = (has_checkpoint, begun, attempt() > 0 and _is_ours(out_dir, launchers))
    has_checkpoint, begun, is_ours = world.gather(seen)[0]  # what the main process sees counts for all
    if begun and not (is_ours or train.resume):
        raise ConfigError(
            f"train.out_dir: {out_dir} already holds a run; train.resume=true continues it, "
            "another train.out_dir starts a new one"
        )
    if begun and not has_checkpoint:
        say(world, f"{out_dir} holds no checkpoint yet: the run begins again")
    if world.is_main:
        out_dir.mkdir(parents=True, exist_ok=True)
        checkpoints.sweep()
        write_json(out_dir / MARKER, {"launchers": launchers})
    return has_checkpoint


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
