"""One piece of work at a time in a thread; its failure is raised to whoever starts, asks or waits next."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Thread that works beside the training loop; at most one piece of work is under way."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None  # made when needed: a process that forks before has no thread
        self._under_way: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the work has ended with an error that was not raised to anybody yet."""
        work = self._under_way
        return work is not None and work.done() and work.exception() is not None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the work before, then start this.

        Raises:
            Exception: what the work before ended with.
        """
        self.wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="background")
        self._under_way = self._pool.submit(work)

    def wait(self) -> None:
        """Wait until nothing is under way.

        Raises:
            Exception: what the work ended with.
        """
        work, self._under_way = self._under_way, None
        if work is not None:
            work.result()

    def close(self) -> None:
        """Wait like `wait`, and end the thread.

        Raises:
            Exception: what the work ended with.
        """
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
