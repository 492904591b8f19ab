"""One run's standing equipment: folder, optimiser, log, checkpoints, and where to continue.

`open_run` is the same for all stages; each stage adds its own loop. Nothing here knows a loss.
"""

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch.distributed.tensor import DTensor

from medmo_core.models.save import save_checkpoint

from .build import Kit, name_factor
from .checkpoint import CheckpointError, Checkpoints
from .command_line import format_value, setting_types
from .config import ConfigError, RunConfig
from .data import SkippedSamples
from .distributed import World, shard_model, whole_tensors
from .inference import write_pixel_limits
from .log import RunLog
from .optim import Optimizer

STOPPED = 143  # exit status of a run that was asked to end: what the shell reports for SIGTERM
FREE_TO_CHANGE = ("train.resume", "train.out_dir", "train.num_threads", "train.device", "train.log_every")


class StopSignal:
    """Remember that the machine asked the run to end (SIGTERM, or Ctrl-C once), so that a step can finish."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread: whoever owns that one decides
                break
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


@dataclass
class Run:
    """What a training loop needs beside its model and its loss."""

    config: RunConfig
    world: World
    kit: Kit
    optimizer: Optimizer
    log: RunLog
    checkpoints: Checkpoints
    skipped: SkippedSamples
    stop: StopSignal
    start_step: int = 0
    """Finished steps when the run was opened."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The stage's own values from the checkpoint, for this process."""

    def save(self, step: int, extra: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint of `step` finished steps; every process calls this."""
        values = {**(extra or {}), "skipped": self.skipped.state()}
        return self.checkpoints.save(step, self.config, self.kit.model, self.optimizer, values)

    def close_step(self, step: int) -> bool:
        """Save if it is time after `step` (0-based); every process calls this.

        Returns:
            Whether the run was asked to stop before its last step; it is saved then.
        """
        train = self.config.train
        last = step + 1 == train.steps
        stop = bool(self.world.sum(torch.tensor([int(self.stop.received)])).item())
        if stop or last or (step + 1) % train.save_every == 0:
            folder = self.save(step + 1)
            if stop and not last:
                self.log.event("stopped", step=step + 1)
                self.log.say(f"asked to stop: step {step + 1} is saved in {folder}; train.resume=true continues")
                return True
        return False

    def finish(self) -> Path:
        """Write final/ in the official layout and say what was left out; every process calls this."""
        folder = write_final(Path(self.config.train.out_dir) / "final", self.kit, self.world)
        for rank, summary in enumerate(self.world.gather(self.skipped.summary())):
            self.log.say(summary if self.world.size == 1 else f"process {rank}: {summary}")
        self.log.event("finished", skipped=dict(self.skipped.kinds), drawn=self.skipped.drawn)
        self.log.say(f"final checkpoint: {folder}")
        return folder


def say(world: World, text: str) -> None:
    """Print a line on the main process before there is a log."""
    if world.is_main:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def open_run(config: RunConfig, world: World, kit: Kit) -> Iterator[Run]:
    """Claim the run's folder, shard if asked, make the optimiser, and resume if asked.

    What trains must have been chosen before (`build.choose_trainable`).

    Raises:
        ConfigError: the folder already holds a run and train.resume is off, or there is nothing to resume.
    """
    out_dir = Path(config.train.out_dir)
    checkpoints = Checkpoints(out_dir, world, keep=config.train.keep_checkpoints)
    newest = _claim(config, out_dir, checkpoints)
    factors = name_factor(kit.model, config.optim.lr_scale, "optim.lr_scale")
    if config.parallel.shard:
        shard_model(kit.model, world)
    optimizer = Optimizer(kit.model, config.optim, config.train.steps * updates_per_step(config), factors)
    world.barrier()  # every process has looked at the folder before one writes into it
    skipped = SkippedSamples(out_dir, rank=world.rank, max_ratio=config.data.max_bad_ratio)
    with RunLog(out_dir, world, steps=config.train.steps, title=config.name) as log, StopSignal() as stop:
        run = Run(config, world, kit, optimizer, log, checkpoints, skipped, stop)
        if newest is not None:
            resumed = checkpoints.load(newest, kit.model, optimizer)
            run.start_step, run.extra = resumed.step, resumed.extra
            if "skipped" in resumed.extra:
                skipped.restore(resumed.extra["skipped"])
            changed = _changes(config, newest)
            note = f"; changed since: {', '.join(changed)}" if changed else ""
            log.say(f"resumed after step {resumed.step}{note}")
            log.event("resumed", step=resumed.step, changed=changed)
        if world.is_main:
            text = json.dumps(config.to_dict(), indent=2) + "\n"
            (out_dir / "config.json").write_text(text, encoding="utf-8")
        yield run


def updates_per_step(config: RunConfig) -> int:
    """Return how often the optimiser moves per step: once, or rollout.num_updates times in reinforce."""
    return config.rollout.num_updates if config.stage == "reinforce" else 1


def _claim(config: RunConfig, out_dir: Path, checkpoints: Checkpoints) -> Path | None:
    """Return the checkpoint to continue from; refuse to write into somebody's finished or running work."""
    newest = checkpoints.newest()
    if config.train.resume:
        if newest is None and (out_dir / "metrics.jsonl").exists():
            raise ConfigError(f"train.resume=true: {out_dir} holds no checkpoint; start anew in another train.out_dir")
        return newest
    if newest is not None or (out_dir / "metrics.jsonl").exists():
        raise ConfigError(
            f"train.out_dir: {out_dir} already holds a run; train.resume=true continues it, "
            "another train.out_dir starts a new one"
        )
    return None


def _changes(config: RunConfig, checkpoint: Path) -> list[str]:
    """List the settings that differ from the checkpoint's, as "key: before -> now"."""
    try:
        stored = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["config"]
        before = RunConfig.from_dict(stored)
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{checkpoint}: its config is of another version ({error})") from error
    changed = []
    for key in setting_types():
        section, name = key.split(".")
        old, new = (getattr(getattr(c, section), name) for c in (before, config))
        if old != new and key not in FREE_TO_CHANGE:
            changed.append(f"{key}: {format_value(old)} -> {format_value(new)}")
    return changed


def write_final(folder: Path, kit: Kit, world: World) -> Path:
    """Write a model in the official layout, whole, with tokenizer and profile; every process calls this.

    Args:
        folder: made, or replaced at the very end.
        kit: model, tokenizer and profile.
        world: the main process writes.

    Returns:
        The folder.
    """
    model = kit.model
    if any(isinstance(p, DTensor) for p in model.parameters()):
        tensors = whole_tensors(model, world)
        if world.is_main:
            config = model.config.to_dict()
            save_checkpoint(folder, tensors, config=config, tokenizer=kit.tokenizer, profile=kit.profile)
    elif world.is_main:
        model.save_pretrained(folder, tokenizer=kit.tokenizer, profile=kit.profile)
    if world.is_main:
        write_pixel_limits(folder, kit.processor.min_pixels, kit.processor.max_pixels)
    world.barrier()
    return folder
