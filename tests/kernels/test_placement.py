"""Every kernel is launched with its tensors' device current, whatever the caller's; tensors on two devices are refused.

There need be no GPU: tensors are said to be on one, and launches are noted instead of made.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import medmo_kernels
from medmo_kernels import runtime, verify
from medmo_kernels.attention import attention
from medmo_kernels.placement import on_device_of_tensors
from medmo_kernels.projector import ProjectorWeights
from medmo_kernels.spec import OpSpec

pytest.importorskip("triton")
ROOMS = sorted(path.parent.name for path in Path(medmo_kernels.__path__[0]).glob("*/launch.py"))
SPECS: list[OpSpec] = [
    spec for room in ROOMS for spec in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS
    if spec.kernel_sizes
]  # fmt: skip
HERE, THERE = torch.device("cuda", 0), torch.device("cuda", 1)
MAKERS = ("empty", "arange", "full", "zeros", "tensor")


class Machine:
    """Two GPUs that are not there: which one is current, and which one was at each launch."""

    def __init__(self) -> None:
        self.current = HERE.index
        self.launched: list[tuple[str, int]] = []

    def exchange(self, index: int) -> int:
        """Make another device current, and return the one that was."""
        before, self.current = self.current, index if index >= 0 else self.current
        return before

    def launch(self, kernel: Any, *args: Any, **kwargs: Any) -> None:
        """Note a launch, which writes nothing."""
        self.launched.append((kernel.fn.__name__, self.current))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Say of every tensor that it is on the second of two GPUs, the first of which is current."""
    found = Machine()
    kernel = importlib.import_module("medmo_kernels.giou.triton_kernel").aligned_forward_kernel
    monkeypatch.setenv(runtime.SWITCH, "triton")
    monkeypatch.setattr(runtime, "capability", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "_exchange_device", found.exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", found.exchange)
    monkeypatch.setattr(type(kernel), "run", lambda *args, **kwargs: found.launch(*args, **kwargs))
    monkeypatch.setattr(torch.Tensor, "device", property(lambda x: getattr(x, "said_to_be_on", THERE)), raising=False)
    for name in MAKERS:
        monkeypatch.setattr(torch, name, on_host(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "to", on_host(torch.Tensor.to))
    yield found


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function make its tensors on the CPU, whatever device it is asked for."""

    def called(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device", None)
        return function(*(x for x in args if not isinstance(x, torch.device)), **kwargs)

    return called


def run(spec: OpSpec, size: Any) -> None:
    """Run an op forward and backward."""
    arguments = verify.arguments_of(spec, size, torch.float32)
    for name in spec.differentiable:
        if isinstance(arguments.get(name), Tensor):
            arguments[name].requires_grad_()
    result = spec.function(**arguments)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    learned = [x for x in outputs if isinstance(x, Tensor) and x.requires_grad]
    if learned:
        torch.autograd.backward(learned, [torch.ones_like(x) for x in learned])


@pytest.mark.parametrize("room", ROOMS)
def test_kernels_are_launched_where_their_tensors_are(room: str, machine: Machine) -> None:
    for spec in SPECS:
        if spec.function.__module__.split(".")[1] == room:
            for size in spec.kernel_sizes.values():
                run(spec, size)
    launched = {name for name, _ in machine.launched}
    source = (Path(medmo_kernels.__path__[0]) / room / "launch.py").read_text(encoding="utf-8")
    assert launched == set(re.findall(r"kernels\.(\w+)\[", source)), "every launch of the room was seen"
    assert [name for name, index in machine.launched if index != THERE.index] == []
    assert machine.current == HERE.index, "the caller finds its own device again"


ELSEWHERE = [
    pytest.param(spec, name, id=f"{spec.name}-{name}")
    for spec in SPECS
    for name, value in verify.arguments_of(spec, list(spec.kernel_sizes.values())[-1], torch.float32).items()
    # Boundaries may lie on the host, and are moved; three walkers hand the op other tensors than these.
    if isinstance(value, Tensor) and name not in ("cu_seqlens", "prompt_of")
    if spec.name not in ("projector", "qk_norm_rope_", "qk_norm_rope_cache_")
]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("spec", "name"), ELSEWHERE)
def test_tensors_on_two_devices_are_refused(spec: OpSpec, name: str) -> None:
    arguments = verify.arguments_of(spec, list(spec.kernel_sizes.values())[-1], torch.float32)
    arguments[name].said_to_be_on = HERE
    with pytest.raises(ValueError, match=rf"{spec.function.__module__.split('.')[1]}: .*on cuda:0"):
        spec.function(**arguments)


@pytest.mark.usefixtures("machine")
def test_the_error_names_every_tensor() -> None:
    def launch(features: list[Tensor], call: tuple[Tensor, ...]) -> None:
        pytest.fail("this must not run")

    launch.__module__ = "medmo_kernels.projector.launch"
    here, there = torch.ones(1), torch.ones(1)
    here.said_to_be_on = HERE  # pyright: ignore[reportAttributeAccessIssue]
    weights = ProjectorWeights(there, there, there, there, there, here)
    with pytest.raises(ValueError, match="projector: features on cuda:1, norm_weight on cuda:1, .*fc2_bias on cuda:0"):
        on_device_of_tensors(launch)([there], weights)


@pytest.mark.usefixtures("machine")
def test_boundaries_on_the_host_are_refused_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    heads, bounds = torch.ones(3, 1, 64), torch.tensor([0, 3], dtype=torch.int32)
    attention(heads, heads, heads, bounds, True)
    bounds.said_to_be_on = torch.device("cpu")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match="must be on cuda:1 before a CUDA graph is captured"):
        attention(heads, heads, heads, bounds, True)
