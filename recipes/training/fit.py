"""The supervised loop of align and instruct: sum the loss, divide by all target tokens, step, log, save.

A step's loss is the mean over its target tokens on all processes. Their number is known before the first backward
pass, so micro-batches and processes only ever add up, in whatever way the same documents are divided.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.models.medmo import labelled_rows

from .data import Loader, SkippedSamples
from .distributed import World, sum_gradients
from .run import Run

Minimise = Callable[[Batch], Tensor]
"""Batch -> summed loss of its target tokens."""


class NonFiniteLoss(ValueError):
    """A loss or gradient that is not a number; the message names the samples."""


@dataclass(frozen=True)
class StepResult:
    """Global numbers of one step."""

    loss: float
    grad_norm: float
    lr: float
    num_tokens: int
    num_documents: int
    num_skipped: int
    """Samples left out since the run began."""


def count_targets(batches: Sequence[Batch]) -> int:
    """Return the number of tokens that are learned (as `MedMO.loss` counts them)."""
    return sum(labelled_rows(batch)[1].numel() for batch in batches)


def train_step(run: Run, batches: Sequence[Batch], minimise: Minimise, step: int) -> StepResult:
    """Do one optimiser step on this process's share of a global batch; every process calls this.

    Args:
        run: model and optimiser.
        batches: packed micro-batches on the host; may be empty.
        minimise: summed loss of a batch.
        step: 0-based number of the step.

    Raises:
        NonFiniteLoss: the loss or a gradient is not finite; no weight has changed.
    """
    world = run.world
    counts = [
        count_targets(batches),
        sum(b.num_tokens for b in batches),
        sum(b.num_documents for b in batches),
        run.skipped.total,
    ]
    targets, tokens, documents, skipped = world.sum(torch.tensor(counts, dtype=torch.int64)).tolist()
    if targets == 0:
        raise ValueError(f"step {step + 1}: no document of this step has a token to learn; {run.skipped.summary()}")
    losses: list[Tensor] = []
    for batch in batches:
        loss = minimise(batch.to(world.device, non_blocking=True)) / targets
        loss.backward()
        losses.append(loss.detach().double())
    own = torch.stack(losses).cpu() if losses else torch.zeros(0, dtype=torch.float64)
    loss_sum = world.sum(own.sum().reshape(1)).item()
    if not math.isfinite(loss_sum):
        finite = own.isfinite().tolist()
        suspects = [i for b, good in zip(batches, finite, strict=True) if not good for i in b.sample_ids]
        raise NonFiniteLoss(not_finite_message(run, step, f"the loss is {loss_sum}", suspects))
    sum_gradients(run.optimizer.named.values(), world)
    try:
        norm, lr = run.optimizer.step(step)
    except FloatingPointError as error:
        suspects = [i for b in batches for i in b.sample_ids]
        raise NonFiniteLoss(not_finite_message(run, step, str(error), suspects)) from error
    return StepResult(
        loss=loss_sum, grad_norm=norm, lr=lr, num_tokens=tokens, num_documents=documents, num_skipped=skipped
    )


def not_finite_message(run: Run, step: int, what: str, suspects: list[str]) -> str:
    """Record why a step (0-based) cannot be taken and return the message; every process calls this."""
    names = [name for names in run.world.gather(suspects) for name in names]
    run.log.event("not_finite", step=step + 1, samples=names)
    newest = run.checkpoints.newest()
    kept = f"the newest checkpoint is {newest}" if newest is not None else "there is no checkpoint yet"
    return f"step {step + 1}: {what}, with samples {', '.join(names)}. No weight was changed; {kept}"


@torch.no_grad()
def held_out_loss(batches: Sequence[Batch], minimise: Minimise, world: World) -> float:
    """Return the mean loss per target token of fixed batches over all processes."""
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        total += torch.tensor([float(minimise(batch.to(world.device))), count_targets([batch])], dtype=torch.float64)
    loss, targets = world.sum(total).tolist()
    return loss / max(1, targets)


def fit(run: Run, loader: Loader, minimise: Minimise, *, held_out: Loader | None = None) -> bool:
    """Train from `run.start_step` to train.steps.

    Args:
        run: the open run.
        loader: batches by step.
        minimise: summed loss of a batch.
        held_out: its step 0 is measured every train.eval_every steps.

    Returns:
        Whether the run reached its end; False when it was asked to stop, after saving a checkpoint.
    """
    held_out_batches = held_out.step(0, look_ahead=False) if held_out is not None else None
    try:
        return _loop(run, loader, minimise, held_out_batches)
    finally:
        loader.close()


def _loop(run: Run, loader: Loader, minimise: Minimise, held_out: Sequence[Batch] | None) -> bool:
    train, log = run.config.train, run.log
    for step in range(run.start_step, train.steps):
        started = time.perf_counter()
        last = step + 1 == train.steps
        batches = loader.step(step, look_ahead=not last)
        waited_s = time.perf_counter() - started
        result = train_step(run, batches, minimise, step)
        seconds = time.perf_counter() - started
        values = {
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens": result.num_tokens,
            "documents": result.num_documents,
            "tokens_per_s": result.num_tokens / seconds,
            "step_s": seconds,
            "wait_s": waited_s,
            "skipped": result.num_skipped,
        }
        if held_out is not None and (last or (step + 1) % train.eval_every == 0):
            values["val_loss"] = held_out_loss(held_out, minimise, run.world)
        if last or (step + 1) % train.log_every == 0:
            log.metrics(step + 1, values)
        if run.close_step(step):
            return False
    return True


def new_loader(run: Run, draw: Callable[[int], object], *, held_out: bool = False) -> Loader:
    """Make the loader of a run, or of its held-out documents, from the numbers of its config."""
    train = run.config.train
    skipped = SkippedSamples(None) if held_out else run.skipped
    return Loader(
        draw,  # type: ignore[arg-type]
        run.kit.processor,
        world=run.world,
        docs_per_step=train.eval_docs if held_out else train.docs_per_step,
        micro_batch=train.micro_batch,
        skipped=skipped,
        equal=run.config.parallel.shard,
        independent_turns=run.config.data.independent_turns,
    )
