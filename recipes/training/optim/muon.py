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
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..distributed.shards import local_rows
from ..model.bfloat16_products import multiplies_bfloat16
from .adam import HALVES, Hyper, TrainedParameter, WideAdamW

MOMENTUM = 0.95
SCALE = 0.2
"""Root mean square of an update at rate 1, as AdamW's is about that."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7
BATCH = 2**22
"""Numbers of matrices that are made orthogonal together."""


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
            wholes = [_ahead(part, hyper) for part in batch]
            counts = [_pieces(part) for part in batch]
            made = iter(_shared([m for w, n in zip(wholes, counts, strict=True) for m in w.chunk(n)]))
            for part, count in zip(batch, counts, strict=True):
                _move(part, list(islice(made, count)), rate * part.lr_scale)


def _batches(parts: Sequence[TrainedParameter]) -> Iterator[list[TrainedParameter]]:
    """Divide parameters into groups of at most BATCH numbers, or of one parameter."""
    group: list[TrainedParameter] = []
    numbers = 0
    for part in parts:
        count = part.parameter.numel()
        if group and numbers + count > BATCH:
            yield group
            group, numbers = [], 0
        group.append(part)
        numbers += count
    if group:
        yield group


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


def _shared(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return directions of matrices that all processes hold: each makes some of them, and gets the others."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if processes == 1:
        return _directions(matrices)
    owners = _owners([matrix.shape for matrix in matrices], processes)
    sizes = [sum(m.numel() for m, of in zip(matrices, owners, strict=True) if of == p) for p in range(processes)]
    made = _directions([m for m, owner in zip(matrices, owners, strict=True) if owner == dist.get_rank()])
    mine = matrices[0].new_zeros(max(sizes), dtype=_product_dtype(matrices[0]))
    if made:
        torch.cat([matrix.flatten() for matrix in made], out=mine[: sizes[dist.get_rank()]])
    parts = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(parts, mine)
    rests = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    directions: list[Tensor] = []
    for matrix, owner in zip(matrices, owners, strict=True):
        direction, rests[owner] = rests[owner].tensor_split([matrix.numel()])
        directions.append(direction.view(matrix.shape))
    return directions


def _owners(shapes: Sequence[torch.Size], processes: int) -> list[int]:
    """Return the process that makes each matrix: the costliest first, each to whom has least to do by then."""
    costs = [max(shape) * min(shape) ** 2 for shape in shapes]
    loads, owners = [0] * processes, [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners


def _directions(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return `orthogonal` of each matrix, those of one shape (or its transpose) together, in the dtype of products."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(tuple(sorted(matrix.shape)), []).append(index)
    directions: dict[int, Tensor] = {}
    for shape, group in by_shape.items():
        wide = torch.stack([matrices[i] if matrices[i].shape == shape else matrices[i].mT for i in group])
        for i, direction in zip(group, orthogonal(wide), strict=True):
            directions[i] = direction if matrices[i].shape == shape else direction.mT
    return [directions[index] for index in range(len(matrices))]


def _move(part: TrainedParameter, directions: Sequence[Tensor], rate: float) -> None:
    """Decay the rows of this process and move them along the directions of the parameter's matrices."""
    size = SCALE * math.sqrt(max(directions[0].shape))
    whole = directions[0] if len(directions) == 1 else torch.cat(list(directions))
    held = part.state.get("master", part.local)
    rows = whole.reshape(part.parameter.shape)[local_rows(part.parameter)[1]].to(held.dtype)
    held.mul_(1 - rate * part.weight_decay).sub_(rows, alpha=rate * size)
    if "master" in part.state:
        part.local.copy_(held)


def _product_dtype(matrix: Tensor) -> torch.dtype:
    """Return the dtype of products: for fp32 bfloat16 where that is faster, which five rounds forgive."""
    is_halved = matrix.dtype == torch.float32 and multiplies_bfloat16(matrix.device.type)
    return torch.bfloat16 if is_halved else matrix.dtype


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1.

    Shapes: (n, rows, columns) to the same, in the dtype they were multiplied in.
    """
    dtype = _product_dtype(matrices)
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.flatten(1).norm(dim=1).clamp(min=EPS)[:, None, None]
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
