"""One walk over every room: values and gradients against the float64 reference, torch's own checks, files and names."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import medmo_kernels
from medmo_kernels.spec import Arguments, OpSpec, Tolerance

ROOMS_ROOT = Path(medmo_kernels.__file__).parent
ROOMS = sorted(path.parent.name for path in ROOMS_ROOT.glob("*/op.py"))
SPECS: list[OpSpec] = [
    spec for room in ROOMS for spec in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS
]
CASES = [
    pytest.param(spec, size, dtype, id=f"{spec.name}-{size}-{str(dtype).removeprefix('torch.')}")
    for spec in SPECS
    for size in spec.sizes
    for dtype in spec.tolerance
]
SEED = 0


def make(spec: OpSpec, size: str, dtype: torch.dtype) -> Arguments:
    return spec.make(spec.sizes[size], torch.Generator().manual_seed(SEED), dtype)


def widened(arguments: Arguments) -> Arguments:
    """The same numbers in float64."""
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def run(spec: OpSpec, function: Callable[..., Any], arguments: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of their weighted sum."""
    leaves = {k: v.detach().clone().requires_grad_(k in spec.differentiable) if isinstance(v, Tensor) else v
              for k, v in arguments.items()}  # fmt: skip
    outputs = list(spec.outputs(leaves, function(**leaves)))
    if not spec.differentiable:
        return outputs, []
    generator = torch.Generator().manual_seed(SEED + 1)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total = total + (output.double() * weights).sum()
    gradients = torch.autograd.grad(total, [leaves[name] for name in spec.differentiable])
    return [output.detach() for output in outputs], list(gradients)


def assert_close(got: Tensor, plain: Tensor, truth: Tensor, tolerance: Tolerance, what: str) -> None:
    assert got.shape == truth.shape, what
    if truth.numel() == 0:
        return
    error, allowed = ((t.double() - truth.double()).abs().max().item() for t in (got, plain))
    bound = tolerance.factor * allowed + tolerance.eps * max(1.0, truth.abs().max().item())
    assert error <= bound, f"{what}: off by {error:.3g}, at most {bound:.3g}: {tolerance.reason}"


def check(spec: OpSpec, function: Callable[..., Any], arguments: Arguments, tolerance: Tolerance) -> None:
    """Compare a function with the reference in float64 and in its own precision."""
    outputs, gradients = run(spec, function, arguments)
    plain_outputs, plain_gradients = run(spec, spec.reference, arguments)
    true_outputs, true_gradients = run(spec, spec.reference, widened(arguments))
    for index, triple in enumerate(zip(outputs, plain_outputs, true_outputs, strict=True)):
        if index in spec.exact:
            assert torch.equal(triple[0], triple[2]), f"output {index}"
        else:
            assert_close(*triple, tolerance, f"output {index}")
    for name, *triple in zip(spec.differentiable, gradients, plain_gradients, true_gradients, strict=True):
        assert triple[0].dtype == arguments[name].dtype
        assert_close(*triple, tolerance, f"gradient of {name}")


@pytest.mark.parametrize(("spec", "size", "dtype"), CASES)
def test_values_and_gradients(spec: OpSpec, size: str, dtype: torch.dtype) -> None:
    check(spec, spec.function, make(spec, size, dtype), spec.tolerance[dtype])


REGISTERED = [pytest.param(s, size, id=f"{s.name}-{size}") for s in SPECS if s.op is not None for size in s.sizes]


@pytest.mark.parametrize(("spec", "size"), REGISTERED)
def test_torch_accepts_the_registration(spec: OpSpec, size: str) -> None:
    """Schema, fake tensors, autograd registration and tracing with dynamic shapes."""
    arguments = spec.op_arguments(make(spec, size, torch.float32))
    for name in spec.differentiable:
        arguments[name].requires_grad_()
    torch.library.opcheck(spec.op, tuple(arguments.values()))


@pytest.mark.parametrize(("spec", "size", "dtype"), CASES)
def test_runs_are_equal_bit_for_bit(spec: OpSpec, size: str, dtype: torch.dtype) -> None:
    first, second = (run(spec, spec.function, make(spec, size, dtype)) for _ in range(2))
    for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.differentiable], ids=lambda s: s.name)
def test_the_walk_catches_faults(spec: OpSpec) -> None:
    """A last element that is not written and a gradient term that is dropped must not pass."""
    size = list(spec.sizes)[2]
    arguments = make(spec, size, torch.float64)

    def unwritten(**kwargs: Any) -> Tensor:
        out = spec.function(**kwargs)
        return torch.cat([out.flatten()[:-1], out.flatten()[-1:] * float("nan")]).view_as(out)

    def cut(**kwargs: Any) -> Tensor:
        first = spec.differentiable[0]
        return spec.function(**{**kwargs, first: kwargs[first].detach() + 0 * kwargs[first]})

    for fault in (unwritten, cut):
        with pytest.raises((AssertionError, ValueError)):
            check(spec, fault, arguments, spec.tolerance[torch.float64])


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_complete(room: str) -> None:
    folder = ROOMS_ROOT / room
    for name in ("__init__", "reference", "op", "cases"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{room}/{name}.py has no docstring"
    package = importlib.import_module(f"medmo_kernels.{room}")
    assert callable(getattr(package, room)), "the op bears the room's name"
    assert getattr(package, room).__doc__
    assert {spec.name for spec in SPECS if spec.name == room}, "cases.py describes the op"


def test_a_nan_error_is_not_within_bounds() -> None:
    """The comparison itself must not let NaN through."""
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    with pytest.raises(AssertionError):
        assert_close(nan, one, one, Tolerance(1.0, "any"), "nan")
