"""Triton's interpreter with bf16 numbers and every load and store checked: `with checked_interpreter() as found:`.

What a load gives where it is masked off and names no `other` is undefined on a GPU; here it is NaN, or the largest
integer.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

from .bfloat16 import BFLOAT16, as_bits, bfloat16_numbers
from .checked_order import Order
from .checked_tensors import Access, Complaint, Tensors
from .findings import Fault, Findings, Site, site

DEFAULT_WARPS = 4
"""Warps of a launch that does not say how many it has."""
HARMLESS = ("fma_fp32", "fma_fp64")
"""Functions of the compiled part of the interpreter that touch no memory."""


class CheckedMemory:
    """Stand-in for the compiled part of the interpreter, through which kernels reach memory."""

    def __init__(self, compiled: Any, findings: Findings) -> None:
        self._compiled, self._findings = compiled, findings
        self.names_other = False
        """Whether the load at hand says what it gives where it is masked off."""

    def begin(self, kernel: str, arguments: dict[str, Any], num_warps: int) -> None:
        """Start a launch."""
        self._findings.launches += 1
        self.kernel, self.tensors = kernel, Tensors(arguments.items())
        self.order = Order(self.tensors.places, num_warps)

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Load what lies in tensors, and `other` elsewhere."""
        memory, allowed, touched = self._find(pointers, mask, dtype.itemsize, self.order.load)
        self._findings.loads += touched
        bits = np.dtype(np.uint16) if dtype == BFLOAT16 else dtype
        return self._compiled.load(memory, allowed, as_bits(other), bits).view(dtype)

    def store(self, pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        """Store what goes to tensors, and nothing elsewhere."""
        memory, allowed, touched = self._find(pointers, mask, values.dtype.itemsize, self.order.store)
        self._findings.stores += touched
        self._compiled.store(memory, as_bits(values), allowed)

    def _find(
        self, pointers: np.ndarray, mask: np.ndarray, size: int, touch: Callable[[Access, Site], list[Complaint]]
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Note what is wrong; return addresses in memory, which of them may be accessed, and whether any is."""
        memory, allowed, accesses, faults = self.tensors.find(pointers, mask, size)
        here = site()
        for access in accesses:
            faults += touch(access, here)
        for fault in faults:
            self._findings.add(Fault(self.kernel, here, *fault))
        return memory, allowed, bool(accesses)

    def __getattr__(self, name: str) -> Any:
        if name in HARMLESS:
            return getattr(self._compiled, name)
        raise NotImplementedError(f"{name} would go unchecked: teach it to {type(self).__module__}.CheckedMemory")


def _shown(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return numbers that show where they are used."""
    if dtype == np.bool_:
        return np.ones(shape, dtype)
    return np.full(shape, np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else np.nan, dtype)


def _exchanges(memory: CheckedMemory) -> list[tuple[Any, str, Any]]:
    """Return what of the interpreter is exchanged: an owner, the name of its attribute, and the new value."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    stock = {
        "launch": executor.__call__,
        "program": builder.set_grid_idx,
        "barrier": builder.create_barrier,
        "convert": interpreter._implicit_cvt,
        "load": builder.create_masked_load,
        "say": TritonSemantic.load,
    }

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        named = {name: value for name, value in arguments.items() if name in self.arg_names}
        memory.begin(self.fn.__name__, named, kwargs.get("num_warps", DEFAULT_WARPS))
        stock["launch"](self, *args, **kwargs)

    def begin_program(self: Any, *index: int) -> None:
        memory.order.begin_program()
        stock["program"](self, *index)

    def pass_barrier(self: Any) -> None:
        memory.order.pass_barrier()
        stock["barrier"](self)

    def convert(argument: Any) -> Any:
        converted = stock["convert"](argument)
        if isinstance(argument, Tensor):
            converted.handle.data = np.array([memory.tensors.address_of(argument)], np.uint64)
        return converted

    def say(self: Any, pointer: Any, mask: Any, other: Any, *args: Any, **kwargs: Any) -> Any:
        """Note whether there is an `other`: a single 0 counts as none in the interpreter."""
        with patch.object(memory, "names_other", other is not None):
            return stock["say"](self, pointer, mask, other, *args, **kwargs)

    def load(self: Any, pointers: Any, mask: Any, other: Any, *args: Any, **kwargs: Any) -> Any:
        """Give the rest of a block what shows where it is used, unless the kernel says what it wants there."""
        if other is None and not memory.names_other:
            dtype = pointers.get_element_ty()
            other = interpreter.TensorHandle(_shown(pointers.data.shape, interpreter._get_np_dtype(dtype)), dtype)
        return stock["load"](self, pointers, mask, other, *args, **kwargs)

    return [
        (interpreter, "_interpreter", memory),
        (interpreter, "_implicit_cvt", convert),
        (executor, "__call__", launch),
        (builder, "set_grid_idx", begin_program),
        (builder, "create_barrier", pass_barrier),
        (builder, "create_masked_load", load),
        (TritonSemantic, "load", say),
    ]


@contextmanager
def checked_interpreter() -> Iterator[Findings]:
    """Run kernels with bf16 numbers and check all their accesses while the context lasts.

    Yields:
        What is found. Faults are noted, not raised; an access outside a tensor is not executed.

    Raises:
        RuntimeError: this context lasts already.
        NotImplementedError: (inside Triton's InterpreterError) a kernel does what no check covers, such as an atomic.
    """
    if isinstance(interpreter._interpreter, CheckedMemory):
        raise RuntimeError("kernels are checked already: leave one `with checked_interpreter()` before the next")
    findings = Findings()
    memory = CheckedMemory(interpreter._interpreter, findings)
    with ExitStack() as stack:
        stack.enter_context(bfloat16_numbers())
        for exchange in _exchanges(memory):
            stack.enter_context(patch.object(*exchange))
        yield findings
