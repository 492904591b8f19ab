"""AdamW as its formula, with fp32 or wider moments, on the part of every parameter that this process holds.

All is elementwise, so a shard is updated exactly as the same numbers of a whole parameter are. State tensors have the
shape and the sharding of their parameter; none depends on the number of processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement
from torch.optim.adamw import adamw

from ..distributed.shards import local_part

HALVES = (torch.bfloat16, torch.float16)
"""Types too coarse to add small updates to."""
BUCKET = 2**26
"""Gradients of 16-bit weights are widened so many at a time: 256 MiB instead of a copy of all."""


@dataclass(frozen=True)
class Hyper:
    """Numbers of one optimiser step that all parameters share."""

    count: int
    """Steps taken, this one included (1, 2, ...): of the bias correction and of random rounding."""
    betas: tuple[float, float]
    eps: float
    clip: float
    """Factor on the gradients, at most 1."""
    seed: int
    """Of random rounding."""


@dataclass
class TrainedParameter:
    """One trained parameter and its optimiser state."""

    name: str
    parameter: nn.Parameter
    lr_scale: float
    """Factor on the step's rate."""
    weight_decay: float
    is_matrix: bool = False
    """Whether it is a matrix of a hidden layer: it multiplies activations, and is neither a table nor the head."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Kind -> this process's part of a state tensor."""

    @property
    def local(self) -> Tensor:
        """This process's numbers, sharing their memory. FSDP2 may move them: never kept from step to step."""
        return local_part(self.parameter.detach())

    def take_gradient(self) -> Tensor:
        """Return this process's gradient and let the parameter go of it; no gradient means zero.

        Whatever no document of a step reaches (the vision encoder, where there is no image) has a gradient of zero in
        every division of the work, and none on some: both must move the weights equally.
        """
        gradient, self.parameter.grad = self.parameter.grad, None
        return torch.zeros_like(self.local) if gradient is None else local_part(gradient)

    def whole(self, state: Tensor) -> Tensor:
        """Return a state tensor as what it is to all processes: sharded like the parameter, in the same memory."""
        parameter = self.parameter
        if not isinstance(parameter, DTensor):
            return state
        shape = torch.Size((parameter.shape[0], *state.shape[1:]))
        return DTensor.from_local(
            state,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=shape,
            stride=torch.empty(shape, device="meta").stride(),
        )


class Rule(Protocol):
    """One kind of optimiser: the state it keeps and the way it moves the weights."""

    def allocate(self, part: TrainedParameter) -> None:
        """Fill `part.state`, as before the first step."""
        ...

    def update(self, parts: Sequence[TrainedParameter], rate: float, hyper: Hyper) -> None:
        """Take one step on all parameters and free their gradients."""
        ...


class WideAdamW:
    """torch's fused AdamW: moments, and for 16-bit weights the weights themselves, in fp32 (float64 for float64)."""

    def allocate(self, part: TrainedParameter) -> None:
        """Fill `part.state`: the master copy of a 16-bit weight, and zero moments."""
        held = part.local
        if held.dtype in HALVES:
            held = part.state["master"] = held.float()
        part.state |= {"exp_avg": torch.zeros_like(held), "exp_avg_sq": torch.zeros_like(held)}

    def update(self, parts: Sequence[TrainedParameter], rate: float, hyper: Hyper) -> None:
        """Take one step on all parameters and free their gradients."""
        groups: dict[tuple[float, float, bool], list[TrainedParameter]] = {}
        for part in parts:
            groups.setdefault((part.lr_scale, part.weight_decay, "master" in part.state), []).append(part)
        for (lr_scale, decay, has_master), group in groups.items():
            for slices in _buckets(group) if has_master else [_all_at_once(group)]:
                _fused_step(slices, lr_scale * rate, decay, hyper)


@dataclass(frozen=True)
class _Slice:
    """A run of numbers of one parameter, and what belongs to them."""

    weight: Tensor
    gradient: Tensor
    master: Tensor | None
    exp_avg: Tensor
    exp_avg_sq: Tensor


def _all_at_once(parts: Sequence[TrainedParameter]) -> list[_Slice]:
    return [
        _Slice(part.local, part.take_gradient(), None, part.state["exp_avg"], part.state["exp_avg_sq"])
        for part in parts
    ]


def _buckets(parts: Sequence[TrainedParameter]) -> Iterator[list[_Slice]]:
    """Divide the numbers of 16-bit parameters into runs of at most BUCKET."""
    bucket: list[_Slice] = []
    room = BUCKET
    for part in parts:
        flat = [t.view(-1) for t in (part.local, part.take_gradient(), *map(part.state.__getitem__, _STATE))]
        start = 0
        while start < flat[0].numel():
            stop = min(flat[0].numel(), start + room)
            bucket.append(_Slice(*(t[start:stop] for t in flat)))
            room -= stop - start
            start = stop
            if room == 0:
                yield bucket
                bucket, room = [], BUCKET
    if bucket:
        yield bucket


_STATE = ("master", "exp_avg", "exp_avg_sq")


def _fused_step(slices: list[_Slice], lr: float, weight_decay: float, hyper: Hyper) -> None:
    held = [s.weight if s.master is None else s.master for s in slices]
    gradients = [s.gradient.to(h.dtype) for s, h in zip(slices, held, strict=True)]
    if hyper.clip < 1:
        torch._foreach_mul_(gradients, hyper.clip)
    # torch counts the step itself: it gets the number of steps before.
    counts = torch.full((len(held),), float(hyper.count - 1), device=held[0].device).unbind()
    adamw(
        held,
        gradients,
        [s.exp_avg for s in slices],
        [s.exp_avg_sq for s in slices],
        [],
        list(counts),
        fused=True,
        amsgrad=False,
        beta1=hyper.betas[0],
        beta2=hyper.betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=hyper.eps,
        maximize=False,
    )
    for s in slices:
        if s.master is not None:
            s.weight.copy_(s.master)


def squared_norms(gradients: Mapping[str, Tensor]) -> dict[tuple[DeviceMesh, tuple[Placement, ...]] | None, Tensor]:
    """Return the sum of squares of this process's numbers: plain gradients under None, sharded ones by division."""
    squares: dict[tuple[DeviceMesh, tuple[Placement, ...]] | None, list[Tensor]] = {}
    for gradient in gradients.values():
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        key = (gradient.device_mesh, tuple(gradient.placements)) if isinstance(gradient, DTensor) else None
        square = torch.linalg.vector_norm(local_part(gradient), dtype=wide).square()
        squares.setdefault(key, []).append(square)
    return {key: torch.stack([v.to(torch.float64) for v in values]).sum() for key, values in squares.items()}
