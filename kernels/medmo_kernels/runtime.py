"""What this machine offers the rooms: Triton, the native library, the shipped tables, and the one debug switch.

`MEDMO_KERNELS` is `auto` (or not set): CUDA tensors are served by Triton kernels, or by the peer that a room's table
names; CPU tensors by the fastest plain form, native where it is built. `reference` makes every op run its reference on
every device, to bisect a wrong result. `triton` makes every op run its Triton kernels on every device: on the CPU that
needs `TRITON_INTERPRET=1` and is slow; it exists to test the kernels where there is no GPU.
"""

import importlib.metadata
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

SWITCH = "MEDMO_KERNELS"
MODES = ("auto", "reference", "triton")
LIBRARY = Path(__file__).with_name("_C.so")
TABLE = "table.json"
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = 80
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What Triton kernels take; float64 is served by the references on every device."""
DEFAULT_CAPABILITY = 90
"""Whose tuned rows serve tensors that are on no CUDA device: those of the interpreter."""


@dataclass(frozen=True)
class Choice:
    """Which back end serves an op, and why.

    Attributes:
        backend: its name: `triton`, `reference`, `native`, `sdpa`, or a peer's.
        reason: why it was chosen, in words.
        refused: (back end, reason) of every other one that was considered.
    """

    backend: str
    reason: str
    refused: tuple[tuple[str, str], ...] = ()


def mode() -> str:
    """Return `auto`, `reference` or `triton`, as the switch says.

    Raises:
        ValueError: the switch holds another word.
    """
    value = os.environ.get(SWITCH, "") or "auto"
    if value not in MODES:
        raise ValueError(f"{SWITCH}={value}: expected one of {', '.join(MODES)}")
    return value


# --- Triton ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def triton_version() -> str | None:
    """Return the version of the installed Triton, or None."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def capability(device: torch.device) -> int:
    """Return a CUDA device's compute capability as one number (90 for Hopper); another device counts as a Hopper."""
    return _cuda_capability(device.index) if device.type == "cuda" else DEFAULT_CAPABILITY


@lru_cache(maxsize=16)
def _cuda_capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@lru_cache(maxsize=64)
def triton_refusal(device: torch.device, dtype: torch.dtype) -> str:
    """Say why Triton kernels cannot serve such tensors, or return an empty text."""
    if dtype not in KERNEL_DTYPES:
        return f"{dtype} is served by the reference"
    version = triton_version()
    if version is None:
        return 'triton is not installed: pip install "medmo[cuda]"'
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {version} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    if device.type == "cuda" and capability(device) < OLDEST_CAPABILITY:
        return f"compute capability {capability(device) / 10} is below {OLDEST_CAPABILITY / 10}"
    return ""


def interpreter_is_set() -> bool:
    """Say whether Triton runs every kernel in its interpreter: Python on the CPU, for tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def uses_triton(tensor: Tensor) -> bool:
    """Say whether an op runs its Triton kernels for this tensor; warns once where a GPU has to do without."""
    chosen = mode()
    if chosen == "reference" or (chosen == "auto" and tensor.device.type != "cuda"):
        return False
    refusal = triton_refusal(tensor.device, tensor.dtype)
    if refusal and tensor.dtype in KERNEL_DTYPES:
        _warn_once(f"medmo_kernels: ops on {tensor.device.type} run their PyTorch references: {refusal}")
    return not refusal


def triton_choice(device: torch.device, dtype: torch.dtype, plain: str = "reference") -> Choice:
    """Choose between Triton kernels and a plain form, as `uses_triton` does, with the reasons."""
    if mode() == "reference":
        return Choice("reference", f"{SWITCH}=reference")
    if mode() == "auto" and device.type != "cuda":
        return Choice(plain, f"on the {device.type.upper()}", (("triton", "no CUDA device"),))
    refusal = triton_refusal(device, dtype)
    if refusal:
        return Choice("reference", "nothing faster can run", (("triton", refusal),))
    return Choice("triton", f"triton {triton_version()}, rows for sm_{capability(device)}")


@lru_cache(maxsize=32)
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


# --- shipped tables --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def table(room: str) -> Mapping[str, Any]:
    """Return a room's shipped table: `provenance` (how its rows were found) and `rows`."""
    return MappingProxyType(json.loads((Path(__file__).parent / room / TABLE).read_text(encoding="utf-8")))


@lru_cache(maxsize=1024)
def table_row(room: str, device_capability: int, **key: Any) -> Mapping[str, Any]:
    """Return the row of a room's table whose fields equal `key`, for this capability or the nearest one below it.

    A row with `"capability": 80` serves every device that has none of its own. A device older than all rows gets the
    oldest row.

    Raises:
        LookupError: no row has this key.
    """
    rows = [row for row in table(room)["rows"] if all(row.get(name) == value for name, value in key.items())]
    if not rows:
        raise LookupError(f"{room}/{TABLE} has no row for {key}")
    rows.sort(key=lambda row: row["capability"])
    fitting = [row for row in rows if row["capability"] <= device_capability]
    return MappingProxyType((fitting or rows[:1])[-1])


# --- the native library ----------------------------------------------------------------------------------------------


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
    return mode() != "reference" and _load() == ""


def native_status() -> str:
    """Say in words whether the native library is used, and why not."""
    if mode() == "reference":
        return f"off: {SWITCH}=reference"
    return _load() or "loaded"
