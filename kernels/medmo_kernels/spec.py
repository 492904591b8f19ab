"""The specification of an op, as a room writes it for the tests, the compiler gate and the benchmark."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .back_ends import Choice

Arguments = dict[str, Any]
"""Keyword arguments of an op, tensors among them."""


@dataclass(frozen=True)
class Tolerance:
    """Largest distance of an output from the float64 reference, with its reason.

    An error is within bounds when it is at most `factor` times that of the reference run in the input's own dtype, plus
    `eps` times the largest true value of the output (at least 1).
    """

    eps: float
    reason: str
    factor: float = 2.0


@dataclass(frozen=True)
class Gate:
    """Requirements on a compiled kernel.

    Attributes:
        hgmma: whether its matrix products must be warp-group instructions on Hopper.
        max_stack: most bytes of stack per thread. 0 for every forward; a recorded ceiling that may not grow elsewhere.
        wide_copies: whether it must copy memory to shared memory, 16 bytes at a time, and neither read nor convert
            single bytes.
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
    """Mode in which random numbers have no values: gigabytes are counted here, never read. Lengths and offsets stay."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.rand, torch.randn, torch.randint):
            kwargs = {**(kwargs or {}), "generator": None, "device": "meta"}
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Compile:
    """Launches that are compiled ahead of time, and what they are held to.

    Attributes:
        sizes: (size, dtype) of real models by name; backward is included.
        gate: function of (name of a kernel, its compile-time constants) that returns its requirements.
        classes: sizes of the other classes of shapes that the table gives to Triton, which no model at hand has;
            `make kernels` compiles them, the test suite leaves them out for their time.
        kinds: function of a size that returns others by name, for calls of the same kind with other numbers (one
            segment, lengths that nothing divides): where one needs another binary, that is compiled and held too.
        passes: function of (name of a kernel, the whole numbers it is called with) that returns how often its loop with
            matrix products runs, or None where it has none or several.
    """

    sizes: dict[str, tuple[Any, torch.dtype]] = field(default_factory=dict)
    gate: Callable[[str, Mapping[str, Any]], Gate] = no_gate
    classes: dict[str, tuple[Any, torch.dtype]] = field(default_factory=dict)
    kinds: Callable[[Any], Mapping[str, Any]] = field(default=lambda size: {})
    passes: Callable[[str, Mapping[str, int]], int | None] = field(default=lambda kernel, numbers: None)

    def calls(self, name: str) -> list[tuple[str, Any, torch.dtype]]:
        """Return name, size and dtype of the calls that one of the sizes or classes stands for, itself first."""
        size, dtype = (self.sizes | self.classes)[name]
        return [(name, size, dtype), *((f"{name}, {kind}", x, dtype) for kind, x in self.kinds(size).items())]


@dataclass(frozen=True)
class Bench:
    """Cases that the benchmark times, and the work that they are counted to do.

    Attributes:
        sizes: sizes of real models, worth timing on a GPU; the most telling first.
        cpu_sizes: sizes that two cores time in a second, the quickest first.
        slow_reference: whether the reference is a loop in Python, which is neither timed nor compared with at sizes
            worth timing.
        checked_size: function that turns a size worth timing into one of its kind where the float64 reference fits into
            memory.
        timed: function to time, where that of the spec does more for the walkers' sake; None: that of the spec.
        timed_arguments: function that turns the arguments into those that a caller holds, outside the clock.
        num_bytes: function that counts the bytes that must move forward for some arguments.
        num_flops: the same for floating-point operations forward.
        num_backward_bytes: the same for bytes backward: what it reads besides, and the gradients.
        num_backward_flops: the same for operations backward; what a kernel computes a second time is not counted.
    """

    sizes: dict[str, Any] = field(default_factory=dict)
    cpu_sizes: dict[str, Any] = field(default_factory=dict)
    slow_reference: bool = False
    checked_size: Callable[[Any], Any] = field(default=lambda size: size)
    timed: Callable[..., Any] | None = None
    timed_arguments: Callable[[Arguments], Arguments] = field(default=lambda arguments: arguments)
    num_bytes: Callable[[Arguments], float] = tensor_bytes
    num_flops: Callable[[Arguments], float] = uncounted
    num_backward_bytes: Callable[[Arguments], float] = uncounted
    num_backward_flops: Callable[[Arguments], float] = uncounted


@dataclass(frozen=True)
class OpSpec:
    """Specification of one op: the walkers test it, the compiler gate compiles it and the benchmark times it from this.

    Attributes:
        name: public name; the room's folder, or a second op of that room.
        function: public function.
        reference: definition, of the same signature.
        make: function of (size, generator, dtype) that returns arguments on the CPU.
        sizes: test sizes by name, chosen to hurt.
        tolerance: largest distances from the reference, by dtype.
        differentiable: names of the arguments that receive gradients.
        exact: indices of outputs that must equal the reference's exactly (counts, choices).
        faults: wrong versions of the op by name, each of which the walker must catch (a wrong mask, a dropped term).
        op: registered op, for torch's own checks; None: a composition of torch ops.
        op_arguments: function that turns the public arguments into those of the registered op.
        outputs: function that turns a result into comparable tensors, for results that may differ and still be right.
        kernel_sizes: sizes for the Triton code in the interpreter, tiny; empty where the op has no kernel.
        choices: function of a device that says which back end serves which class of shapes, for the doctor.
        back_ends: names that the room's table may use for this op; empty: only one can serve it on CUDA.
        shape_class: function that returns the class of shapes of some arguments, as the table's rows name it.
        compile: part for the compiler gate.
        bench: part for the benchmark.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    make: Callable[[Any, torch.Generator, torch.dtype], Arguments]
    sizes: dict[str, Any]
    tolerance: dict[torch.dtype, Tolerance]
    differentiable: Sequence[str] = ()
    exact: Sequence[int] = ()
    faults: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    op: Any = None
    op_arguments: Callable[[Arguments], Arguments] = field(default=lambda arguments: arguments)
    outputs: Callable[[Arguments, Any], Sequence[Tensor]] = field(
        default=lambda arguments, result: [result] if isinstance(result, Tensor) else list(result)
    )
    kernel_sizes: dict[str, Any] = field(default_factory=dict)
    choices: Callable[[torch.device], Mapping[str, Choice]] | None = None
    back_ends: Sequence[str] = ()
    shape_class: Callable[[Arguments], str] | None = None
    compile: Compile = field(default_factory=Compile)
    bench: Bench = field(default_factory=Bench)
