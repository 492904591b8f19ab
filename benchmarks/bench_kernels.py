"""Every op of every room beside its definition and its peers: real sizes in bf16 on a GPU, small ones in fp32 on a CPU.

The rooms' `cases.py` supply ops and sizes. Forward is timed without a graph, backward over a graph that is kept, both
with one that is made anew. Work is what the op must do, whoever does it: bytes and operations counted by the room.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import medmo_kernels
from medmo_kernels import verify
from medmo_kernels.spec import Arguments, OpSpec

from .peers import EXACT, PEERS, Peer
from .peers.peer import compiled
from .report.back_ends import back_end_ways
from .suite.comparison import OURS, Comparison, Ready, Way, Work
from .suite.made_once import Shared
from .suite.schema import Check, Role, Row

ORDER = ("patch_embed", "attention", "box_reward", "qk_norm_rope", "decode_attention", "box_match", "projector")
"""Ops whose first cases come first, the most telling of them before the others: a run may be stopped early."""
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
PEER_BOUND = 16.0
"""A peer may round more often than we do: its error may be so many times the bound that ours must keep to."""
SECONDS = {"cuda": 0.8, "cpu": 0.4}
"""Of timing for each way of a case, all directions together."""


def specs() -> list[OpSpec]:
    """Return the ops of every room, those of `ORDER` first."""
    rooms = sorted(path.parent.name for path in Path(medmo_kernels.__path__[0]).glob("*/cases.py"))
    found = [spec for room in rooms for spec in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS]
    return sorted(found, key=lambda spec: ORDER.index(spec.name) if spec.name in ORDER else len(ORDER))


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine: the first case of every op, then the second of every op, and so on."""
    by_op = [comparisons_of(spec, device) for spec in specs()]
    if short:
        by_op = [cases[:1] for cases in by_op]
    rounds = itertools.zip_longest(*by_op)
    return [comparison for cases in rounds for comparison in cases if comparison is not None]


def comparisons_of(spec: OpSpec, device: torch.device) -> list[Comparison]:
    """Return the comparisons of one op."""
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.bfloat16 in spec.tolerance else torch.float32
        return [comparison_of(spec, case, size, dtype, device) for case, size in spec.bench.sizes.items()]
    return [comparison_of(spec, case, size, torch.float32, device) for case, size in spec.bench.cpu_sizes.items()]


def comparison_of(spec: OpSpec, case: str, size: Any, dtype: torch.dtype, device: torch.device) -> Comparison:
    """Return all ways of one op at one size."""
    work: dict[str, Work] = {}

    def make() -> Inputs:
        made = Inputs.of(spec, size, dtype, device)
        work.update(work_of(spec, made.timed))  # counted late: a listing makes no tensors
        return made

    inputs = Shared(make)

    def way(name: str, peer: Peer, role: Role = "peer", absent: str = "") -> Way:
        bound = PEER_BOUND if role == "peer" else 1.0
        return Way(name, lambda: ready(spec, peer, inputs(), bound), role, absent or peer.refusal(device))

    untimed = ""
    if spec.bench.slow_reference:
        untimed = "a loop in Python: compared with, not timed"
    elif spec.bench.checked_size(size) != size:
        untimed = "does not fit at this size: compared with at a smaller one, not timed"
    ours = way(OURS, Peer(spec.function), "ours")
    ways = [
        ours,
        way("reference", Peer(spec.reference), "reference", untimed),
        way("reference, compiled", Peer(compiled(spec.reference), cuda=True), "peer", untimed),
        *(way(name, peer) for name, peer in PEERS.get(spec.name, {}).items()),
        *back_end_ways(spec, ours, device),
    ]
    directions = (FORWARD, BACKWARD, BOTH) if spec.differentiable else (FORWARD,)
    name = str(dtype).removeprefix("torch.")
    return Comparison("kernels", spec.name, case, name, directions, ways, work, SECONDS[device.type])


def work_of(spec: OpSpec, arguments: Arguments) -> dict[str, Work]:
    """Count what each direction must do; both together only where backward alone is counted."""
    forward = Work(spec.bench.num_bytes(arguments), spec.bench.num_flops(arguments))
    backward = Work(spec.bench.num_backward_bytes(arguments), spec.bench.num_backward_flops(arguments))
    both = Work(
        forward.bytes + backward.bytes if backward.bytes else 0.0,
        forward.flops + backward.flops if backward.flops else 0.0,
    )
    return {FORWARD: forward, BACKWARD: backward, BOTH: both}


def judge_of(spec: OpSpec) -> OpSpec | None:
    """Return the spec whose reference judges at sizes worth timing; None: a loop in Python without a stand-in here."""
    if not spec.bench.slow_reference:
        return spec
    exact = EXACT.get(spec.name)
    return None if exact is None or exact.refusal(torch.device("cpu")) else replace(spec, reference=exact)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Arguments and truth that the ways of a comparison share.

    Attributes:
        timed: arguments that are timed.
        compared: arguments at which results are compared; the same, or those of a smaller case of the same kind.
        truth: what the judge says there; None: there is no judge.
    """

    timed: Arguments
    compared: Arguments
    truth: verify.Truth | None

    @classmethod
    def of(cls, spec: OpSpec, size: Any, dtype: torch.dtype, device: torch.device) -> "Inputs":
        """Make them; what was compiled for other comparisons is forgotten: past a few shapes torch compiles no more."""
        if device.type == "cuda":
            torch.compiler.reset()
        timed = verify.arguments_of(spec, size, dtype, device)
        smaller, judge = spec.bench.checked_size(size), judge_of(spec)
        compared = timed if smaller == size else verify.arguments_of(spec, smaller, dtype, device)
        return cls(timed, compared, judge and verify.truth_of(judge, compared))


def check(spec: OpSpec, peer: Peer, inputs: Inputs, bound: float) -> Check:
    """Compare values and gradients of a way with the truth; the error is the largest, in units of the bound."""
    judge = judge_of(spec)
    if judge is None or peer is EXACT.get(spec.name):
        dtype = verify.floating_dtype(inputs.timed)
        device = next(value.device for value in inputs.timed.values() if isinstance(value, Tensor))
        cases = [verify.arguments_of(spec, size, dtype, device) for size in spec.sizes.values()]
        found = [one for arguments in cases for one in verify.compare(spec, arguments, peer)]
        against = "float64 reference at the sizes of the tests"
    else:
        found = verify.compare(judge, inputs.compared, peer, inputs.truth)
        against = "float64 reference" if judge is spec else "SciPy in float64"
        if inputs.compared is not inputs.timed:
            against += ", case cut down to fit"
    errors = [one.error / one.bound if one.error else 0.0 for one in found]
    worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error, default=0.0)
    return Check(f"{against}, error over bound", worst, bound)


def ready(spec: OpSpec, peer: Peer, inputs: Inputs, bound: float) -> Ready:
    """Compare a way with the truth, and prepare what is timed."""
    checked = check(spec, peer, inputs, bound)
    if not checked.passed:
        return Ready({}, checked)
    calls = calls_of(spec, peer, inputs)
    for call in calls.values():
        call()
    return Ready(calls, checked)


def calls_of(spec: OpSpec, peer: Peer, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Return what is timed, by direction; they hold the inputs, so that the next way finds them made."""
    function = spec.bench.timed if spec.bench.timed and peer.function is spec.function else peer.function
    prepared = {**peer.prepare(spec.bench.timed_arguments(inputs.timed))}
    learned: list[Tensor] = []
    for name in spec.differentiable:
        prepared[name] = _leaves(prepared[name], learned)

    def forward(inputs: Inputs = inputs) -> object:
        with torch.no_grad():
            return function(**prepared)

    if not spec.differentiable:
        return {FORWARD: forward}
    kept = _learning(function(**prepared))
    slopes = [torch.randn_like(output) for output in kept]

    def backward() -> object:
        return torch.autograd.grad(kept, learned, slopes, retain_graph=True)

    def both() -> object:
        return torch.autograd.grad(_learning(function(**prepared)), learned, slopes)

    return {FORWARD: forward, BACKWARD: backward, BOTH: both}


def _leaves(value: Any, found: list[Tensor]) -> Any:
    """Return an argument whose tensors want gradients; adds them to those found."""
    if isinstance(value, Tensor):
        found.append(value.detach().requires_grad_())
        return found[-1]
    return [_leaves(part, found) for part in value] if isinstance(value, list) else value


def _learning(result: Any) -> list[Tensor]:
    """Return the tensors of a result through which gradients flow."""
    parts = [result] if isinstance(result, Tensor) else result
    return [part for part in parts if isinstance(part, Tensor) and part.requires_grad]


@pytest.fixture(scope="module", autouse=True)
def graphs_are_kept() -> Iterator[None]:
    """Let code compiled by torch run backward more than once: else it writes over what its backward has read."""
    with torch._functorch.config.patch(donated_buffer=False):  # type: ignore[attr-defined]
        yield


def test_kernel(collect: Row) -> None:
    """Time one way of one op."""
