"""The GPU that is not there: launchers run as on a device of any capability, and nothing is executed.

Importing this sets the environment for all kernels of the process: compiled ones, on every device.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["MEDMO_KERNELS"] = "triton"
os.environ["TRITON_INTERPRET"] = "0"

import torch  # noqa: E402
import triton  # noqa: E402
from triton import knobs  # noqa: E402, F401
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

import medmo_kernels  # noqa: E402
from medmo_kernels import runtime  # noqa: E402
from medmo_kernels.spec import OpSpec  # noqa: E402

CAPABILITIES = (80, 90, 100)


def specs() -> Iterator[OpSpec]:
    """Yield the specs of every room that has kernels."""
    for path in sorted(Path(medmo_kernels.__path__[0]).glob("*/triton_kernel.py")):
        yield from importlib.import_module(f"medmo_kernels.{path.parent.name}.cases").SPECS


class PretendedDriver:
    """Stands where Triton asks for the device at hand. The number of the device is its capability."""

    capability = 90

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.capability, 10)


@contextmanager
def on_pretended_device(capability: int, launch: Callable[..., Any]) -> Iterator[None]:
    """Let launchers believe in a device, and let `launch` stand for what launches a kernel."""
    plain = JITFunction.run
    driver: Any = PretendedDriver()
    driver.capability = capability
    triton.runtime.driver.set_active(driver)
    runtime.DEFAULT_CAPABILITY = capability
    JITFunction.run = launch
    try:
        yield
    finally:
        JITFunction.run = plain


def run_op(spec: OpSpec, size: Any, dtype: torch.dtype) -> None:
    """Run an op at a size, forward and, where it learns, backward."""
    arguments = spec.make(size, torch.Generator().manual_seed(0), dtype)
    for name in spec.differentiable:
        if arguments.get(name) is not None:
            arguments[name].requires_grad_()
    result = spec.function(**arguments)
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    learned = [out for out in outputs if isinstance(out, torch.Tensor) and out.requires_grad]
    if learned:
        torch.autograd.backward(learned, [torch.ones_like(out) for out in learned])
