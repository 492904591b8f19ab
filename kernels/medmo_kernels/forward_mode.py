"""Forward-mode derivatives (`torch.func.jvp`, dual tensors), which the ops do not have."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import forward_ad


def refuse_forward_mode(op: str, *tensors: Tensor | None) -> None:
    """Raise where an input carries a tangent: `torch.library` would drop it, and the derivative would read 0.

    Args:
        op: name of the op for the message.
        tensors: inputs that the op has a gradient for.

    Raises:
        NotImplementedError: one has a tangent.
    """
    if forward_ad._current_level < 0:  # no forward-mode call is under way, which costs one look
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            f"{op} has no forward-mode derivative (torch.func.jvp, jacfwd): use backward or torch.autograd.grad, or "
            "the reference form of its room"
        )
