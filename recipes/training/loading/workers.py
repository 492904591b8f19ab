"""Processes that decode images: each is asked by its own thread, and leaves its pixels in memory that both share.

That memory stays, one stretch per worker: the asking thread copies the pixels out before it asks for more. They start
from a clean server process (forkserver), which is safe beside CUDA and threads, and end when the training process does,
however that ends.
"""

import atexit
import multiprocessing
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
import torch.multiprocessing  # teaches pipes to send tensors through shared memory
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.batch.looks import Looks
from medmo_core.errors import UserError

from ...settings.section import ConfigError
from .documents import DocumentMaker, SampleError
from .skipped import BadData, SkippedSample

LEAVE_S = 5.0  # for a worker to end by itself
SHARED_MEMORY = Path("/dev/shm")
LEAST_FREE = 2**20  # bytes of shared memory without which a worker cannot begin
NO_SHARED_MEMORY = "shared memory ran out: enlarge /dev/shm (docker: --shm-size=16g) or use fewer data.num_workers"


class WorkerDied(UserError, RuntimeError):
    """A worker process is gone, and with it the batch it was making."""


class Workers:
    """Other processes that make batches and lengths; the answers do not depend on how many there are.

    Args:
        documents: maker of documents that is sent to each of them.
        number: number of processes.
        pin: whether pixels are copied into page-locked memory, for asynchronous copies to a GPU.
        prepare_thread: function that each asking thread calls when it begins, to choose its GPU.
    """

    def __init__(
        self,
        documents: DocumentMaker,
        number: int,
        *,
        pin: bool = False,
        prepare_thread: Callable[[], None] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once, shared by all
        self._processes: list[BaseProcess] = []
        self._links: list[Connection] = []
        self._shelves: list[Tensor] = [torch.empty(0, dtype=torch.uint8)] * number
        self._pin = pin
        self._idle: SimpleQueue[int] = SimpleQueue()
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="worker", initializer=prepare_thread)
        atexit.register(self.close)  # before multiprocessing waits for its children
        for index in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, documents), name=f"data-{index}", daemon=True)
            process.start()
            theirs.close()  # so that its end closes with it
            self._processes.append(process)
            self._links.append(ours)
            self._idle.put(index)

    def batch(self, numbers: Sequence[int]) -> "Future[tuple[Batch | None, list[SkippedSample]]]":
        """Have `DocumentMaker.batch` called."""
        return self._threads.submit(self._ask, "batch", numbers)

    def lengths(self, numbers: Sequence[int]) -> list[int | SkippedSample]:
        """Return `DocumentMaker.lengths`, divided among the workers."""
        share = -(-len(numbers) // len(self._links))
        parts = [numbers[start : start + share] for start in range(0, len(numbers), share)]
        return [length for answer in self._threads.map(lambda p: self._ask("lengths", p), parts) for length in answer]

    def _ask(self, method: str, numbers: Sequence[int]) -> Any:
        """Let one of the idle workers answer; as many threads ask as there are workers."""
        index = self._idle.get()
        try:
            outcome, answer = self._exchange(index, method, numbers)
            if outcome == "bad data":
                raise BadData(answer)
            if outcome == "no memory":
                raise WorkerDied(answer)
            if outcome == "failed":
                raise SampleError(answer)
            if method == "lengths":
                return answer
            parts, faults = answer
            return (None if parts is None else self._assemble(parts, self._shelves[index])), faults
        finally:
            self._idle.put(index)

    def _exchange(self, index: int, method: str, numbers: Sequence[int]) -> tuple[str, Any]:
        """Ask one worker and take over its shelf where it has got a larger one."""
        link, process = self._links[index], self._processes[index]
        try:
            link.send((method, list(numbers)))
            outcome, answer, shelf = link.recv()
        except (EOFError, OSError) as error:
            process.join(LEAVE_S)
            raise WorkerDied(_obituary(process)) from error
        if shelf is not None:
            self._shelves[index] = shelf
        return outcome, answer

    def _assemble(self, parts: dict[str, Any], shelf: Tensor) -> Batch:
        """Return the batch of its parts, with the pixels copied off the shelf."""
        tensors = {name: torch.from_numpy(v) for name, v in parts.items() if isinstance(v, np.ndarray)}
        patches = {}
        for name, (start, shape) in parts["patches"].items():
            patches[name] = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
            patches[name].view(-1).copy_(shelf[start : start + patches[name].numel()])
        grids = {name: torch.from_numpy(grid) for name, grid in parts["image_grid_thw"].items()}
        looks = tuple(Looks(**_each(values, np.ndarray, torch.from_numpy)) for values in parts["looks"])
        return Batch(**{**parts, **tensors, "patches": patches, "image_grid_thw": grids, "looks": looks})

    def close(self) -> None:
        """End the processes; what they are doing is given up."""
        if self._closing.is_set():
            return
        self._closing.set()
        atexit.unregister(self.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()  # they hold nothing that needs an end
        self._threads.shutdown(wait=True)
        for process, link in zip(self._processes, self._links, strict=True):
            process.join(LEAVE_S)
            link.close()


def check_shared_memory(number: int) -> None:
    """Refuse to start where the memory that workers share with the training process is full.

    Raises:
        ConfigError: there is less than LEAST_FREE bytes for each of `number` workers.
    """
    if not number or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < number * LEAST_FREE:
        raise ConfigError(f"data.num_workers={number}: {SHARED_MEMORY} has {free:,} bytes free; {NO_SHARED_MEMORY}")


def _serve(link: Connection, documents: DocumentMaker) -> None:
    """Answer until the other end closes."""
    # Asking a run to end asks its training process, which finishes a step and closes this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    shelf = _Shelf()
    with suppress(EOFError, OSError):  # the training process is gone or has closed the link
        while True:
            method, numbers = link.recv()
            link.send(_answer(documents, method, numbers, shelf))


def _answer(
    documents: DocumentMaker, method: str, numbers: Sequence[int], shelf: "_Shelf"
) -> tuple[str, Any, Tensor | None]:
    try:
        answer = getattr(documents, method)(numbers)
    except BadData as error:
        return "bad data", str(error), None
    except Exception as error:
        return "failed", f"{error}\n{traceback.format_exc()}", None
    if method == "lengths" or answer[0] is None:
        return "ok", answer, None
    batch, faults = answer
    try:
        grown = shelf.hold(batch.patches)
    except (RuntimeError, OSError) as error:
        return "no memory", f"{NO_SHARED_MEMORY} ({str(error).splitlines()[0]})", None
    return "ok", (_parts(batch), faults), grown


class _Shelf:
    """Shared memory for the pixels of one batch."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def hold(self, patches: dict[str, Tensor]) -> Tensor | None:
        """Copy pixels there, one after another; returns the memory when it is new."""
        needed = sum(rows.numel() for rows in patches.values())
        grown = needed > self.memory.numel()
        if grown:
            self.memory = torch.empty(needed + needed // 4, dtype=torch.uint8).share_memory_()
        start = 0
        for rows in patches.values():
            self.memory[start : start + rows.numel()].copy_(rows.reshape(-1))
            start += rows.numel()
        return self.memory if grown else None


def _parts(batch: Batch) -> dict[str, Any]:
    """Return what a batch is made of: small tensors as arrays, and of the pixels their place on the shelf and shape."""
    parts = _each(vars(batch), Tensor, Tensor.numpy)
    parts["looks"] = [_each(vars(looks), Tensor, Tensor.numpy) for looks in batch.looks]
    parts["image_grid_thw"] = {name: grid.numpy() for name, grid in batch.image_grid_thw.items()}
    starts = accumulate((rows.numel() for rows in batch.patches.values()), initial=0)
    parts["patches"] = {
        name: (start, tuple(rows.shape)) for (name, rows), start in zip(batch.patches.items(), starts, strict=False)
    }
    return parts


def _each(values: Mapping[str, Any], kind: type, change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return values with those of one type changed: a tensor that is sent takes a file descriptor, an array none."""
    return {name: change(value) if isinstance(value, kind) else value for name, value in values.items()}


def _obituary(process: BaseProcess) -> str:
    """Say how a process ended and what that usually means."""
    code = process.exitcode
    name = signal.Signals(-code).name if code is not None and code < 0 else ""
    hints = {
        "SIGKILL": "killed, perhaps because memory ran out: fewer data.num_workers or a smaller train.tokens_per_batch",
        "SIGBUS": NO_SHARED_MEMORY,
        "SIGSEGV": "an image decoder crashed: data.num_workers=0 shows on which sample",
    }
    how = f"by {name} ({hints.get(name, 'from outside')})" if name else f"with exit status {code}"
    return f"the data worker {process.name} (process {process.pid}) ended {how}; its batch is lost"
