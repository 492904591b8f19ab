"""The device that kernels are launched on: Triton launches on the current one, whatever device its tensors are on."""

from collections.abc import Callable, Iterator
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def on_device_of_tensors(launcher: Callable[P, R]) -> Callable[P, R]:
    """Let a launcher run with the device of its tensors current, so that its kernels run there and on its stream.

    Args:
        launcher: function of a room's `launch.py`, which `op.py` calls; tuples and lists among its arguments count too.

    Returns:
        The same function. It raises a ValueError that names the tensors where they are on several devices.
    """
    room = launcher.__module__.rpartition(".")[0].rpartition(".")[2]

    @wraps(launcher)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = {x.device for x in _tensors((args, tuple(kwargs.values())))}
        if len(devices) > 1:
            given = signature(launcher).bind(*args, **kwargs).arguments
            places = (f"{name} on {x.device}" for part, value in given.items() for name, x in _named(part, value))
            raise ValueError(f"{room}: {', '.join(places)}: expected all on one device")
        device = next(iter(devices), None)
        if device is None or device.type != "cuda":
            return launcher(*args, **kwargs)
        with torch.cuda.device(device):
            return launcher(*args, **kwargs)

    return run


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _named(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an argument, each under its own name or that of the argument."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        for field, part in zip(getattr(value, "_fields", [name] * len(value)), value, strict=True):
            yield from _named(field, part)
