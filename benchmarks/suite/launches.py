"""Launches that calls would make on a GPU that need not be there: kernels of ours and ops of torch, with their shapes.

Tensors are on the meta device: they have shapes and no numbers. So whatever reads one on the host is an error, a model
of 8B costs nothing, and a launch can depend on shapes and on what the host knows alone. Kernels are those for a Hopper.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from medmo_kernels import runtime

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
VIEWS = ("_unsafe_view", "_reshape_alias")
"""Ops that hand on memory without being marked as views."""


class Event(NamedTuple):
    """One call as the device and its allocator see it.

    Attributes:
        kind: "kernel" of ours, "op" of torch that launches at least one, "memory" that is only allocated.
        name: name of the kernel or op.
        details: grid, and what stands for each argument: shape, strides and dtype of a tensor, else the value.
    """

    kind: str
    name: str
    details: tuple[Any, ...]


class Recorder(TorchDispatchMode):
    """Mode that notes what torch and our ops would launch; views and questions for a device launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    @property
    def launches(self) -> list[str]:
        """Names of all that is launched, in order."""
        return [event.name for event in self.events if event.kind != "memory"]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "medmo_kernels":
            with self:  # what the op does inside
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **kwargs)
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name not in VIEWS:
            kind = "memory" if name in ALLOCATIONS else "op"
            self.events.append(Event(kind, name, (_described(args), _described(kwargs), _described(out))))
        return out

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Note a launch of a Triton kernel; stands in for the method that makes it."""
        self.events.append(Event("kernel", kernel.fn.__name__, (grid, _described(args), _described(kwargs))))

    def norm(self, x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
        """Note PyTorch's fused norm, which it has on a GPU alone; stands in for `F.rms_norm`."""
        out = torch.empty_like(x)
        self.events.append(Event("op", "_fused_rms_norm", (_described((x, weight)), eps)))
        return out


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.storage_offset(), value.dtype
    if isinstance(value, dict):
        return tuple((name, _described(part)) for name, part in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(_described(part) for part in value)
    return value


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Note what is launched inside for tensors on the meta device, our ops by their Triton kernels."""
    recorder = Recorder()
    kernel = importlib.import_module("medmo_kernels.giou.triton_kernel").aligned_forward_kernel

    def launch(*args: Any, **kwargs: Any) -> None:
        recorder.launch(*args, **kwargs)

    with (
        mock.patch.dict("os.environ", {runtime.SWITCH: "triton"}),
        mock.patch.object(type(kernel), "run", launch),
        mock.patch.object(F, "rms_norm", recorder.norm),
        recorder,
    ):
        yield recorder
