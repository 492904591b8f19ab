"""The supervised loop of align and instruct: sum the loss, divide by all target tokens, step, log, save.

A step's loss is the mean over its target tokens on all processes. Their number is known before the first backward
pass, so micro-batches and processes only ever add up, in whatever way the same documents are divided. The pass that
gives the sum also gives every token's loss: means by task, and the names of the samples when a step is refused.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medmo_core.batch import Batch
from medmo_core.errors import BadStep, InputError
from medmo_core.losses import TokenLosses

from ..distributed.shards import reshard, sum_gradients
from ..loading.loader import Loader
from ..monitoring.flops import BatchWork, UsefulFlops
from ..monitoring.meter import Meter, Tally
from ..monitoring.profiling import profiled
from ..monitoring.spikes import SpikeGuard
from ..monitoring.summary import summarise
from .loss_sums import LossSums
from .run import Run

Minimise = Callable[[Batch], TokenLosses]
"""Batch -> summed loss of its target tokens, and what it is made of."""


@dataclass(frozen=True)
class StepResult:
    """Global numbers of one step."""

    loss: float
    """Mean cross-entropy of the target tokens."""
    z_loss: float
    attention: float
    """What supervises attention, per target token."""
    tasks: Mapping[str, float]
    """Task -> mean cross-entropy of its target tokens."""
    grad_norm: float
    rates: Mapping[str, float]
    """"lr", and "lr/PART" where a part has its own rate."""
    num_tokens: int
    num_documents: int
    num_skipped: int
    """Samples left out since the run began."""
    flops: float
    """Useful operations; 0 where they were not costed."""


def train_step(
    run: Run,
    batches: Sequence[Batch],
    minimise: Minimise,
    step: int,
    *,
    limit: float = math.inf,
    costs: UsefulFlops | None = None,
) -> StepResult:
    """Do one optimiser step on this process's share of a global batch; every process calls this.

    Args:
        run: the open run.
        batches: packed micro-batches on the host; may be empty.
        minimise: function that returns the summed loss of a batch.
        step: 0-based number of the step.
        limit: loss above which the step is a spike.
        costs: counter of useful operations; None: they are not counted.

    Raises:
        NonFiniteLoss: the loss or a gradient is not finite; no weight has changed.
        LossSpike: the loss is above the limit; no weight has changed.
    """
    world, optimizer = run.world, run.optimizer
    targets, tokens, documents, skipped, flops = _count(run, batches, costs)
    if targets == 0:
        raise InputError(f"step {step + 1}: no document of this step has a token to learn; {run.skipped.summary()}")
    sums = LossSums()
    for batch in batches:
        losses = minimise(batch.to(world.device, non_blocking=True))
        if losses.total.requires_grad:  # where only the encoder trains, text alone teaches nothing
            (losses.total / targets).backward()
        sums.add(batch, losses)
    means = sums.means(world)
    if not means.is_finite:
        optimizer.zero_grad()
        raise run.not_finite(step, f"the loss is {means.minimised}", sums.not_finite())
    if means.loss > limit:
        optimizer.zero_grad()
        raise run.spike(step, means.loss, limit, sums.above(limit))
    sum_gradients(optimizer.named.values(), world)
    try:
        norm, _ = optimizer.step(step)
    except FloatingPointError as error:
        raise run.not_finite(step, str(error), [i for b in batches for i in b.sample_ids]) from error
    return StepResult(
        loss=means.loss,
        z_loss=means.z_loss,
        attention=means.attention,
        tasks=means.tasks,
        grad_norm=norm,
        rates=optimizer.rates(),
        num_tokens=int(tokens),
        num_documents=int(documents),
        num_skipped=int(skipped),
        flops=flops,
    )


def _count(run: Run, batches: Sequence[Batch], costs: UsefulFlops | None) -> list[float]:
    """Count targets, tokens, documents, samples left out and useful operations of a step, over all processes."""
    work = [BatchWork.of(batch, run.kit.model) for batch in batches]
    counts = [
        sum(w.learned for w in work),
        sum(w.tokens for w in work),
        sum(w.documents for w in work),
        run.skipped.total,
        sum(costs.of(w) for w in work) if costs is not None else 0.0,
    ]
    return run.world.sum(torch.tensor(counts, dtype=torch.float64)).tolist()


@torch.no_grad()
def held_out_metrics(run: Run, batches: Sequence[Batch]) -> dict[str, float]:
    """Measure fixed batches; every process calls this.

    Returns:
        "val_loss", the mean cross-entropy of a target token, and "val_accuracy", how often it was the most likely one
        given the tokens before it; the same by task, as "val_loss/TASK".
    """
    model, sums = run.kit.model, LossSums()
    model.eval()
    try:
        for batch in batches:
            sums.add(batch, model.token_losses(batch.to(run.world.device), accuracy=True))
    finally:
        model.train()
        reshard(model)  # no backward pass has done it
    means = sums.means(run.world)
    values = {"val_loss": means.loss, "val_accuracy": means.accuracy}
    values |= {f"val_loss/{task}": loss for task, loss in means.tasks.items()}
    return values | {f"val_accuracy/{task}": share for task, share in means.task_accuracy.items()}


def fit(run: Run, loader: Loader, minimise: Minimise, *, held_out: Loader | None = None) -> bool:
    """Train from `run.start_step` to train.steps, and leave summary.md and summary.png, after a refused step too.

    Args:
        run: the open run.
        loader: loader of the training batches.
        minimise: function that returns the summed loss of a batch.
        held_out: loader whose step 0 is measured every train.eval_every steps.

    Returns:
        Whether the run reached its end; False when it was asked to stop, after saving a checkpoint.

    Raises:
        BadStep: a loss is NaN or infinite, or a spike; no weight has changed.
    """
    train = run.config.train
    fixed = None
    if held_out is not None:
        with run.world.together("making the held-out batches"):
            fixed = held_out.step(0, look_ahead=False)
        held_out.close()
    meter, watch = Meter(run.world), SpikeGuard(train.spike_ratio)
    if run.shared:
        loader.restore(run.shared["loader"])
        watch.restore(run.shared["watch"])
        meter.restore(run.shared["meter"])
    try:
        finished = _loop(run, loader, minimise, fixed, meter, watch)
    except BadStep:
        summarise(run.log, meter)
        raise
    finally:
        loader.close()
    summarise(run.log, meter)
    return finished


def _loop(
    run: Run, loader: Loader, minimise: Minimise, held_out: Sequence[Batch] | None, meter: Meter, watch: SpikeGuard
) -> bool:
    train, world = run.config.train, run.world
    costs = UsefulFlops(run.kit.model)
    for step in range(run.start_step, train.steps):
        number, last = step + 1, step + 1 == train.steps
        started = time.perf_counter()
        with profiled(Path(train.out_dir) / "profile", world, wanted=number == train.profile_step):
            with world.together("making the batch"):
                batches = loader.step(step, look_ahead=not last)
            if run.config.parallel.shard:  # every pass gathers weights from all
                world.agree(f"batches of step {number}", len(batches))
            waited_s = time.perf_counter() - started
            result = train_step(run, batches, minimise, step, limit=watch.limit(), costs=costs)
        seconds = time.perf_counter() - started
        watch.finished(result.loss)
        meter.add(Tally(1, result.num_tokens, result.num_documents, result.flops, seconds), waited_s)
        measured: dict[str, float] = {}
        if held_out is not None and (last or number % train.eval_every == 0):
            measured = held_out_metrics(run, held_out)
            run.note_validation(step, measured["val_loss"])
        if last or measured or number % train.log_every == 0:
            run.log.metrics(number, {**step_values(result), **meter.line(), **loader.figures(), **measured})
        if run.close_step(step, shared={"loader": loader.state(), "watch": watch.state(), "meter": meter.state()}):
            return False
    return True


def step_values(result: StepResult) -> dict[str, float]:
    """Return what a line of metrics says of one step, by name."""
    values = {"loss": result.loss}
    if result.z_loss:
        values["z_loss"] = result.z_loss
    if result.attention:
        values["attention_loss"] = result.attention
    values |= {f"loss/{task}": loss for task, loss in result.tasks.items()}
    values |= result.rates
    values |= {
        "grad_norm": result.grad_norm,
        "tokens": result.num_tokens,
        "documents": result.num_documents,
        "skipped": result.num_skipped,
    }
    return values
