"""Type, message and place of an error in the code of a reward."""

import asyncio
import traceback
from pathlib import Path

FAILURES = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)
"""What counts as a failure of foreign code; an interrupt of the user and a time that is up do not."""


def told(error: BaseException) -> str:
    """Return an error's type, message, and innermost line, as "ValueError: not finite (file.py:12)"."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown line"
    try:
        message = str(error)
    except Exception:  # foreign code too
        message = "its message cannot be written"
    return f"{type(error).__name__}: {message} ({place})"
