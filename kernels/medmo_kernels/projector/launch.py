"""Launchers of the projector: forward and backward of all mergers, in groups that share a launch."""

# The options of a launch are no parameters of the kernel.
# pyright: reportCallIssue=false, reportArgumentType=false

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fit import dense_aligned
from ..grids import cdiv, next_power_of_2
from ..placement import on_device_of_tensors
from ..tables import tuned
from . import triton_kernel as kernels
from .reference import ProjectorWeights

ROOM = "projector"
MAX_GROUP = 4
"""Mergers in one launch: the towers at hand have a main one and three taps."""
BAND = 8
"""Rows of tiles that are walked before the next column, so that weights and features stay in the L2 cache."""


@on_device_of_tensors
def forward(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], merge_size: int, eps: float, keep: bool, few: bool
) -> tuple[list[Tensor], Tensor]:
    """Run all mergers.

    Args:
        features: G times (N, C) patches.
        weights: parameters of each merger.
        merge_size: patches along one side of a token.
        eps: number added to the variance.
        keep: whether the pre-activation is wanted.
        few: whether the tokens are so few that a product waits for its weights.

    Returns:
        The tokens of each merger, and the pre-activation (an empty tensor unless `keep`).
    """
    features, weights = _fitting(features, weights)
    x = features[0]
    shape = (len(features), x.shape[0] // merge_size**2, weights[0].fc1_weight.shape[0])
    activated, hidden = x.new_empty(shape), x.new_empty(shape if keep else 0)
    size = {"tokens": "few" if few else "many", "mergers": "one" if shape[0] == 1 else "tower"}
    for part in _parts(shape):
        normal = _normalise(features[part], weights[part], merge_size**2, eps)
        _launch_fc1(normal, weights[part], x.shape[1], size, hidden[part] if keep else hidden, activated[part], keep)
    return [F.linear(a, w.fc2_weight, w.fc2_bias) for a, w in zip(activated, weights, strict=True)], hidden


@on_device_of_tensors
def backward(
    grads: Sequence[Tensor],
    features: Sequence[Tensor],
    weights: Sequence[ProjectorWeights],
    hidden: Tensor,
    merge_size: int,
    eps: float,
    of_features: bool,
    of_weights: bool,
) -> tuple[list[Tensor], list[ProjectorWeights]]:
    """Return the gradients of the features and of the parameters, each list empty where it is not asked for."""
    features, weights = _fitting(features, weights)
    cells = merge_size**2
    grad_hidden = torch.empty_like(hidden)
    for out, grad, w in zip(grad_hidden, grads, weights, strict=True):
        torch.mm(grad, w.fc2_weight, out=out)
    activated, fc1_bias = _gelu_backward(grad_hidden, hidden, of_weights)
    fc2_weight = [torch.mm(g.t(), a) for g, a in zip(grads, activated, strict=True)] if of_weights else []
    del activated  # its memory can hold what follows
    grad_normal = [torch.mm(g, w.fc1_weight) for g, w in zip(grad_hidden, weights, strict=True)]
    # In this order: the second overwrites what the first reads.
    normal, norms = _norm_weights(grad_normal, features, weights, cells, eps) if of_weights else (None, ())
    if of_features:
        _norm_features(grad_normal, features, weights, cells, eps)
    by_features = [g.view_as(x) for g, x in zip(grad_normal, features, strict=True)] if of_features else []
    if normal is None:
        return by_features, []
    fc1_weight = [torch.mm(g.t(), x) for g, x in zip(grad_hidden, normal, strict=True)]
    fc2_bias = [g.sum(0) for g in grads]
    columns = (*norms, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return by_features, [ProjectorWeights(*row) for row in zip(*columns, strict=True)]


def _fitting(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights]
) -> tuple[list[Tensor], list[ProjectorWeights]]:
    """Return tensors as the kernels read them: contiguous, with aligned pointers."""
    return [dense_aligned(x) for x in features], [ProjectorWeights(*(dense_aligned(t) for t in w)) for w in weights]


def _parts(shape: Sequence[int]) -> list[slice]:
    """Return the slices of mergers that share a launch; none where there is nothing to compute."""
    group, num_tokens = shape[:2]
    return [slice(g, min(g + MAX_GROUP, group)) for g in range(0, group if num_tokens else 0, MAX_GROUP)]


def _cell_strides(features: Sequence[Tensor], weights: Sequence[ProjectorWeights]) -> tuple[int, ...]:
    """Return per merger how far its norm's parameters move from cell to cell: 0 where each patch has its own norm."""
    width = features[0].shape[1]
    return tuple(width if w.norm_weight.shape[0] > width else 0 for w in weights)


def _normalise(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], cells: int, eps: float
) -> tuple[Tensor, ...]:
    """Return the normalised tokens of each merger, (M, D)."""
    num_patches, width = features[0].shape
    num_tokens, group = num_patches // cells, len(features)
    normal = features[0].new_empty(group, num_tokens, cells * width)
    kernels._norm_kernel[(num_tokens, group)](
        tuple(features), tuple(w.norm_weight for w in weights), tuple(w.norm_bias for w in weights),
        _cell_strides(features, weights), normal, num_tokens, width, eps,
        GROUP=group, CELLS=cells, BLOCK_C=next_power_of_2(width), **tuned(ROOM, "norm", normal).options,
    )  # fmt: skip
    return normal.unbind(0)


def _launch_fc1(
    normal: tuple[Tensor, ...], weights: Sequence[ProjectorWeights], width: int, size: dict[str, str],
    hidden: Tensor, activated: Tensor, keep: bool,
) -> None:  # fmt: skip
    _, num_tokens, num_columns = activated.shape
    blocks, options, _ = tuned(ROOM, "fc1", activated, **size)
    # The largest power of two that divides both.
    blocks = {**blocks, "BLOCK_K": min(blocks["BLOCK_K"], width & -width)}
    tiles = cdiv(num_tokens, blocks["BLOCK_M"]) * cdiv(num_columns, blocks["BLOCK_N"])
    kernels._fc1_gelu_kernel[(len(normal) * tiles,)](
        normal, tuple(w.fc1_weight for w in weights), tuple(w.fc1_bias for w in weights), hidden, activated,
        num_tokens, num_columns, normal[0].shape[1], GROUP=len(normal), BAND=BAND, KEEP_HIDDEN=keep,
        INPUT_PRECISION="ieee" if activated.dtype == torch.float32 else None, **blocks, **options,
    )  # fmt: skip


def _norm_weights(
    grads: list[Tensor], features: Sequence[Tensor], weights: Sequence[ProjectorWeights], cells: int, eps: float
) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
    """Return the normalised tokens, (G, M, D), and the gradients of the norms' weights and biases."""
    group, (num_tokens, merged) = len(grads), grads[0].shape
    _, options, launch = tuned(ROOM, "norm_backward", grads[0])
    parts = cdiv(num_tokens, launch["tokens_per_part"])
    normal = grads[0].new_empty(group, num_tokens, merged)
    sums = grads[0].new_empty(2, group, parts, merged, dtype=torch.float32)
    for part in _parts((group, num_tokens)):
        some = weights[part]
        kernels._norm_weights_kernel[(parts, len(some))](
            tuple(grads[part]), tuple(features[part]),
            tuple(w.norm_weight for w in some), tuple(w.norm_bias for w in some), _cell_strides(features, some),
            normal[part], sums[0, part], sums[1, part], num_tokens, merged // cells, eps, launch["tokens_per_part"],
            GROUP=len(some), CELLS=cells, BLOCK_C=next_power_of_2(merged // cells), **options,
        )  # fmt: skip
    by_weight, by_bias = (
        [s.view(-1, *w.norm_weight.shape).sum(0).to(grads[0].dtype) for s, w in zip(of_all, weights, strict=True)]
        for of_all in sums
    )
    return normal, (by_weight, by_bias)


def _norm_features(
    grads: list[Tensor], features: Sequence[Tensor], weights: Sequence[ProjectorWeights], cells: int, eps: float
) -> None:
    """Turn the gradients of the normalised tokens into those of the features, in place."""
    group, (num_tokens, merged) = len(grads), grads[0].shape
    _, options, launch = tuned(ROOM, "norm_backward", grads[0])
    for part in _parts((group, num_tokens)):
        some = weights[part]
        kernels._norm_features_kernel[(cdiv(num_tokens, launch["tokens_per_part"]), len(some))](
            tuple(grads[part]), tuple(features[part]), tuple(w.norm_weight for w in some),
            _cell_strides(features, some), num_tokens, merged // cells, eps, launch["tokens_per_part"],
            GROUP=len(some), CELLS=cells, BLOCK_C=next_power_of_2(merged // cells), **options,
        )  # fmt: skip


def _gelu_backward(grad: Tensor, hidden: Tensor, of_weights: bool) -> tuple[Tensor, list[Tensor]]:
    """Turn `grad` in place into the gradient of `hidden`; return the activation and the gradients of the biases."""
    group, num_tokens, num_columns = hidden.shape
    blocks, options, launch = tuned(ROOM, "gelu_backward", grad)
    parts = cdiv(num_tokens, launch["tokens_per_part"])
    activated = torch.empty_like(hidden) if of_weights else hidden  # a stand-in that nothing writes
    sums = grad.new_empty((group, parts, num_columns) if of_weights else 0, dtype=torch.float32)
    if parts:
        kernels._gelu_backward_kernel[(cdiv(num_columns, blocks["BLOCK_N"]), parts, group)](
            grad, hidden, activated, sums, num_tokens, num_columns, launch["tokens_per_part"], WEIGHTS=of_weights,
            **blocks, **options,
        )  # fmt: skip
    return activated, [s.sum(0).to(grad.dtype) for s in sums]
