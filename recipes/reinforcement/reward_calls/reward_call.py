"""One call of one reward: bounded in time, its result checked, its failure named with the sample.

Shapes: N completions.
"""

import asyncio
import inspect
import math
import numbers
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from medmo_core.data.records.sample import Sample
from medmo_core.errors import BadStep

from .error_place import FAILURES, told
from .time_limit import TimeUp, time_limit

LISTED = 5  # samples that a message names
SHOWN = 80  # characters of a wrong value that it shows
MAX_REWARD = 1e6
"""Largest size of a value: sums, means and spreads of such rewards are exact enough, also in 32 bits."""


class RewardError(BadStep):
    """A reward that raised, called `sys.exit`, hung or returned what is no reward; names it and the sample."""


@dataclass(frozen=True)
class RewardCall:
    """A reward with everything it is called with.

    Attributes:
        name: name of the reward.
        function: function that takes the keywords of `lists` and `fixed`.
        lists: keyword -> (N,) values.
        fixed: keyword -> value for all; functions among them are left out when failures are looked for.
        samples: (N,) of the completions, for messages.
    """

    name: str
    function: Callable[..., Any]
    lists: Mapping[str, list[Any]]
    fixed: Mapping[str, Any]
    samples: Sequence[Sample]

    @property
    def is_async(self) -> bool:
        """Whether calling the function gives a coroutine."""
        function: Any = self.function
        while isinstance(function, partial):
            function = function.func
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(function.__call__)

    def run(self, timeout_s: float) -> Any:
        """Call the function and return what it gives.

        Raises:
            RewardError: it raised, or was not back in time.
        """
        try:
            with time_limit(timeout_s, f"reward {self.name!r} on {self._listed(range(len(self.samples)))}"):
                return self.function(**self.lists, **self.fixed)
        except TimeUp as error:
            raise RewardError(f"{error}; rewards.timeout_s={timeout_s:g} is the limit of one call") from error
        except FAILURES as error:
            raise self.failure(error, timeout_s) from error

    async def run_async(self, timeout_s: float) -> Any:
        """Await the function like `run`; its errors stay as they are, and what would end the event loop is one."""
        coroutine: Coroutine[Any, Any, Any] = self.function(**self.lists, **self.fixed)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                return await coroutine
        except TimeoutError as error:
            if not limit.expired():
                raise
            listed = self._listed(range(len(self.samples)))
            raise RewardError(
                f"reward {self.name!r} on {listed} took longer than {timeout_s:g} s; rewards.timeout_s={timeout_s:g} "
                "is the limit of one call"
            ) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # from outside, such as an interrupt of the user
                raise
            raise RuntimeError(told(error)) from error
        except (SystemExit, GeneratorExit) as error:
            raise RuntimeError(told(error)) from error

    def failure(self, error: BaseException, timeout_s: float) -> RewardError:
        """Return the error that names what a call failed on: the first completion that it also fails on alone."""
        if isinstance(error, RewardError):
            return error
        rows: Sequence[int] = range(len(self.samples))
        with suppress(TimeUp), time_limit(timeout_s, f"reward {self.name!r}, called again after an error,"):
            for row in rows:
                alone = self._failure_alone(row)
                if alone is not None:
                    rows, error = [row], alone
                    break
        return RewardError(f"reward {self.name!r} failed on {self._listed(rows)}: {told(error)}")

    def _failure_alone(self, row: int) -> BaseException | None:
        lists = {key: [values[row]] for key, values in self.lists.items()}
        fixed = {key: (_ignore if callable(value) else value) for key, value in self.fixed.items()}
        try:
            outcome = self.function(**lists, **fixed)
            if self.is_async:
                asyncio.run(outcome)
        except FAILURES as error:
            return error
        return None

    def checked(self, values: Any) -> list[float | None]:
        """Return a result as N numbers or None.

        A list or tuple, or anything with `tolist` (tensors, arrays), of numbers; True counts 1, False 0.

        Raises:
            RewardError: it is something else; names the first completion with a wrong value.
        """
        if hasattr(values, "tolist"):
            with suppress(Exception):  # of a tensor without values: no list, and said below
                values = values.tolist()
        everything = self._listed(range(len(self.samples)))
        if not isinstance(values, list | tuple):
            raise RewardError(f"reward {self.name!r} on {everything} returned {_shown(values)}: expected a list")
        if len(values) != len(self.samples):
            raise RewardError(
                f"reward {self.name!r} on {everything} returned {len(values)} values: expected one for each of "
                f"{len(self.samples)} completions"
            )
        return [self._number(row, value) for row, value in enumerate(values)]

    def _number(self, row: int, value: Any) -> float | None:
        if value is None:
            return None
        if hasattr(value, "item"):  # a tensor, or a number of NumPy's
            with suppress(Exception):  # of several numbers: wrong, and said below
                value = value.item()
        number = _as_float(value)
        if math.isfinite(number) and abs(number) <= MAX_REWARD:
            return number
        expected = (
            f"expected a number from {-MAX_REWARD:g} to {MAX_REWARD:g}: scale the reward"
            if math.isfinite(number)
            else "expected a finite number, or None where the reward does not apply"
        )
        raise RewardError(f"reward {self.name!r} on {self._listed([row])} returned {_shown(value)}: {expected}")

    def _listed(self, rows: Sequence[int]) -> str:
        """Name completions: "sample ct-7, completion 3"; where there are many, their samples."""
        if len(rows) == 1:
            (row,) = rows
            number = sum(sample is self.samples[row] for sample in self.samples[: row + 1])
            return f"sample {self.samples[row].id}, completion {number}"
        ids = list(Counter(self.samples[row].id for row in rows))
        rest = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
        return f"{len(rows)} completions of {'samples' if len(ids) > 1 else 'sample'} {', '.join(ids[:LISTED])}{rest}"


def _ignore(*values: Any, **named: Any) -> None:
    """Take a log call of a reward that is only called again to find its failure."""


def _as_float(value: Any) -> float:
    """Return a real number as a float, one beyond all floats as infinity, anything else as NaN."""
    if not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # foreign code too, and a whole number of thousands of digits
        text = "what cannot be written"
    return f"{text if len(text) <= SHOWN else text[:SHOWN] + '...'} ({type(value).__name__})"
