"""The machine as the rooms see it: the one debug switch, Triton, the GPU's capability, and the native library.

`MEDMO_KERNELS` is `auto` (or not set): CUDA tensors are served by Triton kernels, or by the peer that a room's table
names; CPU tensors by the fastest plain form, native where it is built. `reference` makes every op run its reference on
every device, to bisect a wrong result. `triton` makes every op run its Triton kernels on every device: on the CPU that
needs `TRITON_INTERPRET=1` and is slow; it exists to test the kernels where there is no GPU.
"""

import importlib.metadata
import os
from functools import lru_cache
from pathlib import Path

import torch

SWITCH = "MEDMO_KERNELS"
MODES = ("auto", "reference", "triton")
LIBRARY = Path(__file__).with_name("_C.so")
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = 80
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that Triton kernels take; float64 is served by the references on every device."""
DEFAULT_CAPABILITY = 90
"""Capability whose tuned rows serve tensors that are on no CUDA device: those of the interpreter."""


def mode() -> str:
    """Return `auto`, `reference` or `triton`, as the switch says.

    Raises:
        ValueError: the switch holds another word.
    """
    value = os.environ.get(SWITCH, "") or "auto"
    if value not in MODES:
        raise ValueError(f"{SWITCH}={value}: expected one of {', '.join(MODES)}")
    return value


def not_installed(package: str) -> str:
    """Say that a package of the `cuda` extra is missing, and how to install it."""
    return f'{package} is not installed: pip install "medmo[cuda]"'


def interpreter_is_set() -> bool:
    """Say whether Triton runs every kernel in its interpreter: Python on the CPU, for tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


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
        return not_installed("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {version} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    if device.type == "cuda" and capability(device) < OLDEST_CAPABILITY:
        return f"compute capability {capability(device) / 10} is below {OLDEST_CAPABILITY / 10}"
    return ""


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
