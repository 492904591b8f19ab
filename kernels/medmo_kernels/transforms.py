"""Transformations of a call that the ops do not take part in by themselves: tracing, autocast, torch.func.

Registered ops have a gradient for `backward` and `torch.autograd.grad` alone. What they lack is refused in words.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad


def refuse_transforms(op: str, *tensors: Tensor | None) -> None:
    """Raise where an input is being differentiated in a way that the op does not know.

    `torch.library` would drop a tangent, so that the derivative would read 0.

    Args:
        op: name of the op for the message.
        tensors: inputs that the op has a gradient for.

    Raises:
        NotImplementedError: one has a tangent, or is differentiated by `torch.func`.
    """
    # Two cheap questions: mostly nothing of the kind is under way.
    given = [x for x in tensors if x is not None]
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in given):
        raise NotImplementedError(
            f"{op} has no forward-mode derivative (torch.func.jvp, jacfwd): use backward or torch.autograd.grad, or "
            "the reference form of its room"
        )
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if torch.compiler.is_compiling() or functorch.maybe_current_level() is None:
        return
    if any(functorch.is_gradtrackingtensor(x) for x in given):
        raise NotImplementedError(
            f"{op} has no derivative under torch.func (grad, vjp, jacrev): use backward or torch.autograd.grad, or the "
            "reference form of its room"
        )


def refuse_table_gradients(op: str, *tables: Tensor) -> None:
    """Raise where rotary tables are being differentiated, by `torch.func` too: no form of an op gives them a gradient.

    Raises:
        RuntimeError: gradients are recorded and a table requires one.
    """
    if torch.is_grad_enabled() and any(table.requires_grad for table in tables):
        raise RuntimeError(f"{op} has no gradient for its rotary tables: detach them")


def is_plain(x: Tensor) -> bool:
    """Say whether a tensor is nothing more: not sharded, not quantised. What stands for one in a trace is plain."""
    return type(x) in (Tensor, torch.nn.Parameter, FakeTensor)


def has_values(x: Tensor) -> bool:
    """Say whether the host may read a tensor's numbers: not while a call is traced, and not on the meta device."""
    return not (torch.compiler.is_compiling() or x.is_meta or isinstance(x, FakeTensor))


def is_autocast(device: torch.device) -> bool:
    """Say whether `torch.autocast` is on for a device."""
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


@overload
def as_autocast(x: Tensor) -> Tensor:
    """Return a tensor as `F.linear` would take it."""


@overload
def as_autocast(x: Tensor | None) -> Tensor | None:
    """Return a tensor as `F.linear` would take it, or None."""


def as_autocast(x: Tensor | None) -> Tensor | None:
    """Return a tensor as `F.linear` would take it: under `torch.autocast` in its dtype; float64 and None stay."""
    if x is None or not is_autocast(x.device) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
