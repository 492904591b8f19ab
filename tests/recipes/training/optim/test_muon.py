"""Muon: torch's own as oracle, the singular values of its directions, and what it leaves to AdamW."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medmo_recipes.settings.run_config import Optim
from medmo_recipes.training.optim import muon
from medmo_recipes.training.optim.muon import orthogonal
from medmo_recipes.training.optim.optimizer import Optimizer, is_hidden_matrix

FIXED: dict[str, Any] = {"warmup_ratio": 0.0, "schedule": "constant", "clip_norm": 0.0}


class Block(nn.Module):
    """Two matrices of one shape, one of another, a fused projection and a table."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Linear(24, 40, dtype=dtype) for _ in range(2))
        self.back = nn.Linear(40, 24, bias=False, dtype=dtype)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(24, 36, bias=False, dtype=dtype)})
        self.embed_tokens = nn.Embedding(50, 24, dtype=dtype)


def give_gradients(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)


def trained(net: nn.Module, steps: int, **settings: Any) -> nn.Module:
    optimizer = Optimizer(net, Optim(kind="muon", **{"lr": 1e-2, **FIXED, **settings}), steps)
    for step in range(steps):
        give_gradients(net, step)
        optimizer.step(step)
    return net


def test_steps_are_those_of_torch() -> None:
    """torch multiplies in bfloat16: its directions are 1 % of themselves away, as ours are where that is faster."""
    ours, theirs = trained(Block(), 4, weight_decay=0.1), Block()
    names = ("first.weight", "second.weight", "back.weight")
    oracle = torch.optim.Muon(
        [theirs.get_parameter(name) for name in names], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    start = Block()
    for step in range(4):
        give_gradients(theirs, step)
        oracle.step()
    for name in names:
        moved = theirs.get_parameter(name) - start.get_parameter(name)
        off = ours.get_parameter(name) - theirs.get_parameter(name)
        assert off.norm() < 0.02 * moved.norm(), name


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 20, 50), (2, 50, 20), (1, 1, 8)])
def test_directions_keep_singular_vectors_and_level_the_values(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for matrix, direction in zip(matrices, orthogonal(matrices), strict=True):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        levelled = left.T @ direction @ right.T
        kept = values > 0.05 * values[0]  # five rounds lift nothing that is nearly zero
        assert ((levelled.diagonal() > 0.6) & (levelled.diagonal() < 1.25))[kept].all()
        assert (levelled - levelled.diagonal().diag()).abs().max() < 1e-9
    assert torch.equal(orthogonal(matrices[:1]), orthogonal(matrices)[:1])
    assert torch.equal(orthogonal(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


@pytest.mark.parametrize("is_halved", [False, True])
def test_fp32_is_multiplied_in_bfloat16_where_that_is_faster(is_halved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: is_halved)
    matrices = torch.randn(2, 48, 80, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact, found = orthogonal(matrices), orthogonal(matrices.float())
    error = ((found - exact).norm() / exact.norm()).item()
    assert found.dtype == (torch.bfloat16 if is_halved else torch.float32)
    assert 1e-3 < error < 2e-2 if is_halved else error < 1e-5


@pytest.mark.parametrize("processes", [1, 2, 3, 40])
def test_processes_share_the_work_by_cost(processes: int) -> None:
    shapes = [torch.Size(shape) for shape in [(192, 64)] * 8 + [(512, 512)] * 3 + [(192, 512)] * 12]
    costs = [max(shape) * min(shape) ** 2 for shape in shapes]
    owners = muon._owners(shapes, processes)
    loads = [sum(c for c, owner in zip(costs, owners, strict=True) if owner == p) for p in range(processes)]
    assert sum(loads) == sum(costs)
    assert max(loads) <= max(max(costs), sum(costs) / processes + 192**2 * 512)


def test_a_matrix_and_its_transpose_are_made_together_and_apart() -> None:
    generator = torch.Generator().manual_seed(5)
    matrices = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(12, 20), (20, 12), (9, 9)]]
    for matrix, direction in zip(matrices, muon._directions(matrices), strict=True):
        torch.testing.assert_close(direction, orthogonal(matrix[None])[0], rtol=1e-9, atol=1e-12)


def test_a_fused_projection_is_three_matrices() -> None:
    net = trained(Block(), 1)
    start, gradient = Block().attn["qkv"].weight, _gradient(net, "attn.qkv.weight")
    looked_ahead = gradient * (1 - muon.MOMENTUM) * muon.MOMENTUM + gradient * (1 - muon.MOMENTUM)
    parts = torch.cat([orthogonal(part[None])[0].float() for part in looked_ahead.split(12)])
    expected = start - 1e-2 * muon.SCALE * math.sqrt(24) * parts
    assert torch.allclose(net.get_parameter("attn.qkv.weight"), expected, atol=1e-6)


def _gradient(net: nn.Module, name: str) -> Tensor:
    give_gradients(net, 0)
    gradient = net.get_parameter(name).grad
    assert gradient is not None
    return gradient


def test_everything_else_moves_by_adamw() -> None:
    ours, theirs = trained(Block(), 3), Block()
    optimizer = Optimizer(theirs, Optim(kind="adamw", lr=1e-2, **FIXED), 3)
    for step in range(3):
        give_gradients(theirs, step)
        optimizer.step(step)
    for name in ("embed_tokens.weight", "first.bias"):
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name))
    assert not torch.equal(ours.get_parameter("back.weight"), theirs.get_parameter("back.weight"))
    names = {"lm_head.weight": (50, 24), "pos_embed.weight": (9, 24), "norm.weight": (24,), "proj.weight": (8, 3, 2, 2),
             "mlp.up_proj.weight": (40, 24)}  # fmt: skip
    found = {name for name, shape in names.items() if is_hidden_matrix(name, torch.empty(shape, device="meta"))}
    assert found == {"mlp.up_proj.weight"}


def test_how_matrices_are_batched_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    together = trained(Block(torch.float64), 2)
    monkeypatch.setattr(muon, "BATCH", 1)
    apart = trained(Block(torch.float64), 2)
    for name, parameter in together.named_parameters():
        assert torch.allclose(parameter, apart.get_parameter(name), rtol=0, atol=1e-14), name


def test_small_updates_add_up_in_bfloat16() -> None:
    """A weight of 1 moves by 4e-4 a step, where half a unit in the last place of bfloat16 is 2e-3."""
    net = nn.Linear(24, 40, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(net.weight)
    optimizer = Optimizer(net, Optim(kind="muon", lr=1e-2, **FIXED), 40)
    for step in range(40):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step(step)
    moved = 1 - net.weight.float().mean().item()
    direction = orthogonal(torch.ones(1, 40, 24))[0, 0, 0].item()
    assert moved == pytest.approx(40 * 1e-2 * muon.SCALE * math.sqrt(40) * direction, abs=0.003) and moved > 0.01
