"""Names of data sets, and the former ones that are still accepted."""

import sys
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

EMBEDDED_PREFIX = "embedded:"
FORMER_PREFIX = "sample:"  # of the embedded set
V = TypeVar("V")


def current_name(name: str) -> str:
    """Return the name that a data set has now; a former one is reported in one line, once."""
    if not name.startswith(FORMER_PREFIX):
        return name
    current = EMBEDDED_PREFIX + name.removeprefix(FORMER_PREFIX)
    _report_former(name, current)
    return current


def with_current_names(sources: Mapping[str, V]) -> dict[str, V]:
    """Return the mapping in its order, keyed by `current_name`; of two entries of one data set the later counts."""
    return {current_name(name): value for name, value in sources.items()}


@cache
def _report_former(former: str, current: str) -> None:
    print(f"{former} is now called {current}", file=sys.stderr)
