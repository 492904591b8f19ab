"""Things that the ways of a comparison share, for as long as one of them is there.

Comparisons are listed once and stay listed for the whole run: what they held themselves would stay as long.
"""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """A thing made when it is first asked for, and again once all who asked have let go of it.

    Args:
        make: function that makes the thing.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._alive: Callable[[], T | None] = lambda: None

    def __call__(self) -> T:
        """Return it."""
        found = self._alive()
        if found is None:
            found = self._make()
            self._alive = weakref.ref(found)
        return found
