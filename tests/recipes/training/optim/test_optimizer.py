"""The kinds of optimiser: rounding without bias, torchao as oracle, states of the promised size, groups."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from medmo_recipes.settings.run_config import ConfigError, Optim
from medmo_recipes.training.model.parts import NameFactor
from medmo_recipes.training.optim import adam, adam_bf16
from medmo_recipes.training.optim.adam_8bit import has_8bit_moments
from medmo_recipes.training.optim.adam_bf16 import random_bits, round_stochastically
from medmo_recipes.training.optim.optimizer import Optimizer

ADAM_KINDS = ("adamw", "adamw_bf16", "adamw_8bit")
KINDS = (*ADAM_KINDS, "muon")
CPU = torch.device("cpu")


class Net(nn.Module):
    """A matrix whose rows are whole blocks of 256, one whose rows are not, and vectors."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Linear(512, 17, bias=False, dtype=dtype)
        self.rest = nn.Linear(260, 20, dtype=dtype)


def optim(kind: str, **changes: object) -> Optim:
    return Optim(kind=kind, **{"lr": 1e-2, "warmup_ratio": 0.0, "schedule": "constant", "clip_norm": 0.0, **changes})


def give_gradients(net: nn.Module, step: int) -> None:
    """Give every parameter a gradient that only the step decides."""
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def train(net: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        give_gradients(net, step)
        optimizer.step(step)


def test_rounding_is_unbiased_and_goes_to_a_neighbour() -> None:
    values = torch.tensor([1.0, 1.0 + 2**-9, -1.0 - 2**-10, 0.3, -0.7, 1e-6, 3e4, 0.0])
    draws = 4000
    rounded = torch.stack([round_stochastically(values, f"draw {i}", 0).float() for i in range(draws)])
    below = values.view(torch.int32).bitwise_and(-65536).view(torch.float32)  # towards zero
    above = (below.view(torch.int32) + 65536).view(torch.float32)
    assert ((rounded == below) | (rounded == above)).all()
    gap = (above - below).abs()
    share = (values - below).abs() / gap
    sigma = gap * (share * (1 - share) / draws).sqrt()
    off = (rounded.double().mean(0) - values.double()).abs()
    assert (off <= 4.5 * sigma + 1e-12 * gap).all()
    # Nearest rounding would fail the same check.
    assert ((values.bfloat16().double() - values.double()).abs() > 4.5 * sigma + 1e-12 * gap).any()
    assert torch.equal(rounded[:, [0, 7]], values[[0, 7]].expand(draws, 2))  # bfloat16 numbers stay


def test_random_bits_are_even_and_tell_keys_and_places_apart() -> None:
    count = 2**18
    bits = random_bits("a", 0, count, CPU)
    expected = count / 256
    for part in (bits >> 8, bits & 255):
        chi2 = ((torch.bincount(part, minlength=256) - expected) ** 2 / expected).sum()
        assert 160 < chi2 < 360  # 255 degrees of freedom: 5 standard deviations are 113
    centred = bits.double() - 32767.5
    for other in (random_bits("b", 0, count, CPU), bits.roll(1), bits.roll(256)):
        correlation = (centred * (other.double() - 32767.5)).mean() / (2.0**32 / 12)
        assert abs(correlation) < 5 / count**0.5
    assert torch.equal(random_bits("a", 1000, 50, CPU), bits[1000:1050])  # the place decides, not where a shard begins


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adamw_is_that_of_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in runs of 1,000 numbers, as 16-bit parameters are updated."""
    monkeypatch.setattr(adam, "BUCKET", 1000)
    ours, theirs = Net(dtype), Net(dtype)
    wide = theirs if dtype != torch.bfloat16 else Net(dtype).float()
    matrices = [p for p in wide.parameters() if p.ndim > 1]
    vectors = [p for p in wide.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), fused=True)
    optimizer = Optimizer(ours, optim("adamw", weight_decay=0.1, betas=(0.9, 0.99)), 5)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for parameter, source in zip(wide.parameters(), theirs.parameters(), strict=True):
            assert source.grad is not None
            parameter.grad = source.grad.to(parameter.dtype)
        optimizer.step(step)
        reference.step()
    for mine, other in zip(ours.parameters(), wide.parameters(), strict=True):
        assert torch.equal(mine, other.to(dtype))


def torchao_states(parameters: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Run torchao's AdamW8bit on fp32 copies; returns its codes, scales and weights under our names."""
    from torchao.optim import AdamW8bit

    copies = {name: nn.Parameter(p.detach().float()) for name, p in parameters.items()}
    optimizer = AdamW8bit(list(copies.values()), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    with torch.compiler.set_stance("force_eager"):
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            for copy in copies.values():
                copy.grad = torch.randn(copy.shape, generator=generator).bfloat16().float()
            optimizer.step()
    found = {}
    for name, copy in copies.items():
        found[f"weight:{name}"] = copy.detach()
        for kind in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[copy][kind]
            found |= {f"{kind}_codes:{name}": state.codes, f"{kind}_scales:{name}": state.scale.view(len(copy), -1)}
    return found


def test_8bit_moments_are_those_of_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes and scales bit for bit, where torchao sees whole parameters; weights as fp32 differs by the order of two
    factors. Updated in runs of 512 numbers here."""
    monkeypatch.setattr(adam_bf16, "CHUNK", 512)
    net = nn.Linear(512, 17, bias=False, dtype=torch.bfloat16)
    expected = torchao_states(dict(net.named_parameters()), 6)
    kept: list[Tensor] = []

    def keep(values: Tensor, key: str, first: int) -> Tensor:
        kept.append(values.clone())
        return round_stochastically(values, key, first)

    monkeypatch.setattr(adam_bf16, "round_stochastically", keep)
    optimizer = Optimizer(net, optim("adamw_8bit", weight_decay=0.1, betas=(0.9, 0.99)), 6)
    train(net, optimizer, range(6))
    state = optimizer.state_tensors()
    weights = expected.pop("weight:weight")
    assert state.pop("steps:weight") == 6
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    assert len(kept) == 6 * 17  # one row a run
    # Six random roundings to 8 bits lie between our weights and theirs.
    assert (net.weight.float() - weights).abs().max() < 6 * 2**-8 * weights.abs().max()


def test_one_lean_step_is_fp32_adamw_before_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("adamw_bf16", "adamw_8bit"):
        net, wide = Net(), Net().float()
        rounded: list[Tensor] = []

        def keep(values: Tensor, key: str, first: int, rounded: list[Tensor] = rounded) -> Tensor:
            if key.endswith("weight"):
                rounded.append(values.clone())
            return round_stochastically(values, key, first)

        with monkeypatch.context() as patch:
            patch.setattr(adam_bf16, "round_stochastically", keep)
            train(net, Optimizer(net, optim(kind, weight_decay=0.1, clip_norm=1.0), 1), range(1))
        give_gradients(wide, 0)
        for parameter in wide.parameters():
            assert parameter.grad is not None
            parameter.grad = parameter.grad.bfloat16().float()  # what bfloat16 parameters were given
        reference = Optimizer(wide, optim("adamw", weight_decay=0.1, clip_norm=1.0), 1)
        reference.step(0)
        for values, parameter in zip(rounded, wide.parameters(), strict=True):
            torch.testing.assert_close(values.view_as(parameter), parameter.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ADAM_KINDS)
def test_small_updates_add_up(kind: str) -> None:
    """A weight of 1 moves by 1e-4 a step, where half a unit in the last place of bfloat16 is 4e-3."""
    net = nn.Linear(256, 64, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(net.weight)
    optimizer = Optimizer(net, optim(kind, lr=1e-4), 100)
    for step in range(100):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step(step)
    # Rounded at random, each weight is off by about sqrt(100 * 1e-4 * 8e-3); their mean over 16,384 by 1/128 of that.
    assert net.weight.float().mean().item() == pytest.approx(0.99, abs=0.003 if kind == "adamw" else 4e-4)


def test_a_second_moment_in_bfloat16_can_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    def shrunk() -> float:
        net = nn.Linear(256, 64, bias=False, dtype=torch.bfloat16)
        optimizer = Optimizer(net, optim("adamw_bf16", betas=(0.9, 0.999)), 300)
        for step in range(300):
            net.weight.grad = torch.full_like(net.weight, 1.0 if step == 0 else 0.0)
            optimizer.step(step)
        return optimizer.state_tensors()["exp_avg_sq:weight"].float().mean().item() / 1e-3

    assert shrunk() == pytest.approx(0.999**299, rel=0.01)
    monkeypatch.setattr(adam_bf16, "round_stochastically", lambda values, key, first: values.bfloat16())
    assert shrunk() > 0.99  # rounded to the nearest it stays


@pytest.mark.parametrize("kind", ADAM_KINDS)
def test_every_kind_learns_as_fp32_does(kind: str) -> None:
    def final_loss(dtype: torch.dtype, kind: str) -> float:
        torch.manual_seed(0)
        inputs, target = torch.randn(600, 256), torch.randn(600, 16)
        net = nn.Linear(256, 16, dtype=dtype)
        optimizer = Optimizer(net, optim(kind, lr=3e-3), 60)
        for step in range(60):
            (net(inputs.to(dtype)).float() - target).square().mean().backward()
            optimizer.step(step)
        return (net(inputs.to(dtype)).float() - target).square().mean().item()

    assert final_loss(torch.bfloat16, kind) == pytest.approx(final_loss(torch.float32, "adamw"), rel=0.01)


def test_weights_of_another_type_are_refused() -> None:
    for kind in ("adamw_bf16", "adamw_8bit"):
        with pytest.raises(ConfigError, match=r"optim.kind=adamw_\w+ rounds bfloat16.*float32.*model.dtype=bfloat16"):
            Optimizer(Net(torch.float32), optim(kind), 1)


def test_what_is_8bit_follows_from_the_shape_alone() -> None:
    shapes = {(17, 512): True, (16, 256): True, (15, 256): False, (4096, 260): False, (8192,): False,
              (32, 3, 2, 16, 16): True, (1152, 1152): False}  # fmt: skip
    assert {shape: has_8bit_moments(torch.empty(shape, device="meta")) for shape in shapes} == shapes


BYTES = [("adamw", 16), ("adamw_bf16", 8), ("adamw_8bit", 6 + 8 / 256), ("muon", 12)]


@pytest.mark.parametrize(("kind", "expected"), BYTES)
def test_bytes_of_a_parameter(kind: str, expected: float) -> None:
    """Weight, gradient and state of a matrix."""
    net = nn.Linear(512, 64, bias=False, dtype=torch.bfloat16)
    state = Optimizer(net, optim(kind), 1).state_tensors()
    del state["steps:weight"]
    total = sum(t.numel() * t.element_size() for t in state.values()) + 4 * net.weight.numel()
    assert total == expected * net.weight.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_exact_and_the_seed_matters(kind: str) -> None:
    def run(seed: int) -> tuple[Net, Optimizer]:
        net = Net()
        return net, Optimizer(net, optim(kind, lr=1e-4), 6, seed=seed)

    whole, whole_optimizer = run(3)
    train(whole, whole_optimizer, range(6))
    half, half_optimizer = run(3)
    train(half, half_optimizer, range(3))
    resumed, resumed_optimizer = run(3)
    resumed.load_state_dict(half.state_dict())
    stored = half_optimizer.state_tensors()
    for key, tensor in resumed_optimizer.state_tensors().items():  # as a checkpoint is read
        tensor.detach().copy_(stored[key])
    train(resumed, resumed_optimizer, range(3, 6))
    states = [o.state_tensors() | dict(n.named_parameters()) for n, o in ((whole, whole_optimizer),
                                                                         (resumed, resumed_optimizer))]  # fmt: skip
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    other, other_optimizer = run(4)
    train(other, other_optimizer, range(6))
    assert torch.equal(other.blocks.weight, whole.blocks.weight) == (kind in ("adamw", "muon"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_is_a_gradient_of_zero(kind: str) -> None:
    """Else a step without an image would move the vision encoder where processes share the work, and not where one
    does it all."""

    def after(fill: Callable[[Tensor], Tensor | None]) -> list[Tensor]:
        net = Net()
        optimizer = Optimizer(net, optim(kind, weight_decay=0.1), 3)
        train(net, optimizer, range(2))
        before = net.rest.weight.detach().clone()
        give_gradients(net, 2)
        for parameter in net.rest.parameters():
            parameter.grad = fill(parameter)
        optimizer.step(2)
        assert not torch.equal(before, net.rest.weight)  # momentum and decay go on
        return [p.detach() for p in net.parameters()]

    for a, b in zip(after(lambda p: None), after(torch.zeros_like), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_the_run_without_one_of_the_optimiser_is_not_counted(kind: str) -> None:
    """As in reinforce, where all groups may be flat: only the schedule goes on, not the bias correction."""
    nets = [Net(), Net()]
    for net, steps in zip(nets, ((0, 1, 2), (0, 3, 7)), strict=True):
        optimizer = Optimizer(net, optim(kind), 10)
        for index, step in enumerate(steps):
            give_gradients(net, index)
            optimizer.step(step)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)


def test_groups_have_rates_and_decays_of_their_own() -> None:
    net = Net(torch.float32)
    chosen = {"rest": {"rest.weight", "rest.bias"}, "rest.bias": {"rest.bias"}}
    rates = NameFactor({"rest": 0.1, "rest.bias": 5.0}, chosen)
    decays = NameFactor({"blocks": 3.0}, {"blocks": {"blocks.weight"}})
    optimizer = Optimizer(net, optim("adamw", weight_decay=0.1), 4, rates, decays)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0)
    moved = {name: (before[name] - p.detach()).flatten()[0].item() for name, p in net.named_parameters()}
    weight = {name: t.flatten()[0].item() for name, t in before.items()}
    assert moved["blocks.weight"] == pytest.approx(1e-2 * (1 + 0.3 * weight["blocks.weight"]), rel=1e-3)
    assert moved["rest.weight"] == pytest.approx(1e-3 * (1 + 0.1 * weight["rest.weight"]), rel=1e-3)
    assert moved["rest.bias"] == pytest.approx(5e-3, rel=1e-3)
    expected = {"lr": 1e-2, "lr/rest": 1e-3, "lr/rest+rest.bias": 5e-3}
    assert optimizer.rates() == pytest.approx(expected)
    assert Optimizer(net, optim("adamw"), 4).rates() == {"lr": 1e-2}
