"""Import paths of the version before, which keep working for one version with a warning that names the new place."""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any


def forward(old: str, new: str) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that hands on the names of the module that took its place.

    Args:
        old: dotted name of the module as it was, usually `__name__`.
        new: dotted name of the module that holds its names now.
    """

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(import_module(new), name)
        warnings.warn(
            f"{old} is now {new}: write `from {new} import {name}`; the old path goes away in the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return value

    return get
