"""The known name that a mistyped one is nearest to, for messages that ask "did you mean"."""

import difflib
from collections.abc import Iterable

MIN_LIKENESS = 0.6


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like `name`; None where none is much like it."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=MIN_LIKENESS)
    return near[0] if near else None
