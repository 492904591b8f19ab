"""Invariant 21: the optimiser's state does not depend on how many processes hold it: same names, same bytes once
gathered, for one process, for two that share a model and for two that hold a copy each; 8-bit blocks belong to the
whole parameter.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from medmo_recipes.training.optim.adam_8bit import has_8bit_moments
from medmo_recipes.settings.run_config import Optim
from medmo_recipes.training.distributed.world import connect
from medmo_recipes.training.optim.optimizer import Optimizer

KINDS = ("adamw", "adamw_bf16", "adamw_8bit", "muon")
STEPS = 3
MESHES = {"1 x 2": (1, 2), "2 x 1": (2, 1)}
"""Copies of the model x processes that share one."""


class Net(nn.Module):
    """Rows that two processes share unequally: whole blocks, of which a half is too small for torchao; others; one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Linear(256, 17, dtype=torch.bfloat16)
        self.rest = nn.Linear(260, 33, bias=False, dtype=torch.bfloat16)
        self.single = nn.Linear(512, 1, bias=False, dtype=torch.bfloat16)


def optimizer(net: nn.Module, kind: str) -> Optimizer:
    # Without clipping: a norm is a sum, whose last bit depends on the order.
    return Optimizer(net, Optim(kind=kind, lr=1e-2, weight_decay=0.1, clip_norm=0.0, warmup_ratio=0.0), STEPS, seed=7)


def train(net: nn.Module, moved: Any) -> None:
    """Take steps with gradients that do not depend on the processes either."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for parameter in net.parameters():
            gradient = torch.randn(parameter.shape, generator=generator).bfloat16()
            if isinstance(parameter, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                parameter.grad = distribute_tensor(gradient, mesh, placements, src_data_rank=None)
            else:
                parameter.grad = gradient
        moved.step(step)


def whole(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: t.full_tensor() if isinstance(t, DTensor) else t.detach() for key, t in tensors.items()}


def check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes, types and bytes; of what torch's fused kernel makes, all but the last bit.

    On the CPU that kernel contracts products and sums except at the end of a tensor, and a shard ends elsewhere.
    """
    assert list(found) == list(expected)
    fused = any(key.startswith("master:") for key in expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape, key
        fractional = fused and tensor.is_floating_point()
        last_bit = 2 * torch.finfo(tensor.dtype).eps * tensor.abs().max().item() if fractional else 0.0
        assert (found[key].double() - tensor.double()).abs().max().item() <= last_bit, key


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(kind: str) -> dict[str, Tensor]:
    """State and weights of one process that holds everything."""
    net = Net()
    moved = optimizer(net, kind)
    train(net, moved)
    state = moved.state_tensors()
    assert sum("codes" in key for key in state) == (2 if kind == "adamw_8bit" else 0)
    return {key: t.clone() for key, t in (state | dict(net.named_parameters())).items()}


def over_two_processes(kind: str, expected: Mapping[str, Tensor], folder: Path) -> None:
    with connect("cpu", shard=True):
        for name, sizes in MESHES.items():
            mesh = dist.init_device_mesh("cpu", sizes, mesh_dim_names=("replicate", "shard"))
            net = fully_shard(Net(), mesh=mesh)
            moved = optimizer(net, kind)
            train(net, moved)
            state = moved.state_tensors()
            check(whole(state | dict(net.named_parameters())), expected)
            if name == "1 x 2":
                dcp.save(dict(state), checkpoint_id=folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_every_mesh_has_the_same_state(
    kind: str, expected: dict[str, Tensor], run_processes: Callable[..., Any], tmp_path: Path
) -> None:
    """And the state that two processes have saved is read by one."""
    run_processes(lambda: over_two_processes(kind, expected, tmp_path / "state"))
    net = Net()
    moved = optimizer(net, kind)
    moved.allocate()
    state = moved.state_tensors()
    dcp.load(state, checkpoint_id=tmp_path / "state", no_dist=True)
    check(moved.state_tensors(), {key: expected[key] for key in state})


def test_what_is_8bit_is_decided_by_the_whole_parameter() -> None:
    """Half of `blocks` has fewer numbers than torchao quantises, and `single` lies on one process whole."""
    net = Net()
    assert has_8bit_moments(net.blocks.weight) and not has_8bit_moments(net.blocks.weight[:9])
    assert not has_8bit_moments(net.single.weight) and not has_8bit_moments(net.rest.weight)


class OfShards:
    """torchao's own optimiser, which looks at shards, with our names for what it keeps."""

    def __init__(self, net: nn.Module) -> None:
        from torchao.optim import AdamW8bit

        self.net, self.adamw = net, AdamW8bit(net.parameters(), lr=1e-2)

    def step(self, step: int) -> None:
        with torch.compiler.set_stance("force_eager"):
            self.adamw.step()

    def state_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in self.net.named_parameters():
            for kind in ("exp_avg", "exp_avg_sq"):
                value = self.adamw.state[parameter][kind]
                local = value.to_local() if isinstance(value, DTensor) else value
                is_8bit = hasattr(local, "codes")
                tensors[f"{kind}{'_codes' * is_8bit}:{name}"] = local.codes if is_8bit else local
        return tensors


def test_blocks_of_shards_are_noticed(run_processes: Callable[..., Any]) -> None:
    alone = Net()
    moved = OfShards(alone)
    train(alone, moved)
    expected = copy.deepcopy(moved.state_tensors())

    def shared() -> None:
        with connect("cpu", shard=True):
            net = fully_shard(Net(), mesh=dist.init_device_mesh("cpu", (2,)))
            moved = OfShards(net)
            train(net, moved)
            check(moved.state_tensors(), expected)

    with pytest.raises(AssertionError):
        run_processes(shared)
