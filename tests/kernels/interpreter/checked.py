"""All checks of the interpreter where kernels run in it, and none on a chip: for tests that run on either."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medmo_kernels import runtime


@contextmanager
def checked() -> Iterator[Any]:
    """Run kernels with all checks while the context lasts.

    Yields:
        `Findings`: what is checked and what is found; None on a chip.

    Raises:
        AssertionError: a load or store was wrong.
    """
    if not runtime.interpreter_is_set():
        yield None
        return
    from .checked_launches import checked_interpreter

    with checked_interpreter() as found:
        yield found
    assert not found.faults, str(found)
