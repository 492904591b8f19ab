"""Muon: matrices move along the orthogonal part of their momentum, everything else by AdamW.

A gradient of a matrix has a few large singular values; Adam's update keeps most of that shape. Muon replaces the
momentum M = U S V^T by about U V^T, so that rare directions are learned as fast as common ones. The polynomial of
Newton and Schulz needs matrix products alone; its coefficients give singular values between 0.7 and 1.2, which is
enough. With the factor 0.2 sqrt(longer side) an update has the size of AdamW's, and so has the learning rate.

A matrix divided over processes is gathered; the processes share the work of making whole directions, and each keeps its
rows: the result does not depend on their number. The three projections of a fused `qkv` are three matrices. Embeddings,
position tables, the head, kernels of convolutions, norms and biases move by AdamW.

Reference: Jordan et al., Muon: an optimizer for hidden layers (2024), https://kellerjordan.github.io/posts/muon/; the
scale and decay: Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..distributed.shards import local_rows
from .adam import HALVES, Hyper, TrainedParameter, WideAdamW

MOMENTUM = 0.95
SCALE = 0.2
"""Root mean square of an update at rate 1, as AdamW's is about that."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7
BATCH = 2**22
"""Numbers of matrices of one shape that are made orthogonal together."""


class Muon:
    """Muon for matrices, torch's fused AdamW for the rest; moments and master copies in fp32, float64 for float64."""

    def __init__(self) -> None:
        self._rest = WideAdamW()

    def allocate(self, part: TrainedParameter) -> None:
        """Fill `part.state`: for a matrix the master copy of 16-bit weights, and a zero momentum."""
        if not part.is_matrix:
            self._rest.allocate(part)
            return
        held = part.local
        if held.dtype in HALVES:
            held = part.state["master"] = held.float()
        part.state["momentum"] = torch.zeros_like(held)

    def update(self, parts: Sequence[TrainedParameter], rate: float, hyper: Hyper) -> None:
        """Take one step on all parameters and free their gradients."""
        self._rest.update([part for part in parts if not part.is_matrix], rate, hyper)
        for batch in _batches([part for part in parts if part.is_matrix]):
            pieces = _pieces(batch[0])
            wholes = [_ahead(part, hyper) for part in batch]
            directions = _shared(torch.cat([whole.view(pieces, -1, whole.shape[1]) for whole in wholes]))
            for part, direction in zip(batch, directions.split(pieces), strict=True):
                _move(part, direction, rate * part.lr_scale)


def _batches(parts: Sequence[TrainedParameter]) -> Iterator[list[TrainedParameter]]:
    """Divide parameters into groups of one shape, of at most BATCH numbers or one parameter."""
    alike: dict[tuple[torch.Size, int], list[TrainedParameter]] = {}
    for part in parts:
        alike.setdefault((part.parameter.shape, _pieces(part)), []).append(part)
    for (shape, _), group in alike.items():
        most = max(1, BATCH // max(1, shape.numel()))
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _pieces(part: TrainedParameter) -> int:
    """Return how many matrices a parameter is, one below the other."""
    return 3 if ".qkv." in part.name and part.parameter.shape[0] % 3 == 0 else 1


def _ahead(part: TrainedParameter, hyper: Hyper) -> Tensor:
    """Add the gradient to the momentum and return Nesterov's look ahead, whole on every process."""
    momentum = part.state["momentum"]
    gradient = part.take_gradient().to(momentum.dtype) * hyper.clip
    momentum.lerp_(gradient, 1 - MOMENTUM)
    ahead = part.whole(gradient.lerp(momentum, MOMENTUM))
    return ahead.full_tensor() if isinstance(ahead, DTensor) else ahead


def _shared(matrices: Tensor) -> Tensor:
    """Return `orthogonal` of matrices that all processes hold: each makes some of them, and gets the others.

    Shapes: (n, rows, columns) to the same.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if processes == 1:
        return orthogonal(matrices)
    share = -(-len(matrices) // processes)
    first = share * dist.get_rank()
    mine = matrices.new_zeros(share, *matrices.shape[1:])
    made = orthogonal(matrices[first : first + share])
    mine[: len(made)] = made
    parts = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(parts, mine)
    return torch.cat(parts)[: len(matrices)]


def _move(part: TrainedParameter, direction: Tensor, rate: float) -> None:
    """Decay the rows of this process and move them.

    Shapes: direction (pieces, rows, columns).
    """
    size = SCALE * math.sqrt(max(direction.shape[1:]))
    rows = direction.reshape(part.parameter.shape)[local_rows(part.parameter)[1]]
    held = part.state.get("master", part.local)
    held.mul_(1 - rate * part.weight_decay).sub_(rows, alpha=rate * size)
    if "master" in part.state:
        part.local.copy_(held)


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Return whether a kind of device has units that multiply bfloat16, and so does it faster than fp32."""
    if device != "cpu":
        return device == "cuda"
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.11 may lack it
    return any(known.get(units, False) for units in ("avx512_bf16", "amx_bf16"))


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1.

    Shapes: (n, rows, columns) to the same. Where that is faster fp32 is multiplied in bfloat16: five rounds forgive it.
    """
    is_halved = matrices.dtype == torch.float32 and multiplies_bfloat16(matrices.device.type)
    dtype = torch.bfloat16 if is_halved else matrices.dtype
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.flatten(1).norm(dim=1).clamp(min=EPS)[:, None, None]
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)
