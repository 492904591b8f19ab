"""The launches of an op: compiled kernels with their constants, or only the keys of the binaries that calls need."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from medmo_kernels.spec import OpSpec

from .pretended import JITFunction, knobs, on_pretended_device, run_op


class Launch(NamedTuple):
    """One kernel as an op would launch it.

    Attributes:
        size: name of the size, and of the call of its kind where that needs another binary.
        kernel: name of the kernel.
        compiled: what Triton's compiler made of it.
        constants: compile-time constants by name.
        numbers: whole numbers that it is called with, by name, compile-time ones too.
        seconds: time of the compilation.
    """

    size: str
    kernel: str
    compiled: Any
    constants: Mapping[str, Any]
    numbers: Mapping[str, int]
    seconds: float


def launches(spec: OpSpec, size: str, capability: int) -> list[Launch]:
    """Run an op at one of its compile sizes or classes, and at the other calls of its kind; return what it launches.

    A binary that several launches share is returned once.
    """
    found: dict[str, Launch] = {}
    for label, what, dtype in spec.compile.calls(size):
        with on_pretended_device(capability, _noting(label, found)):
            run_op(spec, what, dtype)
    return list(found.values())


def _noting(label: str, found: dict[str, Launch]) -> Callable[..., None]:
    """Return what compiles a kernel where it would be launched, and notes it by the hash of its binary."""
    plain_run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        started = time.perf_counter()
        compiled: Any = plain_run(self, *args, grid=grid, warmup=True, **kwargs)
        if hasattr(compiled, "result"):
            compiled = compiled.result()
        names = [parameter.name for parameter in self.params]
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        constants = {p.name: bound.get(p.name, p.default) for p in self.params if p.is_constexpr}
        numbers = {name: bound[name] for name in names if type(bound.get(name)) is int}
        seconds = round(time.perf_counter() - started, 2)
        # The hash covers source, specialisation and options.
        found.setdefault(compiled.hash, Launch(label, self.fn.__name__, compiled, constants, numbers, seconds))

    return compile_only


def binaries(spec: OpSpec, sizes: Iterable[Any], dtype: torch.dtype, capability: int) -> dict[str, set[str]]:
    """Return, by kernel, the keys of the binaries that calls of an op at these sizes need; nothing is compiled."""
    found: dict[str, set[str]] = {}

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        found.setdefault(fn.name, set()).add(key)
        return True  # ends the launch before its compilation

    knobs.runtime.jit_cache_hook = note
    try:
        with on_pretended_device(capability, JITFunction.run):
            for size in sizes:
                run_op(spec, size, dtype)
    finally:
        knobs.runtime.jit_cache_hook = None
    return found
