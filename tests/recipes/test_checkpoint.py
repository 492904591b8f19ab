"""Checkpoints: whole or absent, bit-exact, readable without running code, explained when they do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from medmo_recipes.training import checkpoint as checkpoint_module
from medmo_recipes.training.checkpoint import CheckpointError, Checkpoints
from medmo_recipes.training.config import Optim, RunConfig
from medmo_recipes.training.distributed import World
from medmo_recipes.training.optim import Optimizer, decays, learning_rate

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
CONFIG = RunConfig(stage="align", name="test")


class Net(nn.Module):
    """A stand-in with a tied weight, a frozen part, a buffer that is saved and one that is not."""

    def __init__(self, width: int = 8, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(16, width, dtype=dtype)
        self.body = nn.Linear(width, width, dtype=dtype)
        self.frozen = nn.Linear(width, width, dtype=dtype).requires_grad_(False)
        self.head = nn.Linear(width, 16, bias=False, dtype=dtype)
        self.head.weight = self.embed_tokens.weight
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("table", torch.zeros(2), persistent=False)


def make(seed: int, width: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Net, Optimizer]:
    torch.manual_seed(seed)
    net = Net(width, dtype)
    return net, Optimizer(net, Optim(lr=0.1, weight_decay=0.1, warmup_ratio=0.0), 10)


def advance(net: Net, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(16, (5,), generator=torch.Generator().manual_seed(step))
        logits = net.head(torch.tanh(net.frozen(net.body(net.embed_tokens(ids)))))
        (logits.float().logsumexp(-1).sum() + torch.rand(())).backward()  # the draw moves the global generator
        optimizer.step(step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_resume_is_bit_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    net, optimizer = make(0, dtype=dtype)
    advance(net, optimizer, range(3))
    Checkpoints(tmp_path, ALONE).save(3, CONFIG, net, optimizer, {"cursor": 7})
    advance(net, optimizer, range(3, 6))
    draw = torch.rand(())

    other, other_optimizer = make(1, dtype=dtype)
    store = Checkpoints(tmp_path, ALONE)
    path = store.newest()
    assert path is not None
    resumed = store.load(path, other, other_optimizer)
    assert (resumed.step, resumed.extra) == (3, {"cursor": 7})
    advance(other, other_optimizer, range(3, 6))
    assert torch.equal(torch.rand(()), draw)
    for (name, before), after in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(before, after), name
    assert other.head.weight is other.embed_tokens.weight
    ours, theirs = optimizer.state_tensors(), other_optimizer.state_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert any(key.startswith("master:") for key in ours) == (dtype == torch.bfloat16)


def test_bfloat16_keeps_small_updates() -> None:
    """Without fp32 masters a weight of 1 never moves by 1e-4: half a unit in the last place of bfloat16 is 4e-3."""
    net = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(net.weight)
    optimizer = Optimizer(net, Optim(lr=1e-4, warmup_ratio=0.0, schedule="constant"), 100)
    for step in range(100):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step(step)
    assert net.weight.item() == pytest.approx(0.99, abs=0.003)


def test_interrupted_save_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, optimizer = make(0)
    advance(net, optimizer, range(1))
    store = Checkpoints(tmp_path, ALONE, keep=1)
    first = store.save(1, CONFIG, net, optimizer)

    def full_disk(*args: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "_write_json", full_disk)
        with pytest.raises(OSError, match="No space left"):
            store.save(2, CONFIG, net, optimizer)
    assert store.all() == [first]
    store.load(first, *make(1))
    assert store.save(2, CONFIG, net, optimizer) == store.newest()
    assert [path.name for path in store.all()] == ["step-000002"]
    assert not list(store.folder.glob(".*"))


def test_nothing_in_it_is_pickled(tmp_path: Path) -> None:
    net, optimizer = make(0)
    advance(net, optimizer, range(1))
    folder = Checkpoints(tmp_path, ALONE).save(1, CONFIG, net, optimizer)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert RunConfig.from_dict(json.loads((folder / "state.json").read_text())["config"]) == CONFIG


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    net, optimizer = make(0)
    advance(net, optimizer, range(1))
    store = Checkpoints(tmp_path, ALONE)
    folder = store.save(1, CONFIG, net, optimizer)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is \(16, 8\), the model's \(16, 4\)"):
        store.load(folder, *make(0, width=4))
    frozen, _ = make(0)
    frozen.body.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen here, as body\.bias"):
        store.load(folder, frozen, Optimizer(frozen, Optim(), 1))
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "optimizer-0-of-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer-0-of-1\.safetensors: file missing"):
        store.load(damaged, net, optimizer)
    (damaged / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no readable state\.json"):
        store.load(damaged, net, optimizer)


def test_learning_rate_warms_up_and_falls() -> None:
    optim = Optim(lr=1.0, warmup_ratio=0.2, min_lr_ratio=0.1)
    rates = [learning_rate(step, 10, optim) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate(9, 10, Optim(lr=2.0, schedule="constant")) == 2.0


def test_decay_spares_norms_biases_and_embeddings() -> None:
    net, optimizer = make(0)
    decayed = {name for name, parameter in net.named_parameters() if decays(name, parameter)}
    assert decayed == {"body.weight", "frozen.weight"}
    before = net.body.weight.detach().clone(), net.body.bias.detach().clone()
    for parameter in optimizer.named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0)
    assert torch.allclose(net.body.weight, before[0] * (1 - 0.1 * 0.1))
    assert torch.equal(net.body.bias, before[1])


def test_clipping_uses_the_global_norm() -> None:
    net, _ = make(0)
    optimizer = Optimizer(net, Optim(clip_norm=1.0, warmup_ratio=0.0), 1)
    for parameter in optimizer.named.values():
        parameter.grad = torch.full_like(parameter, 2.0)
    count = sum(p.numel() for p in optimizer.named.values())
    norm, _ = optimizer.step(0)
    assert norm == pytest.approx(2.0 * count**0.5, rel=1e-6)
    first_moment = optimizer.state_tensors()["exp_avg:body.weight"]
    assert first_moment[0, 0].item() == pytest.approx(0.1 * 2.0 / norm, rel=1e-4)


def test_optimiser_refuses_a_gradient_that_is_no_number() -> None:
    net, optimizer = make(0)
    before = net.body.weight.detach().clone()
    net.body.weight.grad = torch.full_like(net.body.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="gradient norm is nan"):
        optimizer.step(0)
    assert torch.equal(net.body.weight, before)
