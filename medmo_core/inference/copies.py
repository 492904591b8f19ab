"""Copies of a small model in processes of one thread each, which work side by side on the CPU.

In matrices as small as theirs, two threads of one process mostly wait for one another; two processes do not.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from ..data.processor import Processor
from ..errors import InputError, UserError
from ..models.medmo import MedMO

MOST_BYTES = 2**28
"""Largest weights that are worth a copy in each process."""
MOST_PROCESSES = 4
Result = TypeVar("Result")


class CopyDied(UserError, RuntimeError):
    """A process that holds a copy of a model is gone, and with it what it was working on."""


class Copies:
    """A model with its processor, and processes that each hold a copy of both.

    They start with the first call, from a clean server process (forkserver), which is safe beside threads, and end with
    the `with` block, or with the process that they belong to, however that ends. Without processes all is done here.

        with Copies(kit.model, kit.processor, 2) as copies:
            for texts in copies.start(answer_batch, [(batch, 32) for batch in batches]):
                ...

    Attributes:
        model: the model here.
        processor: the processor here.
        number: processes that work.

    Args:
        model: model in evaluation mode; what later happens to it does not reach the copies.
        processor: processor of the model's checkpoint.
        number: processes; 1: none beside this one.

    Raises:
        InputError: several processes for a model that is not on the CPU.
    """

    def __init__(self, model: MedMO, processor: Processor, number: int = 1) -> None:
        self.model, self.processor, self.number = model, processor, max(1, number)
        self._pool: ProcessPoolExecutor | None = None
        if number <= 1:
            return
        if model.head_weight.device.type != "cpu":
            raise InputError(
                f"{number} processes, but the model is on {model.head_weight.device}: copies work on the CPU alone, "
                "elsewhere ask for 1"
            )
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once, shared by all
        state = pickle.dumps((model, processor))
        self._pool = ProcessPoolExecutor(number, context, initializer=_begin, initargs=(state,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if kind is not None:  # nobody wants the answers any more, and Ctrl-C should not wait for them
            for process in list((self._pool._processes or {}).values()):
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    def start(self, work: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Start one call of a function for each tuple of arguments.

        Args:
            work: function of the model, the processor and the arguments, at the top level of a module.
            calls: arguments of each call, behind model and processor.

        Returns:
            The results, in the order of the calls; what a call raised is raised in its place. Without processes a call
            is made when its result is asked for.
        """
        if self._pool is None:
            return (work(self.model, self.processor, *arguments) for arguments in calls)
        return _results([self._pool.submit(_call, work, arguments) for arguments in calls])


def _results(futures: list[Future[Result]]) -> Iterator[Result]:
    for future in futures:
        try:
            yield future.result()
        except BrokenProcessPool as error:
            raise CopyDied(
                "a process that answers beside this one ended before its work was done, perhaps because memory ran out"
            ) from error


def num_useful(model: MedMO) -> int:
    """Return how many processes answer fastest with a model: as many as torch may use threads where it is small."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if model.head_weight.device.type != "cpu" or weights > MOST_BYTES:
        return 1
    return min(torch.get_num_threads(), MOST_PROCESSES)


_held: list[Any] = []  # in a process that was started here: the copies


def _begin(state: bytes) -> None:
    """Make a process ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked ends it
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    torch.set_num_threads(1)
    _held.extend(pickle.loads(state))


def _end_with_parent() -> None:
    """Leave when the process that asks is gone: it may have been killed, and nobody would come for the answers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(work: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    model, processor = _held
    return work(model, processor, *arguments)
