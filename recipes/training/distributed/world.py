"""Processes and how they add up: the world, sums over it, gradients summed once per step, and how all end as one.

Losses are divided by the step's global number of target tokens before the first backward pass, so a plain sum over
processes is the gradient of the global mean: one process, two processes and accumulation give the same step.

A process that fails leaves a word in the store that all share. The others learn of it where they next fail themselves,
at the latest when an exchange with the missing one times out, and name its cause as theirs (`ProcessFailed`).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous

from medmo_core.errors import InputError, UserError

from .torchrun import attempt, num_launched

FIRST_FAILURE = "medmo/first_failure"  # key in the store that all processes share


class ProcessFailed(UserError, RuntimeError):
    """The processes cannot go on together; the message names the one to blame and what happened there."""


@dataclass(frozen=True)
class World:
    """The processes of this run and this one's place among them."""

    rank: int
    size: int
    device: torch.device
    local_size: int = 1
    """Processes on this machine that were started together."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the elementwise sum of `values` over all processes; `values` itself is left alone."""
        if self.size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, item: Any) -> list[Any]:
        """Return every process's `item`, in rank order, on every process (small Python objects)."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def together(self, action: str) -> Iterator[None]:
        """Do something on every process so that it succeeds on all, or fails on all; no exchange may happen inside.

        Args:
            action: words for the message, such as "making the batch".

        Raises:
            ProcessFailed: it failed on another process; the message names that one and the cause.
        """
        error: BaseException | None = None
        try:
            yield
        except (Exception, SystemExit) as caught:  # nothing inside may end one process alone
            error = caught
        if self.size > 1 and self.sum(torch.tensor([int(error is not None)])).item():
            causes = self.gather(None if error is None else _describe(error))
            failed = [f"process {rank}: {cause}" for rank, cause in enumerate(causes) if cause is not None]
            if error is None:
                raise ProcessFailed(f"{action} failed on another process; {'; '.join(failed)}")
        if error is not None:
            raise error

    def agree(self, counted: str, number: int) -> None:
        """Check that all processes have the same number of something; every process calls this.

        Args:
            counted: words for the message, such as "batches of step 3".
            number: number of this process.

        Raises:
            ProcessFailed: they differ; the message gives each.
        """
        own = torch.zeros(self.size, dtype=torch.int64)
        own[self.rank] = number
        numbers = self.sum(own).tolist()
        if len(set(numbers)) > 1:
            each = ", ".join(f"process {rank} has {n}" for rank, n in enumerate(numbers))
            raise ProcessFailed(f"{counted}: {each}; all must have the same number, or they would wait for one another")

    def share(self, total: int) -> range:
        """Return this process's indices out of 0..total-1: every size-th one, so that ranks are disjoint."""
        return range(self.rank, total, self.size)


def say(world: World, text: str) -> None:
    """Print a line on the main process before there is a log."""
    if world.is_main:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def connect(
    device: str = "auto", *, num_threads: int = 0, shard: bool = False, timeout_s: float = 600.0
) -> Iterator[World]:
    """Join the other processes (torchrun's protocol; alone without it) and leave at the end.

    Args:
        device: "auto", "cpu" or "cuda".
        num_threads: CPU threads of this process; 0 = cores divided by the processes of this machine.
        shard: a process group is wanted even for one process.
        timeout_s: how long a process waits for the others in one exchange.

    Raises:
        InputError: CUDA is asked for and there is none.
        ProcessFailed: another process failed first; chained to what that led to here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device=cuda: this machine shows no CUDA device; use train.device=cpu")
    use_cuda = torch.cuda.is_available() and device != "cpu"
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    here = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(here)
    if num_threads or local_size > 1:
        torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // local_size))
    rank, size = int(os.environ.get("RANK", 0)), num_launched()
    store: dist.Store = dist.HashStore()
    grouped = size > 1 or shard
    if grouped:
        timeout = timedelta(seconds=timeout_s)
        if "MASTER_ADDR" in os.environ:
            store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            # torchrun's store outlives a restart, and with it the addresses of processes that are gone.
            store=dist.PrefixStore(f"default_pg/{attempt()}", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=here if use_cuda else None,
        )
    try:
        yield World(rank=rank, size=size, device=here, local_size=local_size)
    except BaseException as error:
        if size == 1:
            if grouped:
                dist.destroy_process_group()
            raise
        # The group is left as it is: taking it down could wait for processes that wait for this one.
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            get_error_handler().record_exception(error)  # torchrun shows the first one at its end
        first = None if isinstance(error, ProcessFailed) else _first_failure(store, rank, error)
        if first is not None:
            raise ProcessFailed(f"another process failed first; {first}") from error
        raise
    if grouped:
        dist.destroy_process_group()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _first_failure(store: dist.Store, rank: int, error: BaseException) -> str | None:
    """Leave word of this process's failure; return that of the process that failed first, None where it is this one."""
    own = f"process {rank}: {_describe(error)}"
    try:
        first = store.compare_set(f"{FIRST_FAILURE}/{attempt()}", "", own).decode()
    except RuntimeError:  # the store went with the process that held it
        return None
    return None if first == own else first
