"""Place of an error in the code of a reward, for messages."""

import traceback
from pathlib import Path


def place_of(error: BaseException) -> str:
    """Return the innermost line that an error passed through, as "file.py:12"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown line"
