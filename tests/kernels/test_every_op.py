"""One walk over every room: values and gradients against the float64 reference, torch's own checks, files and names.

Then the same for the Triton code itself: on the chip where there is one, else in Triton's interpreter, where every load
and store is checked besides (`interpreter/checked.py`).
"""

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import medmo_kernels
from medmo_kernels import runtime, verify
from medmo_kernels.spec import OpSpec, Tolerance

from .interpreter.checked import checked

ROOMS_ROOT = Path(medmo_kernels.__file__).parent
ROOMS = sorted(path.parent.name for path in ROOMS_ROOT.glob("*/op.py"))
SPECS: list[OpSpec] = [
    spec for room in ROOMS for spec in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS
]
KERNEL_SPECS = [spec for spec in SPECS if spec.kernel_sizes]
ON_CHIP = torch.cuda.is_available()
DEVICE = "cuda" if ON_CHIP else "cpu"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def room_of(spec: OpSpec) -> str:
    return spec.function.__module__.split(".")[1]


def kernel_id(spec: OpSpec) -> str:
    """Room and op: `-k "[giou:"` chooses the kernel tests of one room."""
    return f"{room_of(spec)}:{spec.name}"


CASES = [
    pytest.param(spec, size, dtype, id=f"{spec.name}-{size}-{name_of(dtype)}")
    for spec in SPECS
    for size in spec.sizes
    for dtype in spec.tolerance
]


@pytest.mark.parametrize(("spec", "size", "dtype"), CASES)
def test_values_and_gradients(spec: OpSpec, size: str, dtype: torch.dtype) -> None:
    with verify.poisoned():
        verify.check(spec, verify.arguments_of(spec, spec.sizes[size], dtype))


def three_of(sizes: dict[str, Any]) -> list[str]:
    """First, middle and last: a check takes seconds, and registrations do not depend on sizes much."""
    names = list(sizes)
    return list(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))


REGISTERED = [
    pytest.param(s, size, id=f"{s.name}-{size}") for s in SPECS if s.op is not None for size in three_of(s.sizes)
]


@pytest.mark.parametrize(("spec", "size"), REGISTERED)
def test_torch_accepts_the_registration(spec: OpSpec, size: str) -> None:
    """Schema, fake tensors, autograd registration and tracing with dynamic shapes."""
    arguments = verify.arguments_of(spec, spec.sizes[size], torch.float32)
    for name in spec.differentiable:
        if isinstance(arguments[name], Tensor):
            arguments[name].requires_grad_()
    torch.library.opcheck(spec.op, tuple(spec.op_arguments(arguments).values()))


@pytest.mark.parametrize(("spec", "size", "dtype"), CASES)
def test_runs_are_equal_bit_for_bit(spec: OpSpec, size: str, dtype: torch.dtype) -> None:
    arguments = verify.arguments_of(spec, spec.sizes[size], dtype)
    first, second = (verify.run(spec, spec.function, arguments) for _ in range(2))
    for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert torch.equal(a, b)


def faults_of(spec: OpSpec) -> dict[str, Any]:
    """Wrong versions of an op: those the room names, and the two that every differentiable op can have."""

    def unwritten(**kwargs: Any) -> Any:
        result = spec.function(**kwargs)
        out = result if isinstance(result, Tensor) else result[0]
        holed = torch.cat([out.flatten()[:-1], out.flatten()[-1:] * float("nan")]).view_as(out)
        return holed if isinstance(result, Tensor) else (holed, *result[1:])

    def cut(name: str) -> Any:
        return lambda **kwargs: spec.function(**{**kwargs, name: kwargs[name].detach() + 0 * kwargs[name]})

    faults = dict(spec.faults)
    if spec.differentiable:
        faults["last element unwritten"] = unwritten
        faults |= {f"gradient of {name} dropped": cut(name) for name in spec.differentiable}
    return faults


FAULTS = [pytest.param(s, fault, id=f"{s.name}-{fault}") for s in SPECS for fault in faults_of(s)]


@pytest.mark.parametrize(("spec", "fault"), FAULTS)
def test_the_walk_catches_faults(spec: OpSpec, fault: str) -> None:
    """Each fault must show at one size at least."""
    dtype = next(dtype for dtype in (torch.float64, torch.float32) if dtype in spec.tolerance)
    for size in spec.sizes.values():
        arguments = verify.arguments_of(spec, size, dtype)
        if any(arguments[name] is None for name in spec.differentiable):
            continue
        try:
            verify.check(spec, arguments, faults_of(spec)[fault])
        except (AssertionError, ValueError):
            return
    pytest.fail(f"{spec.name}: {fault!r} passes at every size")


def test_every_room_plants_faults() -> None:
    bare = [room for room in ROOMS if not any(faults_of(s) for s in SPECS if s.name == room)]
    assert bare == []


KERNEL_CASES = [
    pytest.param(spec, size, dtype, id=f"{kernel_id(spec)}-{size}-{name_of(dtype)}")
    for spec in KERNEL_SPECS
    for size in (spec.kernel_sizes | (spec.sizes if ON_CHIP else {}))
    for dtype in runtime.KERNEL_DTYPES
    if dtype in spec.tolerance
]


@pytest.fixture
def triton_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op runs its Triton kernels."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    monkeypatch.setenv(runtime.SWITCH, "triton")


@pytest.mark.usefixtures("triton_mode")
@pytest.mark.parametrize(("spec", "size", "dtype"), KERNEL_CASES)
def test_kernels_values_and_gradients(spec: OpSpec, size: str, dtype: torch.dtype) -> None:
    """The real kernels, all memory filled with NaN before they write it, and each access in its tensor and its turn."""
    arguments = verify.arguments_of(spec, (spec.sizes | spec.kernel_sizes)[size], dtype, DEVICE)
    with checked(), verify.poisoned():
        verify.check(spec, arguments)


@pytest.mark.usefixtures("triton_mode")
@pytest.mark.parametrize("spec", KERNEL_SPECS, ids=kernel_id)
def test_kernels_run_at_all(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk above must not have compared the reference with itself: without Triton's compiler the op breaks.

    Nor must it have checked nothing.
    """
    size = list(spec.kernel_sizes.values())[-1]
    with checked() as found:
        verify.run(spec, spec.function, verify.arguments_of(spec, size, torch.float32, DEVICE))
    assert found is None or min(found.launches, found.loads, found.stores) > 0
    module = importlib.import_module(f"medmo_kernels.{room_of(spec)}.triton_kernel")
    kernels = [name for name, value in vars(module).items() if type(value).__name__ in KERNEL_TYPES]
    assert kernels, "triton_kernel.py holds no kernel"
    for name in kernels:
        monkeypatch.setattr(module, name, None)
    with pytest.raises((TypeError, AttributeError)):
        verify.run(spec, spec.function, verify.arguments_of(spec, size, torch.float32, DEVICE))


KERNEL_TYPES = ("InterpretedFunction", "JITFunction")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_complete(room: str) -> None:
    folder = ROOMS_ROOT / room
    for name in ("__init__", "reference", "triton_kernel", "launch", "op", "cases"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{room}/{name}.py has no docstring"
    package = importlib.import_module(f"medmo_kernels.{room}")
    assert callable(getattr(package, room)), "the op has the room's name"
    assert getattr(package, room).__doc__
    (spec,) = (spec for spec in SPECS if spec.name == room)
    assert spec.kernel_sizes and spec.compile.sizes and spec.choices, "cases.py describes the kernels"


def test_a_nan_error_is_not_within_bounds() -> None:
    """The comparison itself must not let NaN through."""
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    assert not verify.distance(nan, one, one, Tolerance(1.0, "any"), "nan").ok


def test_inputs_lie_between_nan() -> None:
    tensor = torch.randn(3, 4)
    inside = verify.surrounded(tensor)
    assert torch.equal(inside, tensor) and inside.is_contiguous() and inside.data_ptr() % 64 == 0
    beyond = torch.as_strided(inside, (1,), (1,), inside.storage_offset() + inside.numel())
    assert beyond.isnan().all()
