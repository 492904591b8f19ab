"""Layout of a model over the processes: blocks recomputed, compiled and sharded, weights read after sharding.

With parallel.shard each decoder block is a unit of FSDP2: its weights are gathered just before it runs, its gradients
are summed (not averaged: losses are already divided by the global number of tokens). All processes must then gather and
sum in the same order, though some may have no image. What the vision tower does about that:

- A frozen encoder or projector is left out: whole on each process, it needs nobody. It costs its bytes and no exchange.
- What trains of the tower is one unit, gathered once per pass by every process and held until the backward pass has
  summed its gradients; a process without an image counts as zero there. It costs the tower's whole weights and
  gradients for the time of a pass, and no arithmetic.
- With parallel.blank_images, and under torch before 2.13, which cannot sum gradients that only some processes have, the
  tower is sharded block by block like the decoder, and a process without an image encodes a blank one times zero.

With parallel.replicas the mesh has two dimensions, "replicate" and "shard": weights are gathered among neighbours.

Left out: tensor and context parallelism (a packed batch of one process is its unit of work: a document must fit into
it), pipeline parallelism, and offloading to the host.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from medmo_core.models.medmo import MedMO
from medmo_core.models.official.folder import open_checkpoint
from medmo_core.models.official.read import load_weights
from medmo_core.modules.blocks import blocks_of, set_forward

from ...settings.run_config import ConfigError, Parallel, RunConfig
from ..model.bfloat16_products import multiply_in_bfloat16
from ..model.float8 import convert
from .shards import local_rows
from .world import World, say

ENTRY_POINTS = ("loss", "token_losses", "token_logprobs", "policy_loss", "hidden_states", "encode_images", "generate")
"""Methods of the model, beside `forward`, that use its weights."""


def prepare(model: MedMO, config: RunConfig, world: World) -> None:
    """Lay a model over the processes, in place; every process calls this, once what trains has been chosen.

    Args:
        model: model on the device of `world`, or on the meta device (`kit.is_filled_later`): then it is filled here,
            each process reading its own part of the checkpoint's files.
        config: settings of the run; read are model.recompute_text, recompute_vision, compile, float8,
            bfloat16_products, and parallel.
        world: the processes; parallel.shard needs a process group, also of one.

    Raises:
        ConfigError: parallel.replicas does not divide the number of processes.
    """
    settings = config.model
    set_forward(blocks_of(model.decoder), recompute=settings.recompute_text, compiled=settings.compile)
    set_forward(blocks_of(model.model.visual), recompute=settings.recompute_vision, compiled=settings.compile)
    if settings.float8:
        convert(model)
    if settings.bfloat16_products:
        multiply_in_bfloat16([*blocks_of(model.decoder), *blocks_of(model.model.visual)], world.device)
    if config.parallel.shard:
        shard(model, config.parallel, world)
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device=world.device)
        load_weights(model, open_checkpoint(settings.init), local_rows=local_rows)


def shard(model: MedMO, parallel: Parallel, world: World) -> None:
    """Shard weights, gradients and thus optimiser state over the processes, in place.

    Raises:
        ConfigError: parallel.replicas does not divide the number of processes.
    """
    mesh = _mesh(parallel.replicas, world)
    narrow = parallel.compute_dtype == "bfloat16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if narrow else None,
        # Sums of bfloat16 gradients over many processes lose bits.
        reduce_dtype=torch.float32 if narrow or any(p.dtype == torch.bfloat16 for p in model.parameters()) else None,
        cast_forward_inputs=False,  # rotary tables stay fp32, pixels stay bytes
    )
    # FSDP warns of views that somebody might write into; our blocks write into nothing.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for layer in blocks_of(model.decoder):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(layer, "step")
    whole = _shard_tower(model, parallel, world, mesh, policy)
    if narrow and whole:
        _narrow_while_running(model.model.visual, whole, torch.bfloat16)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for method in ENTRY_POINTS:
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other sum, and there is nothing to divide


def _mesh(replicas: int, world: World) -> DeviceMesh:
    if world.size % replicas:
        raise ConfigError(
            f"parallel.replicas={replicas}: {world.size} processes do not divide into {replicas} equal groups; "
            f"expected a divisor of {world.size}, such as the number of machines"
        )
    device = world.device.type
    if replicas == 1:
        return dist.init_device_mesh(device, (world.size,), mesh_dim_names=("shard",))
    return dist.init_device_mesh(device, (replicas, world.size // replicas), mesh_dim_names=("replicate", "shard"))


def _shard_tower(
    model: MedMO, parallel: Parallel, world: World, mesh: DeviceMesh, policy: MixedPrecisionPolicy
) -> set[nn.Parameter]:
    """Shard the vision tower so that a process may have no image; returns the parameters that stay whole."""
    tower = model.model.visual
    if needs_blank_images(model, parallel):
        if not parallel.blank_images and world.size > 1:
            say(
                world,
                f"torch {torch.__version__} cannot sum gradients that only some processes have: a process without an "
                "image encodes a blank one (parallel.blank_images)",
            )
        for block in blocks_of(tower):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        model.without_images = _add_blank_image(model)
        return set()
    whole = kept_whole(model, parallel)
    if trains(tower):
        fully_shard(tower, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=whole)
        cast(Any, tower).set_reduce_scatter_unused_params(True)
        model.without_images = _gather_idle(cast(FSDPModule, tower))
    return whole


def needs_blank_images(model: MedMO, parallel: Parallel) -> bool:
    """Whether the tower is sharded block by block, so that a process without an image must encode a blank one."""
    adds_unused = hasattr(FSDPModule, "set_reduce_scatter_unused_params")  # torch 2.13
    return parallel.blank_images or (trains(model.model.visual) and not adds_unused)


def kept_whole(model: MedMO, parallel: Parallel) -> set[nn.Parameter]:
    """Return the parameters that sharding leaves whole on every process: of what is frozen of the tower."""
    if needs_blank_images(model, parallel):
        return set()
    parts = (cast(nn.Module, model.encoder), model.projector)
    return {p for part in parts if not trains(part) for p in part.parameters()}


def trains(module: nn.Module) -> bool:
    """Whether any parameter of a module trains."""
    return any(p.requires_grad for p in module.parameters())


def _gather_idle(tower: FSDPModule) -> Callable[[Tensor], Tensor]:
    """Return what a process without an image does where the others run the tower: gather its weights with them."""

    def gather(x: Tensor) -> Tensor:
        tower.unshard()
        # Elsewhere gradients flow through all layers down to the tower, gathering each; so they must here.
        return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()

    return gather


def _add_blank_image(model: MedMO) -> Callable[[Tensor], Tensor]:
    """Return what adds zero times the tower's result for one black visual token."""
    specs = model.encoder.specs

    def add(x: Tensor) -> Tensor:
        patches, grids = {}, {}
        for name, spec in specs.items():
            side = spec.merge_size
            patches[name] = torch.zeros(side * side, spec.still_width, dtype=torch.uint8, device=x.device)
            grids[name] = torch.tensor([[1, side, side]], device=x.device)
        visual, deepstack = model.model.visual(patches, grids)
        return x + 0.0 * torch.stack([tensor.sum() for tensor in (visual, *deepstack)]).sum().to(x.dtype)

    return add


def _narrow_while_running(tower: nn.Module, whole: Collection[nn.Parameter], dtype: torch.dtype) -> None:
    """Let frozen parameters that are not sharded take part in a narrower type, as FSDP does with those that are."""
    slots = [(m, leaf) for m in tower.modules() for leaf, p in m._parameters.items() if p is not None and p in whole]
    kept: list[nn.Parameter | None] = []

    def enter(*_: Any) -> None:
        for module, leaf in slots:
            parameter = module._parameters[leaf]
            assert parameter is not None
            kept.append(parameter)
            module._parameters[leaf] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)

    def leave(*_: Any) -> None:
        for (module, leaf), parameter in zip(slots, kept, strict=True):
            module._parameters[leaf] = parameter
        kept.clear()

    tower.register_forward_pre_hook(enter)
    tower.register_forward_hook(leave, always_call=True)


@contextmanager
def whole_weights(model: MedMO) -> Iterator[None]:
    """Hold a sharded model's weights whole for a while, so that processes may decode for different lengths of time."""
    blocks = [block for block in blocks_of(model) if isinstance(block, FSDPModule)]
    tower = model.model.visual
    units = [*blocks, *(unit for unit in (tower, model) if isinstance(unit, FSDPModule))]
    for unit in units:
        unit.unshard()
    for block in blocks:  # the tower is kept after a pass anyway
        block.set_reshard_after_forward(False)
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(True)
        for unit in units:
            unit.reshard()
