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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """Say whether Triton kernels can and may serve this tensor; warns once where a GPU has to do without."""
    return _may_run(mode(), tensor)


def _may_run(chosen: str, tensor: Tensor) -> bool:
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
    warnings.warn(message, RuntimeWarning, stacklevel=5)


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


# --- which back end a table names ------------------------------------------------------------------------------------
# Rows with `op` and `shape` name the back end that serves an op on CUDA for a class of shapes, and what was `measured`.


_forced: dict[str, str] = {}
"""Op -> the only back end that may serve it: see `served_by`."""


@contextmanager
def served_by(op: str, backend: str) -> Iterator[None]:
    """Let one back end alone serve an op, whatever its table names: to measure what a table is made from.

    For the whole process. Where that back end cannot serve a call on CUDA, the op raises NotImplementedError.
    """
    _forced[op] = backend
    try:
        yield
    finally:
        del _forced[op]


def forced_backend(op: str) -> str | None:
    """Return the back end that `served_by` asks for, or None."""
    return _forced.get(op)


def shapes(room: str, op: str) -> tuple[str, ...]:
    """Return the classes of shapes for which a room's table names an op's back end."""
    return tuple(dict.fromkeys(row["shape"] for row in table(room)["rows"] if row.get("op") == op))


def named(row: Mapping[str, Any]) -> str:
    """Say why a table's row names its back end: what was measured, or that nothing was."""
    found = row.get("measured")
    if found is None:
        return f"not measured yet: {row['reason']}" if "reason" in row else "not measured yet"
    place = f"{found['device']}, commit {found['commit']}, {found['date']}"
    return f"measured: {found['ratio']:.2f}x as fast as {found['over']}, {place}"


def table_choice(
    room: str, op: str, shape: str, device: torch.device, dtype: torch.dtype, plain: str = "reference"
) -> Choice:
    """Choose between Triton kernels and a plain form: on CUDA, where both can run, as the room's table says.

    Args:
        room: folder of the table.
        op: name of the op in its rows.
        shape: class of shapes in its rows.
        device: of the tensors.
        dtype: of the tensors.
        plain: what serves other devices.
    """
    return _table_choice(mode(), forced_backend(op), room, op, shape, device, dtype, plain)


@lru_cache(maxsize=512)
@torch.compiler.assume_constant_result  # torch.compile cannot trace the reading of a file
def _table_choice(
    chosen: str,
    forced: str | None,
    room: str,
    op: str,
    shape: str,
    device: torch.device,
    dtype: torch.dtype,
    plain: str,
) -> Choice:
    general = triton_choice(device, dtype, plain)
    if forced is not None:
        if forced == "triton" and general.backend != "triton":
            raise NotImplementedError(f"{op} by triton: {dict(general.refused).get('triton', general.reason)}")
        return Choice(forced, "nothing else may serve it now")
    if general.backend != "triton" or chosen == "triton":
        return general
    row = table_row(room, capability(device), op=op, shape=shape)
    if row["backend"] == "triton":
        return Choice("triton", f"{general.reason}; {named(row)}")
    return Choice(row["backend"], named(row), (("triton", f"the table names {row['backend']}"),))


def runs_triton(room: str, op: str, shape: str, tensor: Tensor) -> bool:
    """Say whether an op runs its Triton kernels for this tensor: they can, and the table names nothing faster."""
    chosen, forced = mode(), _forced.get(op)
    if forced is None and not _may_run(chosen, tensor):
        return False
    choice = _table_choice(chosen, forced, room, op, shape, tensor.device, tensor.dtype, "reference")
    return choice.backend == "triton"


def table_choices(
    room: str, op: str, device: torch.device, dtype: torch.dtype, plain: str = "reference"
) -> dict[str, Choice]:
    """Say what serves each class of shapes that a room's table knows for an op."""
    return {shape: table_choice(room, op, shape, device, dtype, plain) for shape in shapes(room, op)}


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
