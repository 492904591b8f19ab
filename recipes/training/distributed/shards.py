"""Sharded tensors: this process's part of them, sums of gradients over processes, and whole tensors gathered again."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement, Shard

from .world import World


def local_rows(parameter: Tensor) -> tuple[Tensor, slice]:
    """Return this process's memory of a parameter, and which rows of the whole it holds."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), slice(None)
    start, stop = 0, parameter.shape[0]
    for dim, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):  # along the rows, in equal chunks of which the last may be short or empty
            rows = -(-parameter.shape[0] // parameter.device_mesh.size(dim))
            start = min(rows * parameter.device_mesh.get_local_rank(dim), parameter.shape[0])
            stop = min(start + rows, parameter.shape[0])
    return parameter.to_local().detach(), slice(start, stop)


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_dims(placements: Sequence[Placement]) -> list[int]:
    """Return the mesh dimensions over which a tensor is divided."""
    return [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]


def first_index(parameter: Tensor) -> int:
    """Return the place of this process's first number in the whole parameter, counted through its rows."""
    return (local_rows(parameter)[1].start or 0) * row_size(parameter)


def row_size(parameter: Tensor) -> int:
    """Return how many numbers one row (all but the first dimension) of the whole parameter has."""
    return parameter.shape[1:].numel()


BUCKET_BYTES = 64 * 2**20  # one all-reduce per bucket: large enough for bandwidth, small beside the model


def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace each gradient by its sum over all processes.

    A parameter without a gradient here counts as zero: another process may have had the only image of the step, and
    every process must take part in the same sums in the same order.
    """
    if world.size == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if isinstance(parameter, DTensor):  # sharded: its backward pass has summed it already
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (size >= BUCKET_BYTES or bucket[0].dtype != parameter.grad.dtype):
            _sum_bucket(bucket)
            bucket, size = [], 0
        bucket.append(parameter.grad)
        size += parameter.grad.numel() * parameter.grad.element_size()
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def reshard(model: nn.Module) -> None:
    """Let a model's parameters be its shards again; without shards nothing happens.

    After a forward pass that no backward pass followed some are still whole: whoever reads parameters by name calls
    this before.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_tensors(model: nn.Module, world: World) -> dict[str, Tensor]:
    """Return every parameter whole, on the CPU of the main process (empty elsewhere); every process calls this."""
    reshard(model)
    whole: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if world.is_main:
            whole[name] = tensor.cpu()
    return whole
