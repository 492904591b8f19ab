"""The choice of a back end: which code serves a call of an op, and why.

Every op declares what can serve it; `choose` decides. In order: the back end that `served_by` asks for; the switch
`MEDMO_KERNELS`; on a device without CUDA the op's plain form; on CUDA what the room's table names for the class of
shapes, else the first of Triton and the op's peers that can run, else the plain form.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import runtime, tables

NOTHING_FASTER = "nothing faster can run"


@dataclass(frozen=True)
class Choice:
    """Back end of an op, and the reasons for it.

    Attributes:
        backend: name of the back end: `triton`, `reference`, `native`, `sdpa`, or a peer's.
        reason: sentence that says why it was chosen.
        refused: (back end, reason) of every other one that was considered.
    """

    backend: str
    reason: str
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Declared:
    """Back ends of one op; see `declare`."""

    room: str
    names: tuple[str, ...]
    plain: str | Callable[[], str]
    peers: tuple[str, ...]
    refusal: Callable[..., str]


_declared: dict[str, Declared] = {}
_forced: dict[str, str] = {}
"""Op -> the only back end that may serve it: see `served_by`."""


def _refusal(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    return runtime.triton_refusal(device, dtype) if backend == "triton" else ""


def declare(
    room: str,
    op: str,
    names: tuple[str, ...],
    *,
    plain: str | Callable[[], str] = "reference",
    peers: tuple[str, ...] = (),
    refusal: Callable[..., str] = _refusal,
) -> tuple[str, ...]:
    """Declare the back ends of an op.

    Args:
        room: folder of the table.
        op: name of the op in the table's rows.
        names: back ends that the table may name.
        plain: back end of other devices than CUDA, and of calls that nothing faster can serve.
        peers: back ends that are tried on CUDA where Triton cannot serve a call. An op without peers goes to its
            reference where Triton cannot run, whatever the table names: its rows hold beside Triton.
        refusal: function of (back end, device, dtype, details of the call) that says why that back end cannot serve the
            call, or returns an empty text.

    Returns:
        The names.
    """
    _declared[op] = Declared(room, names, plain, peers, refusal)
    return names


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


def choose(op: str, shape: str | None, device: torch.device, dtype: torch.dtype, *details: Any) -> Choice:
    """Choose the back end of a call; a warning is given once where a GPU has to do without Triton.

    Args:
        op: name of a declared op.
        shape: class of shapes in the table's rows. None: neither the table nor `served_by` is asked; Triton serves the
            call where it can.
        device: device of the tensors.
        dtype: dtype of the tensors; see `deciding_dtype` where there are several.
        details: further constants that the op's refusal reads.

    Returns:
        The choice.

    Raises:
        NotImplementedError: `served_by` asks for a back end that cannot serve the call.
    """
    forced = None if shape is None else _forced.get(op)
    return _choose(runtime.mode(), forced, op, shape, device, dtype, *details)


def choices(op: str, device: torch.device, dtype: torch.dtype, *details: Any) -> dict[str, Choice]:
    """Say what serves each class of shapes that the table knows for an op; nothing is warned about."""
    known = tables.shapes(_declared[op].room, op)
    return {shape: explain(op, shape, device, dtype, *details) for shape in known}


def explain(op: str, shape: str, device: torch.device, dtype: torch.dtype, *details: Any) -> Choice:
    """Say what serves a class of shapes; arguments as `choose`. Nothing is warned about."""
    return _decide(runtime.mode(), _forced.get(op), op, shape, device, dtype, *details)


def deciding_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the first dtype that Triton kernels do not take, else that of the first tensor.

    Whole numbers count as fp32, to which launchers cast them.
    """
    dtypes = [x.dtype if x.is_floating_point() else torch.float32 for x in tensors]
    return next((dtype for dtype in dtypes if dtype not in runtime.KERNEL_DTYPES), dtypes[0])


@lru_cache(maxsize=1024)
@torch.compiler.assume_constant_result  # torch.compile cannot trace the reading of a file
def _choose(
    mode: str, forced: str | None, op: str, shape: str | None, device: torch.device, dtype: torch.dtype, *details: Any
) -> Choice:
    choice = _decide(mode, forced, op, shape, device, dtype, *details)
    if choice.backend == "reference" and choice.reason == NOTHING_FASTER and dtype in runtime.KERNEL_DTYPES:
        _warn_once(f"medmo_kernels: ops on {device.type} run their PyTorch references: {choice.refused[-1][1]}")
    return choice


@lru_cache(maxsize=32)
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)


def _decide(
    mode: str, forced: str | None, op: str, shape: str | None, device: torch.device, dtype: torch.dtype, *details: Any
) -> Choice:
    declared, on_host = _declared[op], _on_host(mode, device)
    plain = declared.plain if isinstance(declared.plain, str) else declared.plain()
    if forced is not None:
        why = "no CUDA device" if on_host and forced == "triton" else declared.refusal(forced, device, dtype, *details)
        if why:
            raise NotImplementedError(f"{op} by {forced}: {why}")
        return Choice(forced, "nothing else may serve it now")
    if mode == "reference":
        return Choice("reference", f"{runtime.SWITCH}=reference")
    if on_host:
        return Choice(plain, f"on the {device.type.upper()}", (("triton", "no CUDA device"),))
    without = runtime.triton_refusal(device, dtype)
    if without and not declared.peers:
        return Choice("reference", NOTHING_FASTER, (("triton", without),))
    return _by_table(mode, op, shape, device, dtype, plain, *details)


def _on_host(mode: str, device: torch.device) -> bool:
    return mode == "auto" and device.type != "cuda"


def _by_table(
    mode: str, op: str, shape: str | None, device: torch.device, dtype: torch.dtype, plain: str, *details: Any
) -> Choice:
    """Choose among what can run on a GPU, or in Triton's interpreter: first what the table names."""
    declared, found = _declared[op], runtime.capability(device)
    wanted, reason = "triton", f"triton {runtime.triton_version()}, rows for sm_{found}"
    row = None if mode == "triton" or shape is None else tables.back_end_row(declared.room, found, op, shape)
    if row is not None:
        wanted = row["backend"]
        reason = f"{reason}; {tables.reason_of(row)}" if wanted == "triton" else tables.reason_of(row)
    refused = {} if wanted == "triton" else {"triton": f"the table names {wanted}"}
    for backend in dict.fromkeys((wanted, "triton", *declared.peers)):
        why = declared.refusal(backend, device, dtype, *details)
        if not why:
            others = tuple(pair for pair in refused.items() if pair[0] != backend)
            return Choice(backend, reason if backend == wanted else "the first that can run", others)
        refused[backend] = why
    return Choice(plain, NOTHING_FASTER, tuple(refused.items()))
