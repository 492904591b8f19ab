"""Back end of the norms, the gated unit and the losses: Liger on CUDA where it is installed, PyTorch elsewhere.

These are no ops of our own: Liger-Kernel's are good, and this file and `losses/liger.py` are all that knows them.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from functools import lru_cache

import torch
from torch import Tensor

from medmo_kernels import runtime

from ..optional import how_to_install

DISTRIBUTION = "liger-kernel"
OLDEST = (0, 8)


def liger_refusal(device: torch.device) -> str:
    """Say why Liger does not serve tensors on a device, or return an empty text."""
    if runtime.mode() == "reference":
        return f"{runtime.SWITCH}=reference"
    if device.type != "cuda":
        return "no CUDA device"
    version = liger_version()
    if version is None:
        return f"absent: {how_to_install('cuda')}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"{DISTRIBUTION} {version} is older than {'.'.join(map(str, OLDEST))}"
    return runtime.triton_refusal(device, torch.bfloat16)


def uses_liger(tensor: Tensor) -> bool:
    """Say whether Liger serves this tensor; warns once where a GPU has to do without.

    PyTorch serves float64, which Liger's kernels do not compute in, tensors without elements, which they cannot be
    launched on, and what is compiled, since the compiler fuses the same itself.
    """
    if torch.compiler.is_compiling():
        return False
    if not tensor.is_cuda or tensor.dtype not in runtime.KERNEL_DTYPES or tensor.numel() == 0:
        return False
    refusal = liger_refusal(tensor.device)
    if refusal and runtime.mode() != "reference":
        _warn_once(f"norms, SwiGLU and losses on the GPU run PyTorch's own code: liger-kernel {refusal}")
    return not refusal


def liger_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis with Liger.

    Numerics: its "llama" mode, which is the published Qwen3 code: mean of squares in fp32, the normalised vector cast
        to the input's dtype, then the weight. The gradient goes to new memory (`in_place=False`): the incoming one may
        also belong to a residual.
    """
    from liger_kernel.ops import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)


def liger_silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply silu(gate) with `up` with Liger.

    Its backward pass writes the gradients over `gate` and `up`: give it tensors that nobody else reads, and run one
    backward pass per forward pass (a graph kept by `retain_graph` gives wrong gradients the second time).
    """
    from liger_kernel.ops import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)


@lru_cache(maxsize=1)
def liger_version() -> str | None:
    """Return the version of the installed liger-kernel, or None."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=8)
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
