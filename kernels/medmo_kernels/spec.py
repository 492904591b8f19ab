"""What a room tells the tests, the compiler gate and the benchmark about its op."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .runtime import Choice

Arguments = dict[str, Any]
"""Keyword arguments of an op, tensors among them."""


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the float64 reference, and why that far.

    An error is within bounds when it is at most `factor` times that of the reference run in the input's own dtype, plus
    `eps` times the largest true value of the output (at least 1).
    """

    eps: float
    reason: str
    factor: float = 2.0


@dataclass(frozen=True)
class Gate:
    """What a compiled kernel must keep to.

    Attributes:
        hgmma: on Hopper its matrix products must be warp-group instructions.
        max_stack: most bytes of stack per thread. 0 for every forward; a recorded ceiling that may not grow elsewhere.
        wide_copies: it copies memory to shared memory, 16 bytes at a time, and neither reads nor converts single bytes.
    """

    hgmma: bool = False
    max_stack: int = 0
    wide_copies: bool = False


def no_gate(kernel: str, constants: Mapping[str, Any]) -> Gate:
    """Return the gate of kernels without matrix products: no stack."""
    return Gate()


def uncounted(arguments: Arguments) -> float:
    """Return 0: for ops whose work nobody counts."""
    return 0.0


def tensor_bytes(arguments: Arguments) -> float:
    """Return the bytes of all input tensors, each read once."""
    return float(sum(a.numel() * a.element_size() for a in arguments.values() if isinstance(a, Tensor)))


class ShapesAlone(TorchFunctionMode):
    """Draw random numbers without values: gigabytes of them are counted here, never read. Lengths and offsets stay."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.rand, torch.randn, torch.randint):
            kwargs = {**(kwargs or {}), "generator": None, "device": "meta"}
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class OpSpec:
    """Describe one op: the walkers test it, the compiler gate compiles it and the benchmark times it from this alone.

    Args:
        name: public name; the room's folder, or a second op of that room.
        function: the public function.
        reference: the definition, of the same signature.
        make: (size, generator, dtype) -> arguments, on the CPU.
        sizes: test sizes by name, chosen to hurt.
        benchmark_sizes: sizes of real models, worth timing on a GPU; the most telling first.
        cpu_sizes: sizes that two cores time in a second, the quickest first.
        tolerance: by dtype.
        differentiable: names of the arguments that receive gradients.
        exact: indices of outputs that must equal the reference's exactly (counts, choices).
        faults: wrong versions of the op by name, each of which the walker must catch (a wrong mask, a dropped term).
        op: the registered op, for torch's own checks; None: a composition of torch ops.
        op_arguments: turns the public arguments into those of the registered op.
        outputs: turns a result into comparable tensors, for results that may differ and still be right.
        kernel_sizes: sizes for the Triton code in the interpreter, tiny; empty where the op has no kernel.
        compile_sizes: by name, (size, dtype) of real models: what is compiled ahead of time, backward included.
        gate: (kernel's name, its compile-time constants) -> what the compiled kernel must keep to.
        choices: (device) -> which back end serves which class of shapes, for the doctor.
        back_ends: what the room's table may name for this op; empty: there is only one that can serve it on CUDA.
        shape_class: (arguments) -> the class of shapes that the table's rows go by.
        slow_reference: the reference is a loop in Python: the benchmark neither times it nor compares with it at sizes
            worth timing.
        checked_size: turns a size worth timing into one of its kind where the float64 reference fits into memory.
        timed: what the benchmark times, where `function` does more for the walkers' sake; None: `function`.
        timed_arguments: turns the arguments into those that a caller holds, outside the clock.
        num_bytes: bytes that must move for these arguments, forward.
        num_flops: floating-point operations for these arguments, forward.
        num_backward_bytes: bytes that must move backward: what it reads besides, and the gradients.
        num_backward_flops: floating-point operations backward; what a kernel computes a second time is not counted.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    make: Callable[[Any, torch.Generator, torch.dtype], Arguments]
    sizes: dict[str, Any]
    benchmark_sizes: dict[str, Any]
    tolerance: dict[torch.dtype, Tolerance]
    differentiable: Sequence[str] = ()
    exact: Sequence[int] = ()
    faults: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    op: Any = None
    op_arguments: Callable[[Arguments], Arguments] = field(default=lambda arguments: arguments)
    outputs: Callable[[Arguments, Any], Sequence[Tensor]] = field(
        default=lambda arguments, result: [result] if isinstance(result, Tensor) else list(result)
    )
    cpu_sizes: dict[str, Any] = field(default_factory=dict)
    kernel_sizes: dict[str, Any] = field(default_factory=dict)
    compile_sizes: dict[str, tuple[Any, torch.dtype]] = field(default_factory=dict)
    gate: Callable[[str, Mapping[str, Any]], Gate] = no_gate
    choices: Callable[[torch.device], Mapping[str, Choice]] | None = None
    back_ends: Sequence[str] = ()
    shape_class: Callable[[Arguments], str] | None = None
    slow_reference: bool = False
    checked_size: Callable[[Any], Any] = field(default=lambda size: size)
    timed: Callable[..., Any] | None = None
    timed_arguments: Callable[[Arguments], Arguments] = field(default=lambda arguments: arguments)
    num_bytes: Callable[[Arguments], float] = tensor_bytes
    num_flops: Callable[[Arguments], float] = uncounted
    num_backward_bytes: Callable[[Arguments], float] = uncounted
    num_backward_flops: Callable[[Arguments], float] = uncounted
