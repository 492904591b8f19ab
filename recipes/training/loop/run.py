"""One run's standing equipment: folder, optimiser, log, checkpoints, and where to continue.

`open_run` is the same for all stages; each stage adds its own loop. Nothing here knows a loss.
"""

import json
import math
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

from medmo_core.durable import write_text
from medmo_core.inference.kit import Kit
from medmo_core.models.config import PRESETS

from ...settings.command_line import format_value, setting_types
from ...settings.run_config import ConfigError, RunConfig
from ..checkpoints.background import Background
from ..checkpoints.checkpoints import Best, CheckpointError, Checkpoints, Resumed
from ..checkpoints.official import official_tensors, write_final, write_official
from ..distributed.sharding import prepare
from ..distributed.shards import local_part, reshard
from ..distributed.torchrun import attempt
from ..distributed.world import World
from ..loading.skipped import LISTED, SkippedSamples
from ..model.lora import has_adapters
from ..model.parts import name_factor
from ..monitoring.log import RunLog
from ..monitoring.spikes import LossSpike, NonFiniteLoss
from ..optim.optimizer import Optimizer
from .run_folder import mark

STOPPED = 143  # exit status of a run that was asked to end: what the shell reports for SIGTERM
FREE_TO_CHANGE = ("train.resume", "train.out_dir", "train.num_threads", "train.device", "train.log_every")


class StopSignal:
    """Memory of a request to end (SIGTERM, or Ctrl-C once), so that a step can finish first."""

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
    """Equipment of a training loop beside its model and its loss."""

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
    shared: dict[str, Any] = field(default_factory=dict)
    """Values given to `close_step` at the step the run continues from; empty in a new run."""
    exports: Background = field(default_factory=Background)
    """Thread that writes models on the way."""
    _found_best: bool = False

    def note_validation(self, step: int, val_loss: float) -> None:
        """Note the held-out loss after a step, before `close_step` saves a new best.

        Args:
            step: 0-based number of the step.
            val_loss: mean over all processes.
        """
        best = self.checkpoints.best
        if math.isfinite(val_loss) and (best is None or val_loss < best.val_loss):
            self.checkpoints.best = Best(step + 1, val_loss)
            self._found_best = True

    def save(self, step: int, shared: Mapping[str, Any] | None = None) -> Path:
        """Begin to write a checkpoint of `step` finished steps; every process calls this.

        Args:
            step: finished steps.
            shared: JSON values, the same on all processes.

        Returns:
            The folder, which appears when all is written.
        """
        model, own = self.kit.model, {"skipped": self.skipped.state()}
        return self.checkpoints.save(step, self.config, model, self.optimizer, shared=shared, own=own)

    def not_finite(self, step: int, quantity: str, suspects: Sequence[str]) -> NonFiniteLoss:
        """Record and return why a step cannot be taken; every process calls this.

        Args:
            step: 0-based number of the step.
            quantity: clause that says what is NaN or infinite, for the message, such as "the loss is nan".
            suspects: samples of this process that may be to blame.
        """
        return NonFiniteLoss(self._refused("not_finite", step, quantity, suspects))

    def spike(self, step: int, loss: float, limit: float, suspects: Sequence[str]) -> LossSpike:
        """Record and return why a step is not taken; every process calls this.

        Args:
            step: 0-based number of the step.
            loss: loss of the step.
            limit: highest loss that is no spike, which this one exceeds.
            suspects: samples of this process whose own loss exceeds the limit too.
        """
        ratio = self.config.train.spike_ratio
        reason = f"the loss is {loss:.4g}, {ratio * loss / limit:.3g} times the median of the last steps"
        way_out = f"fix or remove them, or set train.spike_ratio={ratio:g} higher (0: never stop)"
        return LossSpike(f"{self._refused('spike', step, reason, suspects)}; {way_out}")

    def _refused(self, event: str, step: int, reason: str, suspects: Sequence[str]) -> str:
        names = [name for names in self.world.gather(list(suspects)) for name in names]
        self.log.event(event, step=step + 1, samples=names)
        self.wait()  # a checkpoint that is still being written counts
        newest = self.checkpoints.newest()
        kept = f"the newest checkpoint is {newest}" if newest is not None else "there is no checkpoint yet"
        return f"step {step + 1}: {reason}, with samples {', '.join(names)}. No weight was changed; {kept}"

    def close_step(self, step: int, shared: Mapping[str, Any] | None = None) -> bool:
        """Save and export if it is time after `step` (0-based); every process calls this.

        Args:
            step: 0-based number of the step.
            shared: JSON values to find in `Run.shared` on resume, the same on all processes.

        Returns:
            Whether the run was asked to stop before its last step; it is saved then.

        Raises:
            CheckpointError: a checkpoint that was being written could not be (an export: its own error).
        """
        train, done = self.config.train, step + 1
        last = done == train.steps
        failed = self.checkpoints.background.failed or self.exports.failed
        signs = torch.tensor([self.stop.received, failed, self._found_best], dtype=torch.int64)
        stop, failed, best = (bool(sign) for sign in self.world.sum(signs).tolist())  # all do the same, or none
        if failed:
            with self.world.together("writing a checkpoint or an export"):
                self.wait()
        if stop or last or best or done % train.save_every == 0:
            self._found_best = False
            folder = self.save(done, shared)
            if stop or last:
                self.checkpoints.wait()
            if stop and not last:
                self.log.event("stopped", step=done)
                self.log.say(f"asked to stop: step {done} is saved in {folder}; train.resume=true continues")
                return True
        if train.export_every and done % train.export_every == 0:
            self._export(Path(train.out_dir) / "exports" / f"step-{done:06d}")
        return False

    def _export(self, folder: Path) -> None:
        """Write the model as it is now in the official layout; every process calls this."""
        tensors = official_tensors(self.kit, self.world)
        if not self.world.is_main:
            return
        if self.config.train.async_save:
            if self.world.device.type == "cpu":  # elsewhere the host has its own copy already
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            self.exports.start(lambda: write_official(folder, tensors, self.kit))
        else:
            write_official(folder, tensors, self.kit)

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
            CheckpointError: it could not be.
        """
        self.checkpoints.wait()
        self.exports.wait()

    def close(self) -> None:
        """Wait like `wait`, and end the threads that write.

        Raises:
            CheckpointError: it could not be.
        """
        try:
            self.checkpoints.background.close()
        finally:
            self.exports.close()

    def finish(self) -> Path:
        """Write final/ in the official layout and say what was left out; every process calls this.

        Raises:
            NonFiniteLoss: a weight is no finite number: the last step's update has not been through a loss.
        """
        self.wait()
        self._check_weights()
        final = Path(self.config.train.out_dir) / "final"
        folder = write_final(final, self.kit, self.world, init=self.config.model.init)
        for rank, summary in enumerate(self.world.gather(self.skipped.summary())):
            self.log.say(summary if self.world.size == 1 else f"process {rank}: {summary}")
        self.log.event("finished", skipped=dict(self.skipped.kinds), drawn=self.skipped.drawn)
        if has_adapters(self.kit.model) and self.config.model.init in PRESETS:
            self.log.say(
                f"{folder.with_name('adapter')} names no base model: the random weights of the preset "
                f"{self.config.model.init} are kept nowhere, so that peft cannot use it elsewhere; {folder} holds "
                "the weights with the adapters added in. model.init=FOLDER makes an adapter that others can load"
            )
        self.log.say(f"final checkpoint: {folder}")
        return folder


    def _check_weights(self) -> None:
        reshard(self.kit.model)
        own = [n for n, p in self.kit.model.named_parameters() if not local_part(p.detach()).isfinite().all()]
        broken = sorted({name for names in self.world.gather(own) for name in names})
        if broken:
            raise NonFiniteLoss(
                f"after the last step {len(broken)} weights are not finite, as {broken[0]}; no final/ is written: "
                "lower optim.lr, and begin again or at an earlier checkpoint"
            )


@contextmanager
def open_run(config: RunConfig, world: World, kit: Kit) -> Iterator[Run]:
    """Shard if asked, make the optimiser, and continue from the newest checkpoint where the folder has one.

    The folder must have been claimed before (`claimed`), and what trains chosen (`choose_trainable`).

    Raises:
        CheckpointError: no checkpoint of it can be resumed.
    """
    train = config.train
    out_dir = Path(train.out_dir)
    checkpoints = Checkpoints(
        out_dir,
        world,
        keep=train.keep_checkpoints,
        keep_every=train.keep_every,
        in_background=train.async_save,
        timeout_s=config.parallel.timeout_s,
    )
    continues = world.gather(checkpoints.newest() is not None)[0]  # what the main process sees counts for all
    mark(out_dir, world)
    optim = config.optim
    lr_scale = name_factor(kit.model, optim.lr_scale, "optim.lr_scale")
    decay_scale = name_factor(kit.model, optim.weight_decay_scale, "optim.weight_decay_scale")
    prepare(kit.model, config, world)
    num_updates = train.steps * updates_per_step(config)
    optimizer = Optimizer(kit.model, optim, num_updates, lr_scale, decay_scale, seed=train.seed)
    skipped = SkippedSamples(
        out_dir, rank=world.rank, max_ratio=config.data.max_bad_ratio, stop=config.data.on_bad_sample == "stop"
    )
    with RunLog(out_dir, world, steps=train.steps, title=config.name) as log, StopSignal() as stop:
        run = Run(config, world, kit, optimizer, log, checkpoints, skipped, stop)
        if continues:
            resumed, passed_over = checkpoints.load_newest(kit.model, optimizer)
            _take_over(run, resumed)
            for note in passed_over:
                log.say(f"passed over {note}")
            changed = _changes(config, resumed)
            note = f"; changed since: {', '.join(changed)}" if changed else ""
            log.say(f"resumed after step {resumed.step}{note}")
            log.event("resumed", step=resumed.step, changed=changed, passed_over=passed_over, restart=attempt())
        if world.is_main:
            write_text(out_dir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        try:
            yield run
        except BaseException:
            try:
                run.close()
            except Exception as error:  # noqa: BLE001 - the first error is the one to end with
                log.say(str(error))
            raise
        run.close()


def updates_per_step(config: RunConfig) -> int:
    """Return how often the optimiser moves per step: once, or grpo.num_updates times in reinforce."""
    return config.grpo.num_updates if config.stage == "reinforce" else 1


def _take_over(run: Run, resumed: Resumed) -> None:
    """Let a run stand where the one that wrote a checkpoint stood."""
    run.start_step, run.shared = resumed.step, resumed.shared
    counts = [own["skipped"] for own in resumed.own]
    if counts:  # of this process, and of those that are no more
        kinds: Counter[str] = sum((Counter(count["kinds"]) for count in counts), Counter())
        examples = [fault for count in counts for fault in count["examples"]]
        drawn = sum(count["drawn"] for count in counts)
        run.skipped.restore({"drawn": drawn, "kinds": dict(kinds), "examples": examples[:LISTED]})


def _changes(config: RunConfig, resumed: Resumed) -> list[str]:
    """List the settings that differ from the checkpoint's, as "key: before -> now"."""
    try:
        before = RunConfig.from_dict(resumed.config)
    except ConfigError as error:
        raise CheckpointError(f"step {resumed.step}: its config is of another version ({error})") from error
    changed = []
    for key in setting_types():
        section, name = key.split(".")
        old, new = (getattr(getattr(c, section), name) for c in (before, config))
        if old != new and key not in FREE_TO_CHANGE:
            changed.append(f"{key}: {format_value(old)} -> {format_value(new)}")
    return changed
