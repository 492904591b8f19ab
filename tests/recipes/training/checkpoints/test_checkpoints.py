"""Checkpoints: whole or absent, bit-exact, readable without running code, explained when they do not fit."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medmo_core.durable import remove
from medmo_core.encoders import ENCODERS
from medmo_core.models.medmo import MedMO
from medmo_recipes.settings.run_config import Optim, RunConfig
from medmo_recipes.training.checkpoints import shard_writer
from medmo_recipes.training.checkpoints.checkpoints import Best, Checkpoints
from medmo_recipes.training.checkpoints.manifest import CheckpointError, sum_file, write_manifest
from medmo_recipes.training.checkpoints.shard_reader import read_model
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.optim.optimizer import Optimizer, decays, learning_rate

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


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_resume_is_bit_exact(tmp_path: Path, dtype: torch.dtype, in_background: bool) -> None:
    net, optimizer = make(0, dtype=dtype)
    advance(net, optimizer, range(3))
    store = Checkpoints(tmp_path, ALONE, in_background=in_background)
    store.save(3, CONFIG, net, optimizer, shared={"cursor": 7}, own={"seen": 9})
    advance(net, optimizer, range(3, 6))  # while the checkpoint is written: it holds the state of step 3 all the same
    draw = torch.rand(())
    store.wait()

    other, other_optimizer = make(1, dtype=dtype)
    resumed, passed_over = Checkpoints(tmp_path, ALONE).load_newest(other, other_optimizer)
    assert (resumed.step, resumed.shared, resumed.own, passed_over) == (3, {"cursor": 7}, [{"seen": 9}], [])
    assert RunConfig.from_dict(resumed.config) == CONFIG
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


def save_steps(store: Checkpoints, net: Net, optimizer: Optimizer, *steps: int) -> None:
    for step in steps:
        store.save(step, CONFIG, net, optimizer)
    store.wait()


def names(store: Checkpoints) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


@pytest.mark.parametrize("in_background", [False, True])
def test_failed_save_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    net, optimizer = make(0)
    advance(net, optimizer, range(1))
    store = Checkpoints(tmp_path, ALONE, keep=1, in_background=in_background)
    save_steps(store, net, optimizer, 1)

    def full_disk(*args: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shard_writer, "write_shards", full_disk)
        with pytest.raises(CheckpointError, match="step-000002 could not be saved: process 0: No space left"):
            save_steps(store, net, optimizer, 2)
    assert store.all() == [store.folder / "step-000001"]
    store.load(store.all()[0], *make(1))
    save_steps(store, net, optimizer, 2)
    assert names(store) == ["step-000002"]


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a machine that loses power may keep the name and lose the content."""
    flushed: set[int] = set()
    fsync, rename = os.fsync, Path.rename
    renamed: list[str] = []

    def noted_fsync(handle: int) -> None:
        flushed.add(os.fstat(handle).st_ino)
        fsync(handle)

    def noted_rename(path: Path, target: Path) -> Path:
        assert {entry.stat().st_ino for entry in (path, *path.iterdir())} <= flushed, path.name
        renamed.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    store = Checkpoints(tmp_path, ALONE)
    save_steps(store, *make(0), 1)
    assert renamed == ["step-000001"] and store.folder.stat().st_ino in flushed
    (store.folder / "new").mkdir()
    with pytest.raises(AssertionError, match="new"):
        (store.folder / "new").rename(store.folder / "named")


def test_failure_in_the_background_is_told_at_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, optimizer = make(0)
    store = Checkpoints(tmp_path, ALONE, in_background=True)
    monkeypatch.setattr(shard_writer, "write_shards", lambda *args: 1 / 0)
    store.save(1, CONFIG, net, optimizer)
    with pytest.raises(CheckpointError, match="step-000001 could not be saved: process 0: division by zero"):
        store.save(2, CONFIG, net, optimizer)
    assert not store.background.failed  # raised once


def test_newest_every_and_best_are_kept(tmp_path: Path) -> None:
    net, optimizer = make(0)
    store = Checkpoints(tmp_path, ALONE, keep=2, keep_every=4)
    for step in range(1, 10):
        if step == 2:
            store.best = Best(2, 0.5)
        save_steps(store, net, optimizer, step)
    assert names(store) == [f"step-00000{step}" for step in (2, 4, 8, 9)]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "val_loss": 0.5}
    again = Checkpoints(tmp_path, ALONE, keep=2, keep_every=4)
    again.load_newest(*make(1))
    assert again.best == Best(2, 0.5)
    again.best = Best(10, 0.25)
    save_steps(again, net, optimizer, 10)
    assert names(again) == ["step-000004", "step-000008", "step-000009", "step-000010"]


def test_a_best_whose_folder_is_gone_is_named_no_more(tmp_path: Path) -> None:
    net, optimizer = make(0)
    store = Checkpoints(tmp_path, ALONE, keep=2)
    store.best = Best(1, 0.5)
    for step in (1, 2, 3):
        save_steps(store, net, optimizer, step)
    remove(tmp_path / "checkpoints" / "step-000001")
    again = Checkpoints(tmp_path, ALONE, keep=2)
    again.load_newest(*make(1))
    assert again.best is None  # any loss is better than one whose weights are lost
    save_steps(again, net, optimizer, 4)
    assert not (tmp_path / "best.json").exists()


def test_nothing_in_it_is_pickled(tmp_path: Path) -> None:
    net, optimizer = make(0)
    advance(net, optimizer, range(1))
    folder = Checkpoints(tmp_path, ALONE).save(1, CONFIG, net, optimizer)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "state.json",
        "process-0.json",
        "tensors-0-0.safetensors",
    }
    assert RunConfig.from_dict(json.loads((folder / "state.json").read_text())["config"]) == CONFIG
    # Anybody's safetensors reads it, and DCP's own reader, which `load` uses.
    tensors = load_file(folder / "tensors-0-0.safetensors")
    assert torch.equal(tensors["model:body.weight"], net.body.weight)
    assert torch.equal(tensors["exp_avg:body.bias"], optimizer.state_tensors()["exp_avg:body.bias"])
    assert "model:head.weight" not in tensors and "model:table" not in tensors  # tied; not saved


class Planted:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", [".metadata", "tensors-0-1.safetensors", "tensors-0-0.safetensors", "state.json"])
def test_planted_pickle_is_refused_and_never_run(tmp_path: Path, name: str) -> None:
    net, optimizer = make(0)
    store = Checkpoints(tmp_path, ALONE)
    folder = store.save(1, CONFIG, net, optimizer)
    (folder / name).write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=re.escape(name)):
        store.load(folder, net, optimizer)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        read_model(folder)
    # Even under a manifest that fits, a pickle is not read as one.
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    write_manifest(folder, {path.name: sum_file(path) for path in files})
    if name != ".metadata":  # which nothing reads
        with pytest.raises(Exception):  # noqa: B017 - whichever reader meets it
            store.load(folder, net, optimizer)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Planted(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # it would have been seen


def damage_file(folder: Path, name: str) -> None:
    """Change one bit in the middle."""
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def test_damaged_checkpoint_is_named_and_an_older_one_taken(tmp_path: Path) -> None:
    net, optimizer = make(0)
    store = Checkpoints(tmp_path, ALONE, keep=3)
    for step in (1, 2, 3):
        advance(net, optimizer, range(step - 1, step))
        save_steps(store, net, optimizer, step)
    one, two, three = store.all()
    damage_file(three, "tensors-0-0.safetensors")
    with pytest.raises(CheckpointError, match=r"step-000003: tensors-0-0\.safetensors has the checksum") as error:
        store.load(three, net, optimizer)
    assert str(error.value).endswith(f"{two} is whole")
    (two / "process-0.json").unlink()
    with pytest.raises(CheckpointError, match=r"process-0\.json is missing") as error:
        store.load(two, net, optimizer)
    assert str(error.value).endswith(f"{one} is whole")

    again = Checkpoints(tmp_path, ALONE, keep=2)
    resumed, passed_over = again.load_newest(*make(1))
    assert resumed.step == 1
    assert [note[:12] for note in passed_over] == ["step-000003:", "step-000002:"]
    # They are set aside: the newest two are whole ones again.
    save_steps(again, net, optimizer, 2)
    assert names(again) == ["damaged-step-000002", "damaged-step-000003", "step-000001", "step-000002"]

    (one / "manifest.json").unlink()
    damage_file(one.with_name("step-000002"), "state.json")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint can be resumed: step-000002: state\.json has.*step-000001: no"
    ):
        Checkpoints(tmp_path, ALONE).load_newest(*make(1))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    net, optimizer = make(0)
    store = Checkpoints(tmp_path, ALONE)
    folder = store.save(1, CONFIG, net, optimizer)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is \(16, 8\) torch.float32, here \(16, 4\)"):
        store.load(folder, *make(0, width=4))
    with pytest.raises(CheckpointError, match=r"1 only here, as model:more\.weight\); set the model"):
        larger, _ = make(0)
        larger.more = nn.Linear(2, 2, bias=False)
        store.load(folder, larger, Optimizer(larger, Optim(), 1))
    with pytest.raises(CheckpointError, match=r"optimizer's tensors \(.* only there, as exp_avg:body\.bias\)"):
        frozen, _ = make(0)
        frozen.body.requires_grad_(False)
        store.load(folder, frozen, Optimizer(frozen, Optim(), 1))
    with pytest.raises(CheckpointError, match="only here, as master:"):
        store.load(folder, *make(0, dtype=torch.bfloat16))
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="written by an earlier version of this program"):
        store.load(folder, net, optimizer)


def test_large_states_are_divided_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "FILE_BYTES", 600)
    net, optimizer = make(0)
    advance(net, optimizer, range(1))
    store = Checkpoints(tmp_path, ALONE)
    folder = store.save(1, CONFIG, net, optimizer)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 600 for file in files)
    other, _ = made = make(1)
    store.load(folder, *made)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert torch.equal(read_model(folder)["body.weight"], net.body.weight)


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


@pytest.mark.parametrize("encoder", ENCODERS)
def test_in_every_model_only_matrices_decay(encoder: str) -> None:
    """Position tables and learned tokens are added, not multiplied, under whatever name an encoder gives them."""
    model = MedMO.from_config("debug", encoder=encoder, tie_word_embeddings=False, device="meta")
    matrices = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)}
    assert {name for name, parameter in model.named_parameters() if decays(name, parameter)} == matrices


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
