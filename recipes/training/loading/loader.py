"""Loader of a run: draws of a mixture, divided into steps, encoded and packed; every sample left out is counted.

Draw n of a run is a pure function of its seed and n; `plan` says which draws a step takes. So the global batch does not
depend on the number of processes or of workers, and resuming needs nothing but the plan's few numbers.
"""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from medmo_core.batch import Batch
from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Sample

from ...settings.run_config import RunConfig
from ..distributed.world import World
from .documents import DocumentMaker
from .plan import DocumentPlan, Plan, Step, TokenBudget, TokenPlan
from .skipped import SkippedSample, SkippedSamples
from .workers import Workers

STEPS_AHEAD = 2  # that workers are given, or as many as it takes to keep each of them busy
Made = tuple[Batch | None, list[SkippedSample]]
T = TypeVar("T")


@dataclass(frozen=True)
class _Started:
    """A step whose batches are made, or being made by workers."""

    step: Step
    batches: list[Made] | list[Future[Made]]


class Loader:
    """Maker of the packed batches of a step, some steps ahead of the model.

    Args:
        draw: sample number n of the run, for any n, in any order.
        processor: maker of tokens and patches from samples.
        world: processes over which draws are divided.
        docs_per_step: draws of one step over all processes.
        micro_batch: documents per batch.
        skipped: counter of samples that cannot be used.
        by_tokens: numbers of packing by tokens instead; micro_batch is then unused, and docs_per_step too where
            `batches_per_step` is given.
        num_workers: processes that decode; 0: a thread.
        equal: whether every process gets the same number of batches, as sharded models need (their processes gather
            weights block by block, so all must run as many passes).
        independent_turns: whether every turn of a sample is a separate document.
        share_prefixes: whether what documents about the same images have in common is computed once.
    """

    def __init__(
        self,
        draw: Callable[[int], Sample],
        processor: Processor,
        *,
        world: World,
        docs_per_step: int,
        micro_batch: int,
        skipped: SkippedSamples,
        by_tokens: TokenBudget | None = None,
        num_workers: int = 0,
        equal: bool = False,
        independent_turns: bool = False,
        share_prefixes: bool = False,
    ) -> None:
        self.world, self.skipped, self.by_tokens, self.num_workers = world, skipped, by_tokens, num_workers
        self._documents = DocumentMaker(
            draw,
            processor,
            independent_turns=independent_turns,
            share_prefixes=share_prefixes,
            budget=None if by_tokens is None else by_tokens.tokens_per_batch,
            equal=equal,
        )
        self._plan: Plan = (
            DocumentPlan(docs_per_step, micro_batch, world=world, equal=equal)
            if by_tokens is None
            else TokenPlan(self._lengths, by_tokens, docs_per_step, world=world, equal=equal)
        )
        self._workers: Workers | None = None
        # Plans and sources serve this one thread. On CUDA it pins memory, which needs the process's own device.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader", initializer=self._choose_device)
        self._started: deque[tuple[int, Future[_Started]]] = deque()
        self._finishing: tuple[int, Future[tuple[Step, list[Batch], list[SkippedSample]]]] | None = None
        self._handed_out = self._plan.state()

    def step(self, step: int, *, look_ahead: bool = True) -> list[Batch]:
        """Return this process's batches of step `step` (0-based); the list may be empty.

        Args:
            step: number of the step: by tokens the one after the last; by documents any, but asking in order is
                fastest, since the next ones are made meanwhile.
            look_ahead: whether work on the next steps begins.

        Raises:
            BadData: too many samples could not be used, or one and none may be.
            SampleError: the code failed on a sample.
            WorkerDied: a worker process is gone.
        """
        if self._finishing is None and self._started:
            self._finish()
        if self._finishing is None or self._finishing[0] != step:
            self._forget()
            self._start(step)
            self._finish()
        assert self._finishing is not None
        taken, batches, faults = self._finishing[1].result()
        self._finishing = None
        if look_ahead:
            while len(self._started) < self._steps_ahead(len(taken.packs)):
                self._start(step + 1 + len(self._started))
            self._finish()
        self.skipped.add(taken.drawn, faults)
        self._handed_out = taken.state
        return batches

    def state(self) -> dict[str, Any]:
        """Return JSON values from which `restore` goes on after the last step handed out; the same on all processes."""
        return self._handed_out

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, on any number of processes; nothing is drawn again.

        Raises:
            ConfigError: the run packs in another way now.
        """
        self._forget()
        self._run(lambda: self._plan.restore(state))
        self._handed_out = dict(state)

    def figures(self) -> dict[str, float]:
        """Return what to log of the steps handed out: by tokens `pack_efficiency`, the used share of all batches."""
        packer = self._handed_out.get("packer")
        if packer is None or self.by_tokens is None or not packer["num_packs"]:
            return {}
        return {"pack_efficiency": packer["num_tokens"] / (packer["num_packs"] * self.by_tokens.tokens_per_batch)}

    def close(self) -> None:
        """Stop working ahead."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._workers is not None:
            self._workers.close()

    def _steps_ahead(self, packs: int) -> int:
        if not self.num_workers:
            return 1
        return max(STEPS_AHEAD, -(-(self.num_workers + 1) // max(1, packs)))

    def _start(self, step: int) -> None:
        self._started.append((step, self._thread.submit(self._begin, step)))

    def _finish(self) -> None:
        step, started = self._started.popleft()
        self._finishing = (step, self._thread.submit(self._gather, started))

    def _forget(self) -> None:
        """Give up what was made ahead; by tokens the plan has then to be restored."""
        for _, future in self._started:
            future.cancel()
        self._started.clear()
        self._finishing = None

    def _run(self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result()

    def _choose_device(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.set_device(self.world.device)

    def _begin(self, step: int) -> _Started:
        """Plan a step and have its batches made (in the thread)."""
        if self.num_workers and self._workers is None:
            pin = self.world.device.type == "cuda"
            self._workers = Workers(self._documents, self.num_workers, pin=pin, prepare_thread=self._choose_device)
        taken = self._plan.take(step)
        if self._workers is None:
            return _Started(taken, [self._documents.batch(pack) for pack in taken.packs])
        return _Started(taken, [self._workers.batch(pack) for pack in taken.packs])

    def _gather(self, started: Future[_Started]) -> tuple[Step, list[Batch], list[SkippedSample]]:
        """Return what `step` hands out, pinned where that helps (in the thread)."""
        taken, waiting = started.result().step, started.result().batches
        batches: list[Batch] = []
        faults = list(taken.faults)
        for made in waiting:
            batch, left_out = made.result() if isinstance(made, Future) else made
            faults += left_out
            if batch is not None:
                batches.append(batch.pin_memory() if self.world.device.type == "cuda" else batch)
        return taken, batches, faults

    def _lengths(self, numbers: Any) -> list[int | SkippedSample]:
        maker = self._documents if self._workers is None else self._workers
        return maker.lengths(numbers)


def train_loader(
    config: RunConfig, draw: Callable[[int], Sample], processor: Processor, world: World, skipped: SkippedSamples
) -> Loader:
    """Make the loader of a run's training documents."""
    return _new_loader(
        config,
        draw,
        processor,
        world,
        skipped,
        docs_per_step=config.train.docs_per_step,
        batches_per_step=config.train.batches_per_step,
        num_workers=config.data.num_workers,
    )


def held_out_loader(config: RunConfig, draw: Callable[[int], Sample], processor: Processor, world: World) -> Loader:
    """Make the loader of a run's held-out documents; its step 0 holds all of them."""
    return _new_loader(
        config,
        draw,
        processor,
        world,
        SkippedSamples(None),
        docs_per_step=config.train.eval_docs,
        batches_per_step=None,
        num_workers=0,  # read once, before the first step
    )


def _new_loader(
    config: RunConfig,
    draw: Callable[[int], Sample],
    processor: Processor,
    world: World,
    skipped: SkippedSamples,
    *,
    docs_per_step: int,
    batches_per_step: int | None,
    num_workers: int,
) -> Loader:
    train, data = config.train, config.data
    budget = None
    if train.tokens_per_batch is not None:
        budget = TokenBudget(train.tokens_per_batch, batches_per_step, train.pack_buffer)
    return Loader(
        draw,
        processor,
        world=world,
        docs_per_step=docs_per_step,
        micro_batch=train.micro_batch,
        skipped=skipped,
        by_tokens=budget,
        num_workers=num_workers,
        equal=config.parallel.shard,
        independent_turns=data.independent_turns,
        share_prefixes=data.share_prefixes,
    )
