"""Verification of an op against its definition: values and gradients beside the float64 reference.

The walkers in the tests, `medmo doctor --verify` and the benchmark all ask here, so that they mean the same by "right".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .spec import Arguments, OpSpec, Tolerance

MARGIN = 64
"""Elements of NaN laid before and behind every floating input: a read past an end shows."""


@dataclass(frozen=True)
class Comparison:
    """One output or gradient beside the truth.

    Attributes:
        what: `output 0`, `gradient of query`.
        error: largest absolute distance from the float64 reference; NaN where anything is NaN that should not be.
        plain_error: the same for the reference in the input's own dtype.
        bound: largest `error` that is allowed.
        reason: sentence that says why that much.
    """

    what: str
    error: float
    plain_error: float
    bound: float
    reason: str

    @property
    def ok(self) -> bool:
        """Say whether the error is within its bound; NaN is not."""
        return self.error <= self.bound

    def __str__(self) -> str:
        return f"{self.what}: off by {self.error:.3g}, at most {self.bound:.3g}: {self.reason}"


Outcome = tuple[list[Tensor], list[Tensor]]
"""Outputs, and the gradients of their weighted sum."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Outcome of the reference at some arguments.

    Attributes:
        plain: outcome in the precision of the inputs.
        exact: outcome in float64.
    """

    plain: Outcome
    exact: Outcome


def arguments_of(
    spec: OpSpec, size: Any, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> Arguments:
    """Make an op's arguments on a device; the numbers are the same on every device."""
    arguments = spec.make(size, torch.Generator().manual_seed(seed), dtype)
    return {name: moved(value, device) for name, value in arguments.items()}


def moved(value: Any, device: torch.device | str) -> Any:
    """Return an argument with its tensors on a device; tuples and lists are entered."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    return value


def widened(arguments: Arguments) -> Arguments:
    """Return the same numbers in float64."""

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, (tuple, list)):
            return type(value)(wide(part) for part in value)
        return value

    return {name: wide(value) for name, value in arguments.items()}


def surrounded(value: Any) -> Any:
    """Return an argument whose floating tensors lie between stretches of NaN, contiguous and aligned as before."""
    if isinstance(value, (tuple, list)):
        return type(value)(surrounded(part) for part in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    room = value.new_full((value.numel() + 2 * MARGIN,), float("nan"))
    inside = room[MARGIN : MARGIN + value.numel()].view(value.shape)
    return inside.copy_(value)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill all memory that torch hands out with NaN (integers: their largest value) before anybody writes it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # pyright: ignore[reportAttributeAccessIssue]


def run(spec: OpSpec, function: Callable[..., Any], arguments: Arguments) -> Outcome:
    """Return a function's outputs, and the gradients of their sum under fixed random weights."""
    leaves = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            # detach() keeps the place between the NaN margins that clone() would leave.
            leaves[name] = value.detach().requires_grad_(name in spec.differentiable)
    outputs = list(spec.outputs(leaves, function(**leaves)))
    learned = [name for name in spec.differentiable if isinstance(leaves.get(name), Tensor)]
    if not learned:
        return outputs, []
    device = outputs[0].device
    generator = torch.Generator(device).manual_seed(1)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64, device=device)
        total = total + (output.double() * weights).sum()
    gradients = torch.autograd.grad(total, [leaves[name] for name in learned])
    return [output.detach() for output in outputs], list(gradients)


def truth_of(spec: OpSpec, arguments: Arguments) -> Truth:
    """Ask the reference: to compare several functions at the same arguments, it need be asked only once."""
    return Truth(run(spec, spec.reference, arguments), run(spec, spec.reference, widened(arguments)))


def compare(
    spec: OpSpec, arguments: Arguments, function: Callable[..., Any] | None = None, truth: Truth | None = None
) -> list[Comparison]:
    """Compare an op, or a stand-in for it, with its reference in float64 and in the input's own precision.

    Args:
        spec: specification of the op.
        arguments: result of `arguments_of`.
        function: function to test; default: the op.
        truth: truth of the same arguments; default: the reference is asked.

    Returns:
        One comparison per output and per gradient, in the op's order.

    Raises:
        AssertionError: a shape or a gradient's dtype is wrong, or an output that must be exact is not.
        KeyError: the spec has no tolerance for the dtype at hand.
    """
    inside = {name: surrounded(value) for name, value in arguments.items()}
    tolerance = spec.tolerance[floating_dtype(arguments)]
    outputs, gradients = run(spec, function or spec.function, inside)
    truth = truth or truth_of(spec, arguments)
    (plain_outputs, plain_gradients), (true_outputs, true_gradients) = truth.plain, truth.exact
    found = []
    for index, (got, plain, true) in enumerate(zip(outputs, plain_outputs, true_outputs, strict=True)):
        if index in spec.exact:
            assert torch.equal(got, true), f"output {index} must equal the reference's exactly"
        else:
            found.append(distance(got, plain, true, tolerance, f"output {index}"))
    learned = [name for name in spec.differentiable if isinstance(arguments.get(name), Tensor)]
    for name, got, plain, true in zip(learned, gradients, plain_gradients, true_gradients, strict=True):
        assert got.dtype == arguments[name].dtype, f"gradient of {name} is {got.dtype}"
        found.append(distance(got, plain, true, tolerance, f"gradient of {name}"))
    return found


def floating_dtype(arguments: Arguments) -> torch.dtype:
    """Return the dtype of the first floating tensor among the arguments."""
    return next(v.dtype for v in arguments.values() if isinstance(v, Tensor) and v.is_floating_point())


def distance(got: Tensor, plain: Tensor, truth: Tensor, tolerance: Tolerance, what: str) -> Comparison:
    """Measure one tensor against the truth."""
    assert got.shape == truth.shape, f"{what}: {tuple(got.shape)}, expected {tuple(truth.shape)}"
    if truth.numel() == 0:
        return Comparison(what, 0.0, 0.0, 0.0, "empty")
    error, plain_error = ((t.double() - truth.double()).abs().max().item() for t in (got, plain))
    bound = tolerance.factor * plain_error + tolerance.eps * max(1.0, truth.abs().max().item())
    return Comparison(what, error, plain_error, bound, tolerance.reason)


def check(spec: OpSpec, arguments: Arguments, function: Callable[..., Any] | None = None) -> None:
    """Compare, and raise an AssertionError that names every output and gradient that is out of bounds."""
    wrong = [str(comparison) for comparison in compare(spec, arguments, function) if not comparison.ok]
    assert not wrong, "; ".join(wrong)
