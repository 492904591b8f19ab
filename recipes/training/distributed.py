"""Processes and how they add up: the world, sums over it, gradients summed once per step, and sharded weights.

Losses are divided by the step's global number of target tokens before the first backward pass, so a plain sum over
processes is the gradient of the global mean: one process, two processes and accumulation give the same step.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

BLOCK_LISTS = ("blocks", "layers", "layer")  # what the families of encoders and decoders call their stack
ENTRY_POINTS = ("loss", "token_logprobs", "hidden_states", "generate")  # methods of the model that use its weights
BUCKET_BYTES = 64 * 2**20  # one all-reduce per bucket: large enough for bandwidth, small beside the model


@dataclass(frozen=True)
class World:
    """The processes of this run and this one's place among them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the elementwise sum of `values` over all processes; `values` itself is left alone."""
        if self.size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, item: Any) -> list[Any]:
        """Return every process's `item`, in rank order, on every process (small Python objects)."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def share(self, total: int) -> range:
        """Return this process's indices out of 0..total-1: every size-th one, so that ranks are disjoint."""
        return range(self.rank, total, self.size)


def num_launched() -> int:
    """Return how many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def connect(device: str = "auto", *, num_threads: int = 0, shard: bool = False) -> Iterator[World]:
    """Join the other processes (torchrun's protocol; alone without it) and leave at the end.

    Args:
        device: "auto", "cpu" or "cuda".
        num_threads: CPU threads of this process; 0 = cores divided by the processes of this machine.
        shard: a process group is wanted even for one process.

    Raises:
        ValueError: CUDA is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device=cuda: this machine shows no CUDA device; use train.device=cpu")
    use_cuda = torch.cuda.is_available() and device != "cpu"
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    here = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(here)
    if num_threads or local_size > 1:
        torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // local_size))
    size = num_launched()
    grouped = size > 1 or shard
    if grouped:
        store = None if "MASTER_ADDR" in os.environ else dist.HashStore()
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            store=store,
            rank=int(os.environ.get("RANK", 0)),
            world_size=size,
            timeout=timedelta(minutes=10),
            device_id=here if use_cuda else None,
        )
    try:
        yield World(rank=int(os.environ.get("RANK", 0)), size=size, device=here)
    finally:
        if grouped:
            dist.destroy_process_group()


def torchrun(module: str, words: Sequence[str], *, num_processes: int) -> int:
    """Run a module under torchrun on this machine and wait for it; returns its exit status.

    Args:
        module: dotted name.
        words: its command line.
        num_processes: processes, of one thread each.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    # Said here, since torchrun warns when nobody says how many threads a process may use.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, "-m", module, *words], env=environment, check=False).returncode


def leave(status: int) -> NoReturn:
    """End the program with an exit status; the last line of a stage launched as a program.

    Among several processes it ends at once, without tearing torch down: about one FSDP2 run over gloo in thirty aborts
    there ("terminate called without an active exception", torch 2.13, also without any of our code), after all is
    written, and torchrun would call the finished run a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if num_launched() > 1:
        os._exit(status)
    raise SystemExit(status)


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


def shard_model(model: nn.Module, world: World) -> None:
    """Shard weights, gradients and thus optimiser state over all processes (FSDP2), block by block, in place.

    Each block's weights are gathered just before it runs and gradients are summed, not averaged: losses are already
    divided by the global number of tokens. Every process must run every block in every pass (see `Loader`, equal).

    Args:
        model: its blocks stand in module lists named as in BLOCK_LISTS.
        world: all processes share one mesh; a process group must exist.
    """
    mesh = dist.init_device_mesh(world.device.type, (world.size,))
    # Sums of bfloat16 gradients over many processes lose bits: reduce in fp32.
    narrow = any(p.dtype == torch.bfloat16 for p in model.parameters())
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if narrow else None, cast_forward_inputs=False)
    # FSDP warns of views that somebody might write into; our blocks write into nothing.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] in BLOCK_LISTS:
            for block in module:
                fully_shard(block, mesh=mesh, mp_policy=policy)
                if hasattr(block, "step"):
                    register_fsdp_forward_method(block, "step")
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for method in ENTRY_POINTS:
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)


def whole_tensors(model: nn.Module, world: World) -> dict[str, Tensor]:
    """Return every parameter whole, on the CPU of the main process (empty elsewhere); every process calls this."""
    whole: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if world.is_main:
            whole[name] = tensor.cpu()
    return whole
