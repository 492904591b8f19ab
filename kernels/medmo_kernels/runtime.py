"""What this machine offers the rooms: the native library, and the one debug switch.

`MEDMO_KERNELS=reference` makes every op run its reference on every device, to bisect a wrong result. Anything else,
or nothing, is `auto`: the dispatcher chooses by device, and the native library serves the CPU where it is built.
"""

import os
from functools import lru_cache
from pathlib import Path

import torch

SWITCH = "MEDMO_KERNELS"
MODES = ("auto", "reference")
LIBRARY = Path(__file__).with_name("_C.so")


def mode() -> str:
    """Return `auto` or `reference`, as the switch says.

    Raises:
        ValueError: the switch holds another word.
    """
    value = os.environ.get(SWITCH, "") or "auto"
    if value not in MODES:
        raise ValueError(f"{SWITCH}={value}: expected one of {', '.join(MODES)}")
    return value


@lru_cache(maxsize=1)
def _load() -> str:
    """Load the native library once; return an empty text, or why it cannot be used."""
    if not LIBRARY.exists():
        return "not built: run `make native` (it needs a C++ compiler)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load beside torch {torch.__version__}: {error}"
    return ""


def has_native() -> bool:
    """Say whether ops on the CPU may call the native library now."""
    return mode() == "auto" and _load() == ""


def native_status() -> str:
    """Say in words whether the native library is used, and why not."""
    if mode() == "reference":
        return f"off: {SWITCH}=reference"
    return _load() or "loaded"
